// Huffman-coded coefficients, read: the bits of a segment, the tables, and one block of 8 x 8 (T.81, annex F.2).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace jpeg {

constexpr int LOOK = 12;  // bits that one look-up sees: in 12, most codes come with their value

// The place in a block, row by row, of each coefficient of the zigzag order. The last 16 catch what a damaged file
// puts past the end, until the block is refused.
constexpr uint8_t ZIGZAG[80] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13,
    6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31,
    39, 46, 53, 60, 61, 54, 47, 55, 62, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63};

// A table as the file has it: how many codes of 1 to 16 bits, and their symbols.
struct Code {
    uint8_t counts[16] = {}, symbols[256] = {};
    int total = 0;

    bool operator==(const Code& other) const {
        return total == other.total && !memcmp(counts, other.counts, 16) && !memcmp(symbols, other.symbols, total);
    }
};

// Sign extension of a value's `size` lowest bits (T.81, figure F.12).
inline int extend(uint32_t bits, int size) {
    return int(bits) < (1 << size >> 1) ? int(bits) - (1 << size) + 1 : int(bits);
}

// A table made ready. An entry of `look` holds, from the lowest bit on: 5 bits, the length to consume; 3 flags; 8 bits,
// coefficients to pass; 16 bits, the value, or the number of bits that it has where those did not fit.
struct Table {
    static constexpr int VALUE_FOLLOWS = 32, NO_VALUE = 64, LONG = 128, OTHER = VALUE_FOLLOWS | NO_VALUE | LONG;
    static constexpr int END_OF_BLOCK = 64;  // coefficients that it passes

    Code code;
    bool ac = false;
    int32_t look[1 << LOOK];
    int32_t limit[17];   // of each length, the first 16 bits that are no code of it or of a shorter one
    int32_t offset[17];  // from a code of that length to its symbol's index

    // False: more codes than there are, or a DC difference of more than 15 bits.
    bool make(const Code& from, bool is_ac) {
        code = from, ac = is_ac;
        std::fill(look, look + (1 << LOOK), int32_t(LONG));
        int next = 0, index = 0;
        for (int length = 1; length <= 16; ++length, next <<= 1) {
            offset[length] = index - next;
            for (int i = 0; i < code.counts[length - 1]; ++i, ++next, ++index) {
                if (next >= (1 << length) || (!ac && code.symbols[index] > 15)) return false;
                if (length <= LOOK) enter(next, length, code.symbols[index]);
            }
            if (next > (1 << length)) return false;
            limit[length] = next << (16 - length);
        }
        return true;
    }

   private:
    void enter(int word, int length, int symbol) {
        const int run = ac ? symbol >> 4 : 0, size = ac ? symbol & 15 : symbol, rest = LOOK - length;
        int32_t* first = look + (word << rest);
        if (ac && size == 0) {
            const int passed = run == 15 ? 16 : int(END_OF_BLOCK);
            std::fill(first, first + (1 << rest), length | NO_VALUE | passed << 8);
        } else if (size > rest) {
            std::fill(first, first + (1 << rest), length | VALUE_FOLLOWS | run << 8 | size << 16);
        } else {
            const int same = 1 << (rest - size);
            for (int bits = 0; bits < 1 << size; ++bits, first += same)
                std::fill(first, first + same, (length + size) | run << 8 | int32_t(uint32_t(extend(bits, size)) << 16));
        }
    }
};

// The bits of a segment, the next one highest. Behind its end come zeros, which `invented` counts.
struct Bits {
    const uint8_t* at = nullptr;
    const uint8_t* end = nullptr;
    uint64_t buffer = 0;
    int count = 0, invented = 0;

    Bits() = default;
    Bits(const uint8_t* from, const uint8_t* to) : at(from), end(to) {}

    // At least 56 bits, or 32 are there.
    inline __attribute__((always_inline)) void refill() {
        if (__builtin_expect(end - at >= 8, 1)) {
            uint64_t word;
            memcpy(&word, at, 8);
            // Does any byte equal 0xFF, which is followed by a stuffed zero or is a marker's first?
            if (__builtin_expect(((~word - 0x0101010101010101u) & word & 0x8080808080808080u) == 0, 1)) {
                buffer |= __builtin_bswap64(word) >> count;
                at += (63 - count) >> 3;
                count |= 56;
                return;
            }
        }
        *this = bytewise(*this);
    }

    // By value, so that what calls it keeps its own in registers.
    static __attribute__((noinline)) Bits bytewise(Bits bits) {
        for (; bits.count <= 56; bits.count += 8) {
            uint64_t byte = 0;
            if (bits.at < bits.end && *bits.at != 0xFF) {
                byte = *bits.at++;
            } else if (bits.end - bits.at >= 2 && bits.at[1] == 0) {
                byte = 0xFF, bits.at += 2;
            } else {
                bits.invented += 8;
            }
            bits.buffer |= byte << (56 - bits.count);
        }
        return bits;
    }

    void consume(int bits) { buffer <<= bits, count -= bits; }
    uint32_t take(int bits) {  // 1 to 16
        const uint32_t value = uint32_t(buffer >> (64 - bits));
        consume(bits);
        return value;
    }
    // More was read than there was.
    bool overrun() const { return count < invented; }
    // All was read but the padding of the last byte.
    bool finished() {
        *this = bytewise(*this);
        return !overrun() && count - invented < 8 && (at == end || *at == 0xFF);
    }
};

// A symbol whose code has at least `length` bits: its length * 256 + symbol; -1 where no code is like that.
inline int long_symbol(uint64_t buffer, const Table& table, int length = LOOK + 1) {
    const int next = int(buffer >> 48);
    for (; length <= 16; ++length)
        if (next < table.limit[length])
            return length << 8 | table.code.symbols[(next >> (16 - length)) + table.offset[length]];
    return -1;
}

constexpr int WRONG_CODE = -1;

// The difference of a block's DC coefficient to the one before it; false where no code is like that.
inline __attribute__((always_inline)) bool read_dc(Bits& bits, const Table& table, uint32_t& predictor) {
    const int32_t entry = table.look[bits.buffer >> (64 - LOOK)];
    int size;
    if (__builtin_expect(!(entry & Table::OTHER), 1)) {
        bits.consume(entry & 31);
        predictor += uint32_t(entry >> 16);
        return true;
    }
    if (entry & Table::LONG) {
        const int found = long_symbol(bits.buffer, table);
        if (found < 0) return false;
        bits.consume(found >> 8);
        size = found & 255;
    } else {
        bits.consume(entry & 31);
        size = entry >> 16;
    }
    if (size) predictor += uint32_t(extend(bits.take(size), size));
    return true;
}

// One block. STORE: into 64 zeros, row by row; else the bits are passed over.
// Returns the number of coefficients up to the last, WRONG_CODE, or more than 64 for a coefficient past the end.
template <bool STORE>
inline __attribute__((always_inline)) int read_block(
    Bits& bits, const Table& dc, const Table& ac, uint32_t& predictor, int16_t* block) {
    bits.refill();
    if (!read_dc(bits, dc, predictor)) return WRONG_CODE;
    if (STORE) block[0] = int16_t(predictor);
    int last = 1;
    for (int k = 1; k < 64;) {
        if (bits.count < 32) bits.refill();  // a code has 16 bits at most, its value 15
        const int32_t entry = ac.look[bits.buffer >> (64 - LOOK)];
        int run, value;
        if (__builtin_expect(!(entry & Table::OTHER), 1)) {
            bits.consume(entry & 63);
            run = (entry >> 8) & 255, value = entry >> 16;
        } else {
            int size;
            if (entry & Table::LONG) {
                const int found = long_symbol(bits.buffer, ac);
                if (found < 0) return WRONG_CODE;
                bits.consume(found >> 8);
                run = (found >> 4) & 15, size = found & 15;
                if (size == 0) run = run == 15 ? 16 : int(Table::END_OF_BLOCK);
            } else {
                bits.consume(entry & 31);
                run = (entry >> 8) & 255, size = entry & Table::NO_VALUE ? 0 : entry >> 16;
            }
            if (size == 0) {
                if (run == Table::END_OF_BLOCK) return last;
                if ((k += run) > 64) return k;
                continue;
            }
            value = extend(bits.take(size), size);
        }
        k += run;
        if (STORE) block[ZIGZAG[k]] = int16_t(value);
        last = ++k;
    }
    return last;
}

}  // namespace jpeg

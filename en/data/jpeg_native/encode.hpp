// A sequential file written anew without loss: the same coefficients, with restart markers and optimized tables.
#pragma once

#include "progressive.hpp"

namespace jpeg {

// The Huffman code of the least length for counted symbols, of 16 bits at most (T.81, annex K.2).
inline Code optimal_code(const int64_t* counts) {
    int64_t frequency[257];
    int size[257] = {}, next[257];
    std::copy(counts, counts + 256, frequency);
    frequency[256] = 1;  // a symbol of its own, so that no code is all ones
    std::fill(next, next + 257, -1);
    while (true) {
        int least = -1, second = -1;  // of equals the last, as in the standard
        for (int i = 0; i <= 256; ++i)
            if (frequency[i] && (least < 0 || frequency[i] <= frequency[least])) least = i;
        for (int i = 0; i <= 256; ++i)
            if (frequency[i] && i != least && (second < 0 || frequency[i] <= frequency[second])) second = i;
        if (second < 0) break;
        frequency[least] += frequency[second], frequency[second] = 0;
        int end = least;
        for (++size[end]; next[end] >= 0; ++size[end]) end = next[end];
        next[end] = second;
        for (end = second; end >= 0; end = next[end]) ++size[end];
    }
    int of_size[258] = {};
    for (int i = 0; i <= 256; ++i)
        if (size[i]) ++of_size[size[i]];
    for (int i = 257; i > 16; --i)  // figure K.3
        while (of_size[i] > 0) {
            int j = i - 2;
            while (of_size[j] == 0) --j;
            of_size[i] -= 2, ++of_size[i - 1], of_size[j + 1] += 2, --of_size[j];
        }
    int longest = 16;
    while (longest > 0 && of_size[longest] == 0) --longest;
    --of_size[longest];  // the symbol of its own
    Code code;
    for (int i = 1; i <= 16; ++i) code.counts[i - 1] = uint8_t(of_size[i]);
    for (int i = 1; i <= 257; ++i)
        for (int symbol = 0; symbol < 256; ++symbol)
            if (size[symbol] == i) code.symbols[code.total++] = uint8_t(symbol);
    return code;
}

// Bytes into memory of a limited size.
struct Output {
    uint8_t* out;
    int64_t capacity, size = 0;
    uint64_t bits = 0;  // the lowest `count`
    int count = 0;

    void byte(int value) {
        if (size < capacity) out[size] = uint8_t(value);
        ++size;
    }
    void bytes(const uint8_t* from, int64_t length) {
        for (int64_t i = 0; i < length; ++i) byte(from[i]);
    }
    void marker(int kind, int length = 0) {
        byte(0xFF), byte(kind);
        if (length) byte(length >> 8), byte(length & 255);
    }
    void put(uint32_t value, int length) {  // of 32 bits at most
        bits = bits << length | value, count += length;
        if (count < 32) return;
        count -= 32;
        const uint32_t word = uint32_t(bits >> count);
        const bool stuffs = ((~word - 0x01010101u) & word & 0x80808080u) != 0;  // does any byte equal 0xFF?
        if (__builtin_expect(!stuffs && size + 4 <= capacity, 1)) {
            const uint32_t swapped = __builtin_bswap32(word);
            memcpy(out + size, &swapped, 4);
            size += 4;
        } else {
            for (int shift = 24; shift >= 0; shift -= 8) coded(int(word >> shift) & 255);
        }
    }
    void flush() {  // fills the last byte with ones
        if (count % 8) put((1u << (8 - count % 8)) - 1, 8 - count % 8);
        for (; count > 0; count -= 8) coded(int(bits >> (count - 8)) & 255);
    }

   private:
    void coded(int value) {
        byte(value);
        if (value == 0xFF) byte(0);
    }
};

// A scan as the symbols that are written for it, each with the bits that follow: 16 bits of them; 8, the symbol; 3, its
// table, with 4 for AC. Between intervals comes RESTART.
class Symbols {
    const File& file;
    const int interval;
    int64_t mcu = 0;
    int predictors[3] = {};

   public:
    static constexpr uint32_t RESTART = 1u << 31;
    std::vector<uint32_t>& list;
    int64_t counts[8][256] = {};

    // `list`: memory to use.
    Symbols(const File& file, int interval, std::vector<uint32_t>& list) : file(file), interval(interval), list(list) {
        list.clear();
    }

    void next_mcu() {
        if (mcu && mcu % interval == 0) {
            list.push_back(RESTART);
            std::fill(predictors, predictors + 3, 0);
        }
        ++mcu;
    }

    // A block of `coefficients` up to its last one (T.81, annex F.1.2).
    void add(int c, const int16_t* block, int coefficients) {
        const int dc = file.components[c].dc, ac = 4 + file.components[c].ac;
        const int difference = block[0] - predictors[c], size = bit_length(difference);
        predictors[c] = block[0];
        add(dc, size, difference, size);
        int run = 0;
        for (int k = 1; k < coefficients; ++k) {
            const int value = block[ZIGZAG[k]];
            if (value == 0) {
                ++run;
                continue;
            }
            for (; run > 15; run -= 16) add(ac, 0xF0, 0, 0);
            const int bits = bit_length(value);
            add(ac, run << 4 | bits, value, bits);
            run = 0;
        }
        if (coefficients < 64) add(ac, 0, 0, 0);
    }

    void write(Output& output, const Code (&codes)[8]) const {
        uint32_t words[8][256] = {};
        uint8_t lengths[8][256] = {};
        for (int table = 0; table < 8; ++table) {
            uint32_t word = 0;
            for (int length = 1, index = 0; length <= 16; ++length, word <<= 1)
                for (int i = 0; i < codes[table].counts[length - 1]; ++i, ++word, ++index) {
                    words[table][codes[table].symbols[index]] = word;
                    lengths[table][codes[table].symbols[index]] = uint8_t(length);
                }
        }
        int restarts = 0;
        for (const uint32_t entry : list) {
            if (entry == RESTART) {
                output.flush(), output.marker(0xD0 + (restarts++ & 7));
                continue;
            }
            const int table = entry >> 24, symbol = (entry >> 16) & 255, size = table < 4 ? symbol : symbol & 15;
            output.put(words[table][symbol] << size | (entry & 0xFFFF), lengths[table][symbol] + size);
        }
        output.flush();
    }

   private:
    static int bit_length(int value) { return value ? 32 - __builtin_clz(uint32_t(std::abs(value))) : 0; }
    void add(int table, int symbol, int value, int size) {
        ++counts[table][symbol];
        const uint32_t bits = uint32_t(value < 0 ? value - 1 : value) & ((1u << size) - 1);
        list.push_back(uint32_t(table) << 24 | uint32_t(symbol) << 16 | bits);
    }
};

// Hands all blocks of a scan on: mcu(), then use(component, coefficients, their number) for each block of it.
template <typename Mcu, typename Use>
Status read_blocks(const File& file, Mcu mcu, Use use) {
    thread_local Tables tables;
    Intervals intervals;
    Scan scan(file, intervals);
    Status status = scan.open(tables, file.mcus() - 1);
    if (status == DONE) status = scan.go_to(0);
    for (int64_t i = 0; i < file.mcus() && status == DONE; ++i) {
        mcu();
        status = scan.read<true>([&](int c, int, int, const int16_t* block, int last) { use(c, block, last); });
    }
    return status == DONE ? scan.finish() : status;
}

// The file's segments as they are, without its tables of codes and its restart interval, which come last.
inline void write_header(const File& file, int interval, const Code (&codes)[8], Output& output) {
    output.marker(0xD8);
    for (const uint8_t* at = file.begin + 2; at < file.scan_header;) {
        while (at[1] == 0xFF) ++at;
        if (at >= file.scan_header) break;  // fill bytes before the scan's marker
        const int kind = at[1], length = at[2] << 8 | at[3];
        if (kind != 0xC4 && kind != 0xDD) output.bytes(at, length + 2);
        at += length + 2;
    }
    output.marker(0xDD, 4);
    output.byte(interval >> 8), output.byte(interval & 255);
    for (int table = 0; table < 8; ++table) {
        const Code& code = codes[table];
        if (!code.total) continue;
        output.marker(0xC4, 19 + code.total);
        output.byte((table & 4) << 2 | (table & 3));
        output.bytes(code.counts, 16), output.bytes(code.symbols, code.total);
    }
    output.bytes(file.scan_header, file.scan - file.scan_header);
}

// `interval`: MCUs; 0: a row of them. NO_ROOM: `written` bytes are needed. A progressive file is judged alone.
inline Status transcode(const uint8_t* bytes, int64_t size, int interval, uint8_t* out, int64_t capacity, int64_t& written) {
    File file;
    if (const Status status = file.read(bytes, size); status != DONE) {
        const Status judged = status == NOT_HANDLED && file.scan && file.progressive ? Progressive(file).judge() : status;
        return judged == DONE ? NOT_HANDLED : judged;
    }
    if (interval <= 0) interval = file.across;
    thread_local std::vector<uint32_t> list;  // used again: new memory costs as much as what it holds
    thread_local std::vector<int16_t> blocks;
    Symbols symbols(file, interval, list);
    blocks.clear();
    const Status status = read_blocks(
        file, [&] { symbols.next_mcu(); },
        [&](int c, const int16_t* block, int last) {
            symbols.add(c, block, last);
            blocks.insert(blocks.end(), block, block + 64);
        });
    if (status != DONE) return status;
    Code codes[8];
    for (int table = 0; table < 8; ++table) {
        const int64_t* counts = symbols.counts[table];
        if (std::any_of(counts, counts + 256, [](int64_t n) { return n > 0; })) codes[table] = optimal_code(counts);
    }
    Output output{out, capacity};
    write_header(file, interval, codes, output);
    symbols.write(output, codes);
    output.marker(0xD9);
    written = output.size;
    if (output.size > capacity) return NO_ROOM;
    // The proof: what was written has the same coefficients.
    File check;
    if (check.read(out, output.size) != DONE) return BAD_CODE;
    const int16_t* expected = blocks.data();
    bool same = true;
    const auto compare = [&](int, const int16_t* block, int) {
        same &= memcmp(block, expected, 64 * sizeof *block) == 0;
        expected += 64;
    };
    const bool alike = check.mcus() == file.mcus() && check.blocks() == file.blocks();
    return alike && read_blocks(check, [] {}, compare) == DONE && same ? DONE : BAD_CODE;
}

}  // namespace jpeg

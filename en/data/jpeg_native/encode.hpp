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
    uint64_t bits = 0;
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
    void put(uint32_t value, int length) {
        bits = bits << length | value, count += length;
        for (; count >= 8; count -= 8) {
            const int next = int(bits >> (count - 8)) & 255;
            byte(next);
            if (next == 0xFF) byte(0);
        }
    }
    void flush() {  // fills the last byte with ones
        if (count % 8) put((1u << (8 - count % 8)) - 1, 8 - count % 8);
    }
};

// What is done with a symbol and the `size` bits that follow it: counting, or writing.
struct Counter {
    int64_t counts[2][4][256] = {};
    void symbol(int ac, int table, int symbol, uint32_t, int) { ++counts[ac][table][symbol]; }
};

struct Writer {
    Output& output;
    uint32_t words[2][4][256] = {};
    uint8_t lengths[2][4][256] = {};

    Writer(Output& output, const Code (&codes)[2][4]) : output(output) {
        for (int ac = 0; ac < 2; ++ac)
            for (int table = 0; table < 4; ++table) {
                uint32_t word = 0;
                for (int length = 1, index = 0; length <= 16; ++length, word <<= 1)
                    for (int i = 0; i < codes[ac][table].counts[length - 1]; ++i, ++word, ++index) {
                        words[ac][table][codes[ac][table].symbols[index]] = word;
                        lengths[ac][table][codes[ac][table].symbols[index]] = uint8_t(length);
                    }
            }
    }
    void symbol(int ac, int table, int symbol, uint32_t value, int size) {
        output.put(words[ac][table][symbol], lengths[ac][table][symbol]);
        if (size) output.put(value, size);
    }
};

inline int bit_length(int value) { return value ? 32 - __builtin_clz(uint32_t(std::abs(value))) : 0; }
inline uint32_t value_bits(int value, int size) { return uint32_t(value < 0 ? value - 1 : value) & ((1u << size) - 1); }

// One block (T.81, annex F.1.2).
template <typename Sink>
inline void code_block(Sink& sink, const Component& component, const int16_t* block, int& predictor) {
    const int difference = block[0] - predictor, size = bit_length(difference);
    predictor = block[0];
    sink.symbol(0, component.dc, size, value_bits(difference, size), size);
    int run = 0;
    for (int k = 1; k < 64; ++k) {
        const int value = block[ZIGZAG[k]];
        if (value == 0) {
            ++run;
            continue;
        }
        for (; run > 15; run -= 16) sink.symbol(1, component.ac, 0xF0, 0, 0);
        const int bits = bit_length(value);
        sink.symbol(1, component.ac, run << 4 | bits, value_bits(value, bits), bits);
        run = 0;
    }
    if (run) sink.symbol(1, component.ac, 0, 0, 0);
}

// All coefficients of a file, in its order.
inline Status read_coefficients(const File& file, std::vector<int16_t>& blocks) {
    Tables tables;
    Intervals intervals;
    Scan scan(file, intervals);
    Status status = scan.open(tables, file.mcus() - 1);
    blocks.clear();
    if (status == DONE) status = scan.go_to(0);
    for (int64_t mcu = 0; mcu < file.mcus() && status == DONE; ++mcu)
        status = scan.read<true>([&](int, int, int, const int16_t* block, int) {
            blocks.insert(blocks.end(), block, block + 64);
        });
    return status == DONE ? scan.finish() : status;
}

// Hands all blocks on, with `restart(n)` between the intervals.
template <typename Sink, typename Restart>
void code_scan(const File& file, const std::vector<int16_t>& blocks, int interval, Sink& sink, Restart restart) {
    int predictors[3] = {};
    const int16_t* block = blocks.data();
    for (int64_t mcu = 0; mcu < file.mcus(); ++mcu) {
        if (mcu && mcu % interval == 0) {
            restart(int(mcu / interval - 1) & 7);
            std::fill(predictors, predictors + 3, 0);
        }
        for (int c = 0; c < file.count; ++c)
            for (int i = 0; i < file.components[c].h * file.components[c].v; ++i, block += 64)
                code_block(sink, file.components[c], block, predictors[c]);
    }
}

// The file's segments as they are, without its tables of codes and its restart interval, which come last.
inline void write_header(const File& file, int interval, const Code (&codes)[2][4], Output& output) {
    output.marker(0xD8);
    for (const uint8_t* at = file.begin + 2; at < file.scan_header;) {
        while (at[1] == 0xFF) ++at;
        const int kind = at[1], length = at[2] << 8 | at[3];
        if (kind != 0xC4 && kind != 0xDD) output.bytes(at, length + 2);
        at += length + 2;
    }
    output.marker(0xDD, 4);
    output.byte(interval >> 8), output.byte(interval & 255);
    for (int ac = 0; ac < 2; ++ac)
        for (int table = 0; table < 4; ++table) {
            const Code& code = codes[ac][table];
            if (!code.total) continue;
            output.marker(0xC4, 19 + code.total);
            output.byte(ac << 4 | table);
            output.bytes(code.counts, 16), output.bytes(code.symbols, code.total);
        }
    output.bytes(file.scan_header, file.scan - file.scan_header);
}

// `interval`: MCUs; 0: a row of them. NO_ROOM: `written` bytes are needed. A progressive file is judged alone.
inline Status transcode(const uint8_t* bytes, int64_t size, int interval, uint8_t* out, int64_t capacity, int64_t& written) {
    File file;
    std::vector<int16_t> blocks, again;
    if (const Status status = file.read(bytes, size); status != DONE) {
        const Status judged = status == NOT_HANDLED && file.scan && file.progressive ? Progressive(file).judge() : status;
        return judged == DONE ? NOT_HANDLED : judged;
    }
    if (const Status status = read_coefficients(file, blocks); status != DONE) return status;
    if (interval <= 0) interval = file.across;
    Counter counter;
    code_scan(file, blocks, interval, counter, [](int) {});
    Code codes[2][4];
    for (int ac = 0; ac < 2; ++ac)
        for (int table = 0; table < 4; ++table) {
            const int64_t* counts = counter.counts[ac][table];
            if (std::any_of(counts, counts + 256, [](int64_t n) { return n > 0; })) codes[ac][table] = optimal_code(counts);
        }
    Output output{out, capacity};
    write_header(file, interval, codes, output);
    Writer writer(output, codes);
    code_scan(file, blocks, interval, writer, [&](int number) { output.flush(), output.marker(0xD0 + number); });
    output.flush();
    output.marker(0xD9);
    written = output.size;
    if (output.size > capacity) return NO_ROOM;
    // The proof: what was written has the same coefficients.
    File check;
    if (check.read(out, output.size) != DONE || read_coefficients(check, again) != DONE || again != blocks)
        return BAD_CODE;
    return DONE;
}

}  // namespace jpeg

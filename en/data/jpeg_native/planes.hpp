// The samples of the MCUs that a part of an image needs: Huffman decoding from the entry before it, DCT of it alone.
#pragma once

#include <new>
#include <vector>

#include "dct.hpp"
#include "file.hpp"

namespace jpeg {

// Tables that recent files had, by their bytes: most encoders write the standard's.
class Tables {
    struct Kept {
        Table table;
        uint64_t used = 0;  // the number of the scan that did last
    };
    std::vector<Kept> kept;
    uint64_t scan = 0;

   public:
    void next_scan() {
        if (kept.empty()) kept.resize(8);  // a scan has 6 at most, which all stay while it lasts
        ++scan;
    }

    // Null where it is no table of Huffman codes.
    const Table* get(const Code& code, bool ac) {
        Kept* oldest = &kept[0];
        for (Kept& one : kept) {
            if (one.used && one.table.ac == ac && one.table.code == code) {
                one.used = scan;
                return &one.table;
            }
            if (one.used < oldest->used) oldest = &one;
        }
        oldest->used = oldest->table.make(code, ac) ? scan : 0;
        return oldest->used ? &oldest->table : nullptr;
    }
};

// Memory that is used again, with room behind it for vectors that read on.
template <typename T>
class Scratch {
    std::vector<T> memory;

   public:
    static constexpr size_t BEFORE = 64, BEHIND = 64;
    T* get(size_t size) {
        if (memory.size() < BEFORE + size + BEHIND) memory.resize(BEFORE + size + BEHIND);
        return memory.data() + BEFORE;
    }
    size_t bytes() const { return memory.capacity() * sizeof(T); }
};

// Reads a scan's blocks in its order, from any restart interval on.
class Scan {
    const File& file;
    const Table *dc[3], *ac[3];
    Bits bits;
    uint32_t predictors[3];
    int64_t at = -1;  // the next MCU
    int64_t stop = 0;  // the first that is not in this interval
    Intervals& intervals;

   public:
    Scan(const File& file, Intervals& intervals) : file(file), intervals(intervals) {}

    // Before anything else: makes the tables and finds the intervals up to an MCU.
    Status open(Tables& tables, int64_t last) {
        tables.next_scan();
        for (int c = 0; c < file.count; ++c) {
            dc[c] = tables.get(file.codes[0][file.components[c].dc], false);
            ac[c] = tables.get(file.codes[1][file.components[c].ac], true);
            if (!dc[c] || !ac[c]) return BAD_TABLE;
        }
        if (file.interval) return intervals.find(file, last / file.interval);
        intervals.parts.assign(1, {file.scan, file.end});
        return DONE;
    }

    // Goes to an MCU, forwards: to its interval's beginning, and what is between is passed over.
    Status go_to(int64_t mcu) {
        const int64_t interval = file.interval ? mcu / file.interval : 0, first = interval * file.interval;
        if (at < 0 || first > stop || (first == stop && at < stop)) begin(interval);
        while (at < mcu)
            if (const Status status = read<false>([](int, int, int, const int16_t*, int) {}); status != DONE)
                return status;
        return DONE;
    }

    // Reads an MCU and hands each block on: use(component, row and column in the MCU, coefficients, their number).
    template <bool STORE, typename Use>
    inline Status read(Use use) {
        if (at == stop) {
            if (!bits.finished()) return bits.overrun() ? ENDS_EARLY : BAD_MARKER;
            begin(at / file.interval);
        }
        Bits local = bits;  // in registers
        for (int c = 0; c < file.count; ++c) {
            const Component& component = file.components[c];
            for (int y = 0; y < component.v; ++y)
                for (int x = 0; x < component.h; ++x) {
                    alignas(32) int16_t block[64];
                    if (STORE) memset(block, 0, sizeof block);
                    const int last = read_block<STORE>(local, *dc[c], *ac[c], predictors[c], block);
                    if (__builtin_expect(last < 0 || last > 64, 0))
                        return local.overrun() ? ENDS_EARLY : last < 0 ? BAD_CODE : PAST_BLOCK;
                    use(c, y, x, block, last);
                }
        }
        bits = local;
        ++at;
        return bits.overrun() ? ENDS_EARLY : DONE;
    }

    // Whether the last interval that was read ends where its data does.
    Status finish() { return bits.finished() ? DONE : bits.overrun() ? ENDS_EARLY : BAD_MARKER; }

   private:
    void begin(int64_t interval) {
        const Intervals::Part part = intervals.parts[interval];
        bits = Bits(part.begin, part.end);
        for (uint32_t& predictor : predictors) predictor = 0;
        at = interval * file.interval;
        stop = file.interval ? std::min(at + file.interval, file.mcus()) : file.mcus();
    }
};

struct Box {
    int top, left, height, width;
    int bottom() const { return top + height; }
    int right() const { return left + width; }
};

// The components' samples in a part of the image.
struct Planes {
    struct Plane {
        uint8_t* samples;  // of the first MCU
        int64_t stride;
        int top, left;  // of it, in the component
    } planes[3];
    Scratch<uint8_t> memory[3];

    size_t bytes() const { return memory[0].bytes() + memory[1].bytes() + memory[2].bytes(); }

    Status decode(const File& file, const Box& box, Tables& tables, Intervals& intervals) {
        // Chroma is interpolated: a pixel more on each side, within the image.
        const int left = std::max(box.left - 1, 0) / file.mcu_width();
        const int right = std::min(box.right(), file.width - 1) / file.mcu_width();
        const int top = std::max(box.top - 1, 0) / file.mcu_height();
        const int bottom = std::min(box.bottom(), file.height - 1) / file.mcu_height();
        for (int c = 0; c < file.count; ++c) {
            const Component& one = file.components[c];
            Plane& plane = planes[c];
            plane.stride = int64_t(right - left + 1) * 8 * one.h;
            plane.samples = memory[c].get(plane.stride * (bottom - top + 1) * 8 * one.v);
            plane.top = top * 8 * one.v, plane.left = left * 8 * one.h;
        }
        Scan scan(file, intervals);
        Status status = scan.open(tables, int64_t(bottom) * file.across + right);
        for (int row = top; row <= bottom && status == DONE; ++row) {
            status = scan.go_to(int64_t(row) * file.across + left);
            for (int column = 0; column <= right - left && status == DONE; ++column)
                status = scan.read<true>([&](int c, int y, int x, const int16_t* block, int coefficients) {
                    const Component& one = file.components[c];
                    const Plane& plane = planes[c];
                    uint8_t* to = plane.samples + (int64_t(row - top) * one.v + y) * 8 * plane.stride;
                    idct(block, coefficients, file.quant[one.quant], to + (column * one.h + x) * 8, plane.stride);
                });
        }
        return status;
    }
};

}  // namespace jpeg

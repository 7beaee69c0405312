// A JPEG file up to a scan: what its markers say (T.81, annex B), and where its restart intervals lie.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "huffman.hpp"

namespace jpeg {

// What became of an image; en/data/jpeg.py has the words.
enum Status : int32_t {
    DONE = 0,
    NOT_HANDLED = 1,  // a kind of file that is left to Pillow
    BAD_HEADER = 2,
    BAD_TABLE = 3,
    BAD_CODE = 4,
    PAST_BLOCK = 5,
    BAD_MARKER = 6,
    ENDS_EARLY = 7,
    OTHER_SIZE = 8,
    BAD_BOX = 9,
    NO_ROOM = 10,
    NO_MEMORY = 11,
    BAD_PROGRESSION = 12,
};

struct Component {
    int id = 0, h = 1, v = 1;  // sampling factors
    int quant = 0, dc = 0, ac = 0;  // tables
};

struct File {
    const uint8_t* begin = nullptr;
    const uint8_t* end = nullptr;
    int height = 0, width = 0, count = 0;
    bool progressive = false;
    Component components[3];
    bool ycc = true;   // else RGB
    int max_h = 1, max_v = 1;
    int interval = 0;  // MCUs between restart markers; 0: none
    int across = 0, down = 0;  // MCUs
    uint16_t quant[4][64];     // row by row
    Code codes[2][4];          // DC, AC
    const uint8_t* scan_header = nullptr;  // its marker
    const uint8_t* scan = nullptr;         // its data

    int mcu_width() const { return 8 * max_h; }
    int mcu_height() const { return 8 * max_v; }
    int64_t mcus() const { return int64_t(across) * down; }
    int blocks() const {  // of an MCU
        int sum = 0;
        for (int c = 0; c < count; ++c) sum += components[c].h * components[c].v;
        return sum;
    }

    // Of a sequential file; others are NOT_HANDLED.
    Status read(const uint8_t* bytes, int64_t size) {
        if (const Status status = open(bytes, size); status != DONE) return status;
        return !scan ? ENDS_EARLY : progressive ? NOT_HANDLED : read_scan(scan_header + 4, scan);
    }

    // Of a file of any kind, up to its first scan.
    Status open(const uint8_t* bytes, int64_t size) {
        begin = bytes, end = bytes + size;
        return size < 4 || bytes[0] != 0xFF || bytes[1] != 0xD8 ? NOT_HANDLED : find_scan(bytes + 2);
    }

    // Reads segments to the next scan; `scan` is null where the image ends before that.
    Status find_scan(const uint8_t* at) {
        for (scan = nullptr; !scan;) {
            const uint8_t* marker = at;
            while (at < end && *at == 0xFF) ++at;  // fill bytes
            if (at == end) return ENDS_EARLY;
            const int kind = at == marker ? 0 : *at++;
            if (kind == 0) return progressive ? BAD_MARKER : NOT_HANDLED;  // libjpeg looks for the next marker
            if (kind == 0xD9) return DONE;
            if (kind == 0x01 || (kind >= 0xD0 && kind <= 0xD7)) {  // no segment
                if (!progressive) return NOT_HANDLED;
                continue;
            }
            if (kind == 0xD8) return NOT_HANDLED;
            if (end - at < 2) return ENDS_EARLY;
            const int length = at[0] << 8 | at[1];
            if (length < 2) return BAD_HEADER;
            if (length > end - at) return ENDS_EARLY;
            const uint8_t* segment = at + 2;
            at += length;
            if (kind == 0xDA)
                scan_header = segment - 4, scan = at;
            else if (const Status status = read_segment(kind, segment, at); status != DONE)
                return status;
        }
        return DONE;
    }

   private:
    bool jfif = false, adobe = false, has_quant[4] = {};
    int adobe_transform = 0;

    Status read_segment(int kind, const uint8_t* at, const uint8_t* stop) {
        switch (kind) {
            case 0xC0:
            case 0xC1:
            case 0xC2: progressive = kind == 0xC2; return read_frame(at, stop);
            case 0xC4: return read_codes(at, stop);
            case 0xDB: return read_quant(at, stop);
            case 0xDD:
                if (stop - at != 2) return BAD_HEADER;
                interval = at[0] << 8 | at[1];
                return DONE;
            case 0xE0:
                if (stop - at >= 14 && !memcmp(at, "JFIF", 5)) jfif = true;
                return DONE;
            case 0xEE:
                if (stop - at >= 12 && !memcmp(at, "Adobe", 5)) adobe = true, adobe_transform = at[11];
                return DONE;
            default: return kind == 0xFE || (kind > 0xE0 && kind <= 0xEF) ? DONE : NOT_HANDLED;
        }
    }

    Status read_frame(const uint8_t* at, const uint8_t* stop) {
        if (stop - at < 6 || stop - at != 6 + 3 * at[5] || count) return BAD_HEADER;
        height = at[1] << 8 | at[2], width = at[3] << 8 | at[4], count = at[5];
        if (at[0] != 8 || (count != 1 && count != 3)) return NOT_HANDLED;
        if (height == 0 || width == 0) return NOT_HANDLED;  // a height may follow the scan
        // Pillow's limit, MAX_IMAGE_PIXELS, past which it warns.
        if (int64_t(height) * width > 89478485 || height > 65500 || width > 65500) return NOT_HANDLED;
        at += 6;
        for (int c = 0; c < count; ++c, at += 3) {
            components[c].id = at[0], components[c].h = at[1] >> 4, components[c].v = at[1] & 15;
            components[c].quant = at[2];
            if (components[c].h < 1 || components[c].h > 4 || components[c].v < 1 || components[c].v > 4)
                return BAD_HEADER;
            if (components[c].quant > 3) return BAD_HEADER;
        }
        if (count == 1) components[0].h = components[0].v = 1;  // a scan of one component has blocks for MCUs
        for (int c = 0; c < count; ++c) {
            max_h = std::max(max_h, components[c].h), max_v = std::max(max_v, components[c].v);
        }
        for (int c = 0; c < count; ++c)
            if (max_h % components[c].h || max_v % components[c].v) return NOT_HANDLED;  // nor does libjpeg
        if (blocks() > 10) return NOT_HANDLED;
        across = (width + mcu_width() - 1) / mcu_width(), down = (height + mcu_height() - 1) / mcu_height();
        return DONE;
    }

    Status read_quant(const uint8_t* at, const uint8_t* stop) {
        while (at < stop) {
            const int wide = *at >> 4, table = *at & 15;
            ++at;
            if (table > 3 || wide > 1 || stop - at < 64 * (wide + 1)) return BAD_TABLE;
            for (int k = 0; k < 64; ++k, at += wide + 1) quant[table][ZIGZAG[k]] = wide ? at[0] << 8 | at[1] : at[0];
            has_quant[table] = true;
        }
        return DONE;
    }

    Status read_codes(const uint8_t* at, const uint8_t* stop) {
        while (at < stop) {
            const int ac = *at >> 4, table = *at & 15;
            ++at;
            if (table > 3 || ac > 1 || stop - at < 16) return BAD_TABLE;
            Code code;
            for (int i = 0; i < 16; ++i) code.total += code.counts[i] = at[i];
            at += 16;
            if (code.total > 256 || stop - at < code.total) return BAD_TABLE;
            memcpy(code.symbols, at, code.total);
            at += code.total;
            codes[ac][table] = code;
        }
        return DONE;
    }

    // One scan of all components, all coefficients; other files are left to Pillow.
    Status read_scan(const uint8_t* at, const uint8_t* stop) {
        if (!count || stop - at < 1 || stop - at != 4 + 2 * at[0]) return BAD_HEADER;
        if (at[0] != count) return NOT_HANDLED;
        ++at;
        for (int c = 0; c < count; ++c, at += 2) {
            Component& one = components[c];
            one.dc = at[1] >> 4, one.ac = at[1] & 15;
            if (at[0] != one.id || one.dc > 3 || one.ac > 3) return NOT_HANDLED;
            // Without tables, libjpeg takes those of the standard, as for Motion JPEG.
            if (!has_quant[one.quant] || !codes[0][one.dc].total || !codes[1][one.ac].total) return NOT_HANDLED;
        }
        if (at[0] != 0 || at[1] != 63 || at[2] != 0) return NOT_HANDLED;
        // libjpeg's guess of the colours, default_decompress_parms()
        const bool letters = components[0].id == 'R' && components[1].id == 'G' && components[2].id == 'B';
        ycc = count == 3 && (jfif || (adobe ? adobe_transform != 0 : !letters));
        return DONE;
    }
};

// The restart intervals of a scan, found up to the one that is asked for: memchr passes over what has no 0xFF.
struct Intervals {
    struct Part {
        const uint8_t* begin;
        const uint8_t* end;
    };
    std::vector<Part> parts;

    // Finds intervals 0 to `last`: DONE, or BAD_MARKER, ENDS_EARLY.
    Status find(const File& file, int64_t last) {
        parts.clear();
        const uint8_t* begin = file.scan;
        for (const uint8_t* at = begin; int64_t(parts.size()) <= last;) {
            const uint8_t* found =
                at < file.end ? static_cast<const uint8_t*>(memchr(at, 0xFF, file.end - at)) : nullptr;
            if (!found || file.end - found < 2) {
                parts.push_back({begin, file.end});
                return int64_t(parts.size()) <= last ? ENDS_EARLY : DONE;
            }
            at = found + 2;
            if (found[1] == 0) continue;
            while (at < file.end && at[-1] == 0xFF) ++at;  // fill bytes
            parts.push_back({begin, found});
            begin = at;
            if (int64_t(parts.size()) > last) break;
            const int kind = at[-1];
            if (kind == 0xD9) return ENDS_EARLY;
            if (kind != 0xD0 + int((parts.size() - 1) & 7)) return BAD_MARKER;
        }
        return DONE;
    }
};

}  // namespace jpeg

// What is wrong with a progressive file: all codes of its scans are read (T.81, annex G). Its pixels are Pillow's.
#pragma once

#include "planes.hpp"

namespace jpeg {

class Progressive {
    // What the scans so far have sent of a component.
    struct Sent {
        int across = 0, down = 0;       // blocks, in a scan of this component alone
        std::vector<uint64_t> nonzero;  // of each block, a bit for each coefficient, in zigzag order
        int lowest[64];                 // the last bit sent of each coefficient; -1: none
    };

    File& file;
    Tables tables;
    Intervals intervals;
    Sent sent[3];
    int count = 0, which[3];                       // the scan's components
    int first = 0, last = 0, high = 0, low = 0;    // its coefficients and bits: Ss, Se, Ah, Al
    const Table* table[3];                         // null where no code is read
    Bits bits;
    int ended = 0;  // blocks to come of which no further coefficient is sent

   public:
    explicit Progressive(File& file) : file(file) {
        for (int c = 0; c < file.count; ++c) {
            const Component& one = file.components[c];
            sent[c].across = blocks(file.width * one.h, file.max_h), sent[c].down = blocks(file.height * one.v, file.max_v);
            std::fill(sent[c].lowest, sent[c].lowest + 64, -1);
        }
    }

    // From the first scan, which the file has found, to the last. Scans that never come are no damage to libjpeg.
    Status judge() {
        Status status = DONE;
        while (status == DONE && file.scan) {
            status = read_header(file.scan_header + 4, file.scan);
            if (status == DONE) status = read_data();
            if (status == DONE) status = file.find_scan(bits.at);
        }
        return status;
    }

   private:
    static int blocks(int samples, int share) { return (samples + 8 * share - 1) / (8 * share); }

    Status read_header(const uint8_t* at, const uint8_t* stop) {
        if (!file.count || stop - at < 1 || stop - at != 4 + 2 * at[0]) return BAD_HEADER;
        count = *at++;
        if (count < 1 || count > file.count) return BAD_HEADER;
        first = at[2 * count], last = at[2 * count + 1], high = at[2 * count + 2] >> 4, low = at[2 * count + 2] & 15;
        if (first > last || last > 63 || (first == 0 && last > 0) || (first > 0 && count > 1)) return BAD_HEADER;
        if ((high && low != high - 1) || low > 13) return BAD_HEADER;
        tables.next_scan();
        int size = 0;
        for (int i = 0; i < count; ++i, at += 2) {
            which[i] = 0;
            while (which[i] < file.count && file.components[which[i]].id != at[0]) ++which[i];
            if (which[i] == file.count || std::find(which, which + i, which[i]) != which + i) return BAD_HEADER;
            size += file.components[which[i]].h * file.components[which[i]].v;
            const int number = first ? at[1] & 15 : at[1] >> 4;
            table[i] = nullptr;
            if (first == 0 && high) continue;  // bits without codes
            if (number > 3 || !file.codes[first > 0][number].total) return NOT_HANDLED;
            table[i] = tables.get(file.codes[first > 0][number], first > 0);
            if (!table[i]) return BAD_TABLE;
        }
        return count > 1 && size > 10 ? BAD_HEADER : follow();
    }

    // Whether each coefficient is sent from the bit on at which the scans before have stopped, and DC first of all.
    Status follow() {
        for (int i = 0; i < count; ++i) {
            int* lowest = sent[which[i]].lowest;
            if (first && lowest[0] < 0) return BAD_PROGRESSION;
            for (int k = first; k <= last; ++k) {
                if (high != std::max(lowest[k], 0)) return BAD_PROGRESSION;
                lowest[k] = low;
            }
        }
        return DONE;
    }

    Status read_data() {
        Sent& only = sent[which[0]];
        if (first) only.nonzero.resize(size_t(only.across) * only.down);
        const int64_t mcus = count == 1 ? int64_t(only.across) * only.down : file.mcus();
        const int64_t interval = file.interval ? file.interval : mcus;
        intervals.parts.assign(1, {file.scan, file.end});
        if (file.interval)
            if (const Status status = intervals.find(file, (mcus - 1) / interval); status != DONE) return status;
        for (int64_t mcu = 0; mcu < mcus; ++mcu) {
            if (mcu % interval == 0) {
                if (mcu && !finished()) return bits.overrun() ? ENDS_EARLY : BAD_MARKER;
                bits = Bits(intervals.parts[mcu / interval].begin, intervals.parts[mcu / interval].end);
                ended = 0;
            }
            const Status status = first ? high ? refine(only.nonzero[mcu]) : read(only.nonzero[mcu]) : read_dc();
            if (bits.overrun()) return ENDS_EARLY;
            if (status != DONE) return status;
        }
        return finished() ? DONE : bits.overrun() ? ENDS_EARLY : BAD_MARKER;
    }

    bool finished() { return bits.finished() && ended == 0; }

    int symbol(const Table& of) {
        bits.refill();
        const int found = long_symbol(bits.buffer, of, 1);
        if (found < 0) return WRONG_CODE;
        bits.consume(found >> 8);
        return found & 255;
    }

    void correct() {
        bits.refill();
        bits.take(1);
    }

    // An MCU's DC coefficients.
    Status read_dc() {
        for (int i = 0; i < count; ++i) {
            const Component& one = file.components[which[i]];
            for (int block = 0; block < (count == 1 ? 1 : one.h * one.v); ++block) {
                const int size = table[i] ? symbol(*table[i]) : 0;
                if (size < 0) return BAD_CODE;
                if (size) bits.take(size);
                if (!table[i]) correct();
            }
        }
        return DONE;
    }

    // The first bits of a block's AC coefficients (G.1.2.2).
    Status read(uint64_t& nonzero) {
        if (ended) {
            --ended;
            return DONE;
        }
        for (int k = first; k <= last; ++k) {
            const int found = symbol(*table[0]), run = found >> 4, size = found & 15;
            if (found < 0) return BAD_CODE;
            if (size == 0 && run < 15) {
                ended = (1 << run) - 1 + (run ? int(bits.take(run)) : 0);
                return DONE;
            }
            if ((k += run) > last) return PAST_BLOCK;
            if (size) bits.take(size), nonzero |= uint64_t(1) << k;
        }
        return DONE;
    }

    // A further bit of each of a block's AC coefficients (G.1.2.3).
    Status refine(uint64_t& nonzero) {
        int k = first;
        for (; k <= last && !ended; ++k) {
            const int found = symbol(*table[0]), size = found & 15;
            int run = found >> 4;
            if (found < 0 || size > 1) return BAD_CODE;
            if (size == 0 && run < 15) {
                ended = (1 << run) + (run ? int(bits.take(run)) : 0);
                break;
            }
            if (size) bits.take(1);  // its sign
            for (; k <= last; ++k)
                if (nonzero >> k & 1)
                    correct();
                else if (--run < 0)
                    break;
            if (k > last) return PAST_BLOCK;
            if (size) nonzero |= uint64_t(1) << k;
        }
        if (!ended) return DONE;
        for (; k <= last; ++k)
            if (nonzero >> k & 1) correct();
        --ended;
        return DONE;
    }
};

}  // namespace jpeg

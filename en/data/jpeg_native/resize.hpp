// Pillow's `resize(size, BILINEAR)` to the bit (Resample.c): a triangle filter, antialiased, in two passes of integers.
#pragma once

#include <cmath>
#include <vector>

#include "upsample.hpp"

namespace jpeg {

constexpr int PRECISION = 22;  // bits of a weight; the sum of each output's is 2^22 up to rounding

// Weights along one axis: output i is the sum of `taps` inputs from first[i] on.
struct Axis {
    int outputs = 0, taps = 0, begin = 0, end = 0;  // begin to end: the inputs that are used
    std::vector<int32_t> first, weights;            // (outputs,), counted from `begin`; (outputs, taps)
    std::vector<int32_t> lengths, wide;             // while it is made
    std::vector<double> shares;

    // Of `size` inputs resized to `scaled`, the outputs from `cut` on, mirrored or not. precompute_coeffs() in its
    // order of operations, since another one rounds otherwise; this must be compiled without contraction to FMA.
    void make(int size, int scaled, int cut, int count, bool mirrored) {
        const double scale = double(size) / scaled, support = std::max(scale, 1.0), inverse = 1.0 / support;
        outputs = count, begin = size, end = 0, taps = 1;
        first.resize(count);
        lengths.resize(count);
        const int most = int(std::ceil(support)) * 2 + 1;
        shares.resize(most), wide.resize(size_t(count) * most);
        for (int i = 0; i < count; ++i) {
            const double centre = (cut + (mirrored ? count - 1 - i : i) + 0.5) * scale;
            const int from = std::max(int(centre - support + 0.5), 0);
            const int length = std::min(int(centre + support + 0.5), size) - from;
            double sum = 0.0;
            for (int k = 0; k < length; ++k) {
                const double distance = std::fabs((k + from - centre + 0.5) * inverse);
                shares[k] = distance < 1.0 ? 1.0 - distance : 0.0;
                sum += shares[k];
            }
            int32_t* weight = &wide[size_t(i) * most];
            for (int k = 0; k < length; ++k)
                weight[k] = int32_t(0.5 + (sum != 0.0 ? shares[k] / sum : shares[k]) * (1 << PRECISION));
            int skip = 0, kept = length;
            while (kept > 1 && weight[kept - 1] == 0) --kept;
            while (skip < kept - 1 && weight[skip] == 0) ++skip;
            std::copy(weight + skip, weight + kept, weight);
            first[i] = from + skip, lengths[i] = kept - skip;
            taps = std::max(taps, lengths[i]), begin = std::min(begin, first[i]), end = std::max(end, from + kept);
        }
        weights.assign(size_t(count) * taps, 0);
        for (int i = 0; i < count; ++i) {
            first[i] -= begin;
            std::copy_n(&wide[size_t(i) * most], lengths[i], &weights[size_t(i) * taps]);
        }
    }

    const int32_t* of(int output) const { return &weights[size_t(output) * taps]; }
    int used(int output) const { return std::min(taps, end - begin - first[output]); }  // taps within the inputs
};

inline uint8_t rounded(uint32_t sum) { return uint8_t(std::min(sum >> PRECISION, 255u)); }
constexpr uint32_t HALF = 1u << (PRECISION - 1);

// One output row: `rows` are the inputs' rows, `count` of them, `stride` apart.
inline void blend_portable(
    const uint8_t* rows, int64_t stride, const int32_t* weights, int count, int width, uint8_t* to) {
    for (int x = 0; x < width; ++x) {
        uint32_t sum = HALF;
        for (int k = 0; k < count; ++k) sum += rows[k * stride + x] * uint32_t(weights[k]);
        to[x] = rounded(sum);
    }
}

#ifdef __AVX2__
// pmaddwd takes 16 bits: a weight is 2048 high + low, and both sums together are Pillow's.
constexpr int LOW_BITS = 11;
constexpr int MOST_ROWS = 128;  // more are rare enough for the portable way

inline int32_t two_weights(int32_t one, int32_t other) { return int32_t(uint32_t(other) << 16 | uint32_t(one)); }
inline int32_t high_pair(const int32_t* w, bool both) {
    return two_weights(w[0] >> LOW_BITS, both ? w[1] >> LOW_BITS : 0);
}
inline int32_t low_pair(const int32_t* w, bool both) {
    const int mask = (1 << LOW_BITS) - 1;
    return two_weights(w[0] & mask, both ? w[1] & mask : 0);
}

inline __attribute__((always_inline)) __m256i join(__m256i high, __m256i low) {
    const __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(high, LOW_BITS), low);
    return _mm256_srli_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(HALF)), PRECISION);
}

// Sixteen outputs from PAIRS of rows, or, where it is 0, from as many as there are. `high` and `low`: of each pair.
template <int PAIRS>
inline __attribute__((always_inline)) __m128i blend_sixteen(
    const uint8_t* rows, int64_t stride, const __m256i* high, const __m256i* low, int count) {
    const int pairs = PAIRS ? PAIRS : (count + 1) / 2;
    __m256i highs[2] = {}, lows[2] = {};
    for (int k = 0; k < pairs; ++k) {
        const uint8_t* row = rows + 2 * k * stride;
        const __m128i a = load128(row), b = load128(2 * k + 1 < count ? row + stride : row);
        const __m256i values[2] = {
            _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(a, b)), _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(a, b))};
        for (int i = 0; i < 2; ++i) {
            highs[i] = _mm256_add_epi32(highs[i], _mm256_madd_epi16(values[i], high[k]));
            lows[i] = _mm256_add_epi32(lows[i], _mm256_madd_epi16(values[i], low[k]));
        }
    }
    __m256i sums = _mm256_packs_epi32(join(highs[0], lows[0]), join(highs[1], lows[1]));
    sums = _mm256_packus_epi16(sums, sums);  // outputs 0-3 and 8-11, 4-7 and 12-15
    return _mm_unpacklo_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
}

template <int PAIRS>
inline void blend_pairs(const uint8_t* rows, int64_t stride, const int32_t* weights, int count, int width, uint8_t* to) {
    const int pairs = PAIRS ? PAIRS : (count + 1) / 2;
    __m256i high[PAIRS ? PAIRS : MOST_ROWS / 2], low[PAIRS ? PAIRS : MOST_ROWS / 2];
    for (int k = 0; k < pairs; ++k) {
        high[k] = _mm256_set1_epi32(high_pair(weights + 2 * k, 2 * k + 1 < count));
        low[k] = _mm256_set1_epi32(low_pair(weights + 2 * k, 2 * k + 1 < count));
    }
    for (int x = 0; x < width; x += 16) store128(to + x, blend_sixteen<PAIRS>(rows + x, stride, high, low, count));
}

inline void blend_avx2(const uint8_t* rows, int64_t stride, const int32_t* weights, int count, int width, uint8_t* to) {
    switch ((count + 1) / 2) {
        case 1: return blend_pairs<1>(rows, stride, weights, count, width, to);
        case 2: return blend_pairs<2>(rows, stride, weights, count, width, to);
        case 3: return blend_pairs<3>(rows, stride, weights, count, width, to);
        default:
            if (count > MOST_ROWS) return blend_portable(rows, stride, weights, count, width, to);
            return blend_pairs<0>(rows, stride, weights, count, width, to);
    }
}
#endif

// The horizontal pass. With AVX2, four outputs that lie within 16 inputs come from one register by pshufb.
class Horizontal {
    const Axis* axis = nullptr;
#ifdef __AVX2__
    struct Windows {  // eight outputs: in each half of a register, four of one window
        __m256i shuffle, high, low;
    };
    static constexpr int MOST_PAIRS = 4;
    int pairs = 0;  // 0: windows are too narrow
    std::vector<int32_t> starts;
    std::vector<Windows> windows;
#endif

   public:
    void make(const Axis& of) {
        axis = &of;
#ifdef __AVX2__
        pairs = use_vectors && of.taps <= 2 * MOST_PAIRS ? (of.taps + 1) / 2 : 0;
        starts.assign((of.outputs + 15) / 16 * 4, 0);
        windows.resize(starts.size() / 2 * pairs);
        for (size_t four = 0; four < starts.size() && pairs; ++four) place(int(four));
#endif
    }

    // A row of each of `channels`, from and to planes that are `stride` and `to_stride` apart.
    void run(const uint8_t* row, int64_t stride, int channels, uint8_t* to, int64_t to_stride) const {
#ifdef __AVX2__
        switch (pairs) {
            case 1: return run_windows<1>(row, stride, channels, to, to_stride);
            case 2: return run_windows<2>(row, stride, channels, to, to_stride);
            case 3: return run_windows<3>(row, stride, channels, to, to_stride);
            case 4: return run_windows<4>(row, stride, channels, to, to_stride);
        }
#endif
        for (int c = 0; c < channels; ++c)
            for (int i = 0; i < axis->outputs; ++i) {
                const uint8_t* inputs = row + c * stride + axis->first[i];
                const int32_t* weights = axis->of(i);
                uint32_t sum = HALF;
                for (int k = 0; k < axis->used(i); ++k) sum += inputs[k] * uint32_t(weights[k]);
                to[c * to_stride + i] = rounded(sum);
            }
    }

#ifdef __AVX2__
   private:
    // Fours 0 and 2 of each sixteen share a register, and 1 and 3, so that packing puts them in order.
    void place(int four) {
        const int first = 4 * four, count = std::min(4, axis->outputs - first);
        if (count > 0) starts[four] = *std::min_element(&axis->first[first], &axis->first[first] + count);
        for (int p = 0; p < pairs; ++p) {
            Windows& window = windows[(four / 4 * 2 + four % 2) * pairs + p];
            const int half = four % 4 / 2;
            uint8_t* shuffle = reinterpret_cast<uint8_t*>(&window.shuffle) + 16 * half;
            int16_t* high = reinterpret_cast<int16_t*>(&window.high) + 8 * half;
            int16_t* low = reinterpret_cast<int16_t*>(&window.low) + 8 * half;
            for (int i = 0; i < 8; ++i) {
                const int output = first + i / 2, tap = 2 * p + i % 2;
                const int32_t weight = i / 2 < count && tap < axis->taps ? axis->of(output)[tap] : 0;
                const int place = weight ? axis->first[output] - starts[four] + tap : 0;
                shuffle[2 * i] = weight ? uint8_t(place) : 0x80, shuffle[2 * i + 1] = 0x80;
                high[i] = int16_t(weight >> LOW_BITS), low[i] = int16_t(weight & ((1 << LOW_BITS) - 1));
                if (place > 15) {
                    pairs = 0;
                    return;
                }
            }
        }
    }

    template <int PAIRS>
    void run_windows(const uint8_t* row, int64_t stride, int channels, uint8_t* to, int64_t to_stride) const {
        for (int x = 0; x < axis->outputs; x += 16) {
            const int32_t* start = &starts[x / 4];
            const Windows* window = &windows[size_t(x) / 8 * PAIRS];
            for (int c = 0; c < channels; ++c) {
                const uint8_t* inputs = row + c * stride;
                __m256i sums[2];
                for (int i = 0; i < 2; ++i) {
                    const __m256i values = _mm256_inserti128_si256(
                        _mm256_castsi128_si256(load128(inputs + start[i])), load128(inputs + start[i + 2]), 1);
                    __m256i high = {}, low = {};
                    for (int p = 0; p < PAIRS; ++p) {
                        const Windows& one = window[i * PAIRS + p];
                        const __m256i chosen = _mm256_shuffle_epi8(values, one.shuffle);
                        high = _mm256_add_epi32(high, _mm256_madd_epi16(chosen, one.high));
                        low = _mm256_add_epi32(low, _mm256_madd_epi16(chosen, one.low));
                    }
                    sums[i] = join(high, low);
                }
                __m256i bytes = _mm256_packs_epi32(sums[0], sums[1]);
                bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(bytes, bytes), 0xD8);
                store128(to + c * to_stride + x, _mm256_castsi256_si128(bytes));
            }
        }
    }
#endif
};

// Planes into RGB pixels; a grey image has one plane for all three.
inline void interleave(const uint8_t* r, const uint8_t* g, const uint8_t* b, int width, uint8_t* to) {
    int x = 0;
#ifdef __AVX2__
    // Byte i of each 16 comes from channel (i + 16 * part) % 3.
    if (use_vectors) {
        alignas(16) static const auto shuffles = [] {
            struct { uint8_t of[3][3][16]; } all;
            for (int part = 0; part < 3; ++part)
                for (int channel = 0; channel < 3; ++channel)
                    for (int i = 0; i < 16; ++i) {
                        const int byte = 16 * part + i;
                        all.of[part][channel][i] = byte % 3 == channel ? uint8_t(byte / 3) : 0x80;
                    }
            return all;
        }();
        for (; x + 16 <= width; x += 16)
            for (int part = 0; part < 3; ++part) {
                const auto& of = shuffles.of[part];
                const __m128i red = _mm_shuffle_epi8(load128(r + x), load128(of[0]));
                const __m128i green = _mm_shuffle_epi8(load128(g + x), load128(of[1]));
                const __m128i blue = _mm_shuffle_epi8(load128(b + x), load128(of[2]));
                store128(to + 3 * x + 16 * part, _mm_or_si128(red, _mm_or_si128(green, blue)));
            }
    }
#endif
    for (; x < width; ++x) to[3 * x] = r[x], to[3 * x + 1] = g[x], to[3 * x + 2] = b[x];
}

// Which part of which scaled image is wanted, of a box that is cut out of the original first.
struct View {
    Box box;              // in the original; the filter does not see beyond it
    int height, width;    // to which the box is resized
    int top, left;        // of the outputs in that
    int out_height, out_width;
    bool flip;
};

// Pillow 13's choice; before it, the horizontal pass was always first.
inline bool vertical_first(const View& view) {
    const int64_t high = int64_t(view.box.height) - view.height, wide = int64_t(view.box.width) - view.width;
    return high > 0 && high > 2 * wide;
}

class Resize {
    Axis x, y;
    Horizontal horizontal;
    Scratch<uint8_t> rows, line, scaled;

   public:
    // Of the memory that grows with an image's area.
    size_t bytes() const { return rows.bytes(); }

    // The part of the original that the outputs need.
    Box begin(const View& view) {
        x.make(view.box.width, view.width, view.left, view.out_width, view.flip);
        y.make(view.box.height, view.height, view.top, view.out_height, false);
        horizontal.make(x);
        return {view.box.top + y.begin, view.box.left + x.begin, y.end - y.begin, x.end - x.begin};
    }

    // `source` reads the rows of the part that begin() returned.
    template <typename Source>
    void run(Source source, bool down_first, uint8_t* out) {
        const int channels = source.channels(), height = y.end - y.begin, width = x.end - x.begin;
        const int64_t in_stride = (width + 63) / 16 * 16 + 16, out_stride = (x.outputs + 15) / 16 * 16;
        const int64_t stride = down_first ? in_stride : out_stride;
        uint8_t* all = rows.get(size_t(height) * channels * stride);
        uint8_t* one = line.get(size_t(channels) * in_stride);
        uint8_t* last = scaled.get(size_t(channels) * out_stride);
        for (int row = 0; row < height; ++row) {
            uint8_t* to = all + row * channels * stride;
            source.read(row, down_first ? to : one, in_stride);
            if (!down_first) horizontal.run(one, in_stride, channels, to, out_stride);
        }
        for (int row = 0; row < y.outputs; ++row) {
            const uint8_t* from = all + y.first[row] * channels * stride;
            uint8_t* to = down_first ? one : last;
            AVX2_OR_PORTABLE(blend, from, channels * stride, y.of(row), y.used(row), int(channels * stride), to);
            if (down_first) horizontal.run(one, in_stride, channels, last, out_stride);
            const uint8_t* green = channels == 1 ? last : last + out_stride;
            const uint8_t* blue = channels == 1 ? last : last + 2 * out_stride;
            interleave(last, green, blue, x.outputs, out + int64_t(row) * 3 * x.outputs);
        }
    }
};

// The rows of pixels in memory, (height, width, 3).
struct Pixels {
    const uint8_t* pixels;
    int64_t width;
    Box box;

    static int channels() { return 3; }
    void read(int y, uint8_t* to, int64_t stride) const {
        const uint8_t* from = pixels + ((box.top + y) * width + box.left) * 3;
        for (int x = 0; x < box.width; ++x)
            for (int c = 0; c < 3; ++c) to[c * stride + x] = from[3 * x + c];
    }
};

}  // namespace jpeg

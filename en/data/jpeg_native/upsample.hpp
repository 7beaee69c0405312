// A row of pixels from a row of samples: libjpeg's "fancy" upsampling (jdsample.c) and its colours (jdcolor.c).
#pragma once

#include "planes.hpp"

namespace jpeg {

// libjpeg's tables of 16 bits for YCbCr (JFIF), as sums: R, G and B in the place of Y, Cb and Cr.
inline void to_rgb_portable(uint8_t* y, uint8_t* cb, uint8_t* cr, int count) {
    for (int x = 0; x < count; ++x) {
        const int luma = y[x], blue = cb[x] - 128, red = cr[x] - 128;
        y[x] = clamp(luma + ((91881 * red + 32768) >> 16));
        cb[x] = clamp(luma + ((-22554 * blue - 46802 * red + 32768) >> 16));
        cr[x] = clamp(luma + ((116130 * blue + 32768) >> 16));
    }
}

#ifdef __AVX2__
// The same in 16 bits where they suffice: 1.402 = 1 + 26345 / 65536, 1.772 = 2 - 14942 / 65536,
// and -0.71414 = -1 + 18734 / 65536. The products of twice the chroma are halved with rounding.
inline void to_rgb_avx2(uint8_t* y, uint8_t* cb, uint8_t* cr, int count) {
    const __m256i centre = _mm256_set1_epi16(128), one = _mm256_set1_epi16(1), half = _mm256_set1_epi32(32768);
    const __m256i green_weights = _mm256_set1_epi32(int((18734u << 16) | uint16_t(-22554)));
    const auto product = [&](__m256i twice, int weight) {
        const __m256i high = _mm256_mulhi_epi16(twice, _mm256_set1_epi16(int16_t(weight)));
        return _mm256_srai_epi16(_mm256_add_epi16(high, one), 1);
    };
    const auto green_part = [&](__m256i pairs) {
        return _mm256_srai_epi32(_mm256_add_epi32(_mm256_madd_epi16(pairs, green_weights), half), 16);
    };
    for (int x = 0; x < count; x += 16) {
        const __m256i luma = _mm256_cvtepu8_epi16(load128(y + x));
        const __m256i blue = _mm256_sub_epi16(_mm256_cvtepu8_epi16(load128(cb + x)), centre);
        const __m256i red = _mm256_sub_epi16(_mm256_cvtepu8_epi16(load128(cr + x)), centre);
        const __m256i blue2 = _mm256_add_epi16(blue, blue), red2 = _mm256_add_epi16(red, red);
        const __m256i r = _mm256_add_epi16(_mm256_add_epi16(luma, red), product(red2, 26345));
        const __m256i b = _mm256_add_epi16(_mm256_add_epi16(luma, blue2), product(blue2, -14942));
        const __m256i part = _mm256_packs_epi32(
            green_part(_mm256_unpacklo_epi16(blue, red)), green_part(_mm256_unpackhi_epi16(blue, red)));
        const __m256i g = _mm256_sub_epi16(_mm256_add_epi16(luma, part), red);
        const __m256i rg = _mm256_permute4x64_epi64(_mm256_packus_epi16(r, g), 0xD8);
        const __m256i bb = _mm256_permute4x64_epi64(_mm256_packus_epi16(b, b), 0xD8);
        store128(y + x, _mm256_castsi256_si128(rg));
        store128(cb + x, _mm256_extracti128_si256(rg, 1));
        store128(cr + x, _mm256_castsi256_si128(bb));
    }
}
#endif

// Rows of pixels, planar, of a part of a decoded image.
class Rows {
    const File& file;
    const Planes& planes;
    const Box box;
    std::vector<uint16_t>& sums;  // of a row of chroma and its neighbour

   public:
    Rows(const File& file, const Planes& planes, const Box& box, std::vector<uint16_t>& sums)
        : file(file), planes(planes), box(box), sums(sums) {
        if (sums.size() < size_t(box.width) + 64) sums.resize(box.width + 64);
    }

    int channels() const { return file.count; }

    // Row y of the box into `to`, the channels `stride` bytes apart, which may be written up to 31 past the width.
    void read(int y, uint8_t* to, int64_t stride) {
        for (int c = 0; c < file.count; ++c) upsample(c, box.top + y, to + c * stride);
        if (file.ycc) AVX2_OR_PORTABLE(to_rgb, to, to + stride, to + 2 * stride, box.width);
    }

   private:
    const uint8_t* row(int c, int y) const {
        return planes.planes[c].samples + (y - planes.planes[c].top) * planes.planes[c].stride - planes.planes[c].left;
    }

    void upsample(int c, int y, uint8_t* to) {
        const int across = file.max_h / file.components[c].h, down = file.max_v / file.components[c].v;
        const int columns = (file.width + across - 1) / across, rows = (file.height + down - 1) / down;
        const int near = y / down;
        const uint8_t* samples = row(c, near);
        if (across == 1 && down == 1) {
            memcpy(to, samples + box.left, box.width);
            return;
        }
        // libjpeg interpolates factors of 2, but narrow chroma only downwards; else it repeats.
        const bool smooth = across == 2 ? columns > 2 && down <= 2 : across == 1 && down == 2;
        if (!smooth) {
            for (int x = 0; x < box.width; ++x) to[x] = samples[(box.left + x) / across];
            return;
        }
        // Rows beyond the image repeat its last.
        const int far = std::min(std::max(y % 2 ? near + 1 : near - 1, 0), rows - 1);
        if (across == 1) {
            const uint8_t *a = samples + box.left, *b = row(c, far) + box.left;
            for (int x = 0; x < box.width; ++x) to[x] = uint8_t((3 * a[x] + b[x] + (y % 2 ? 2 : 1)) >> 2);
            return;
        }
        interpolate(samples, down == 2 ? row(c, far) : nullptr, columns, to);
    }

    // Columns of a row and, of 4:2:0, of its neighbour: each 3/4 of the nearer and 1/4 of the further.
    void interpolate(const uint8_t* near, const uint8_t* far, int columns, uint8_t* to) {
        const int first = box.left / 2, count = (box.right() - 1) / 2 - first + 1;
        uint16_t* sum = sums.data() + 1;
        const int from = first == 0 ? 0 : -1, end = first + count == columns ? count : count + 1;
        near += first;
        if (far) {
            far += first;
            for (int i = from; i < end; ++i) sum[i] = uint16_t(3 * near[i] + far[i]);
        } else {
            for (int i = from; i < end; ++i) sum[i] = near[i];
        }
        if (from == 0) sum[-1] = sum[0];
        if (end == count) sum[count] = sum[count - 1];
        const int even = far ? 8 : 1, odd = far ? 7 : 2, shift = far ? 4 : 2;
        AVX2_OR_PORTABLE(pairs, sum, count, even, odd, shift, box.left & 1, to);
    }

    // Two pixels of each sum; `skip` leaves the first out.
    static void pairs_portable(const uint16_t* sum, int count, int even, int odd, int shift, int skip, uint8_t* to) {
        for (int i = 0; i < count; ++i) {
            if (i || !skip) to[2 * i - skip] = uint8_t((3 * sum[i] + sum[i - 1] + even) >> shift);
            to[2 * i + 1 - skip] = uint8_t((3 * sum[i] + sum[i + 1] + odd) >> shift);
        }
    }

#ifdef __AVX2__
    static void pairs_avx2(const uint16_t* sum, int count, int even, int odd, int shift, int skip, uint8_t* to) {
        const __m256i evens = _mm256_set1_epi16(int16_t(even)), odds = _mm256_set1_epi16(int16_t(odd));
        const __m128i by = _mm_cvtsi32_si128(shift);
        to -= skip;
        for (int i = 0; i < count; i += 16) {
            const __m256i here = load256(sum + i), triple = _mm256_add_epi16(here, _mm256_add_epi16(here, here));
            const __m256i left = _mm256_add_epi16(_mm256_add_epi16(triple, load256(sum + i - 1)), evens);
            const __m256i right = _mm256_add_epi16(_mm256_add_epi16(triple, load256(sum + i + 1)), odds);
            const __m256i high = _mm256_slli_epi16(_mm256_srl_epi16(right, by), 8);
            store256(to + 2 * i, _mm256_or_si256(_mm256_srl_epi16(left, by), high));
        }
    }
#endif
};

}  // namespace jpeg

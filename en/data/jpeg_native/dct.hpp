// The inverse DCT of libjpeg's "islow" (Loeffler, Ligtenberg and Moschytz, 1989, in integers of 13 bits), to the bit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "vectors.hpp"

namespace jpeg {

// One dimension of eight columns, or of one: T is uint32_t or eight of them, whose overflows are defined.
template <typename T>
inline __attribute__((always_inline)) void idct_pass(T* v, int shift) {
    T z1 = (v[2] + v[6]) * 4433u;
    const T even2 = z1 - v[6] * 15137u, even3 = z1 + v[2] * 6270u;
    const T round = T{} + (1u << (shift - 1));
    const T even0 = ((v[0] + v[4]) << 13) + round, even1 = ((v[0] - v[4]) << 13) + round;
    const T sums[4] = {even0 + even3, even1 + even2, even1 - even2, even0 - even3};
    z1 = v[7] + v[1];
    T z2 = v[5] + v[3], z3 = v[7] + v[3], z4 = v[5] + v[1];
    const T z5 = (z3 + z4) * 9633u;
    z1 *= 7373u, z2 *= 20995u, z3 = z5 - z3 * 16069u, z4 = z5 - z4 * 3196u;
    const T odds[4] = {v[1] * 12299u - z1 + z4, v[3] * 25172u - z2 + z3, v[5] * 16819u - z2 + z4,
                       v[7] * 2446u - z1 + z3};
    for (int i = 0; i < 4; ++i) {
        v[i] = shift_right(sums[i] + odds[i], shift);
        v[7 - i] = shift_right(sums[i] - odds[i], shift);
    }
}

inline uint8_t clamp(int value) { return uint8_t(std::min(std::max(value, 0), 255)); }

inline void idct_portable(const int16_t* block, const uint16_t* quant, uint8_t* out, int64_t stride) {
    uint32_t v[8], between[64];
    for (int x = 0; x < 8; ++x) {
        for (int y = 0; y < 8; ++y) v[y] = uint32_t(int16_t(uint32_t(block[8 * y + x]) * quant[8 * y + x]));
        idct_pass(v, 11);
        for (int y = 0; y < 8; ++y) between[8 * y + x] = v[y];
    }
    for (int y = 0; y < 8; ++y) {
        idct_pass(between + 8 * y, 18);
        for (int x = 0; x < 8; ++x) {
            const int value = int32_t(between[8 * y + x]);
            out[y * stride + x] = clamp(std::min(std::max(value, -32768), 32767) + 128);
        }
    }
}

#ifdef __AVX2__
inline __attribute__((always_inline)) void transpose(Lanes* v) {
    __m256i a[8], b[8];
    for (int i = 0; i < 4; ++i) {
        a[2 * i] = _mm256_unpacklo_epi32(__m256i(v[2 * i]), __m256i(v[2 * i + 1]));
        a[2 * i + 1] = _mm256_unpackhi_epi32(__m256i(v[2 * i]), __m256i(v[2 * i + 1]));
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; ++j) {
            b[i + 2 * j] = _mm256_unpacklo_epi64(a[i + j], a[i + j + 2]);
            b[i + 2 * j + 1] = _mm256_unpackhi_epi64(a[i + j], a[i + j + 2]);
        }
    for (int i = 0; i < 4; ++i) {
        v[i] = Lanes(_mm256_permute2x128_si256(b[i], b[i + 4], 0x20));
        v[i + 4] = Lanes(_mm256_permute2x128_si256(b[i], b[i + 4], 0x31));
    }
}

inline void idct_avx2(const int16_t* block, const uint16_t* quant, uint8_t* out, int64_t stride) {
    Lanes v[8];
    for (int y = 0; y < 8; ++y) {
        const __m128i product = _mm_mullo_epi16(load128(block + 8 * y), load128(quant + 8 * y));
        v[y] = Lanes(_mm256_cvtepi16_epi32(product));
    }
    idct_pass(v, 11);
    transpose(v);
    idct_pass(v, 18);
    transpose(v);
    const __m256i centre = _mm256_set1_epi16(128);
    for (int y = 0; y < 8; y += 2) {
        __m256i rows = _mm256_packs_epi32(__m256i(v[y]), __m256i(v[y + 1]));
        rows = _mm256_adds_epi16(_mm256_permute4x64_epi64(rows, 0xD8), centre);
        rows = _mm256_packus_epi16(rows, rows);
        _mm_storel_epi64(reinterpret_cast<__m128i*>(out + y * stride), _mm256_castsi256_si128(rows));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(out + (y + 1) * stride), _mm256_extracti128_si256(rows, 1));
    }
}
#endif

// A block of `coefficients` up to the last into 8 x 8 samples.
inline void idct(const int16_t* block, int coefficients, const uint16_t* quant, uint8_t* out, int64_t stride) {
    if (coefficients == 1) {  // both passes of a DC coefficient alone, in one
        const int value = (int16_t(uint32_t(block[0]) * quant[0]) + 4) >> 3;
        for (int y = 0; y < 8; ++y) memset(out + y * stride, clamp(value + 128), 8);
        return;
    }
    AVX2_OR_PORTABLE(idct, block, quant, out, stride);
}

}  // namespace jpeg

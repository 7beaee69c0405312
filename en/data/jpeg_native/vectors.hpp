// Eight lanes of integers, and the choice between AVX2 and portable code, which give the same bits.
#pragma once

#include <cstdint>

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace jpeg {

inline bool use_vectors = true;  // set by the tests, before any image

inline uint32_t shift_right(uint32_t value, int bits) { return uint32_t(int32_t(value) >> bits); }

#ifdef __AVX2__
#define AVX2_OR_PORTABLE(function, ...) use_vectors ? function##_avx2(__VA_ARGS__) : function##_portable(__VA_ARGS__)

using Lanes = uint32_t __attribute__((vector_size(32)));
using SignedLanes = int32_t __attribute__((vector_size(32)));

inline __attribute__((always_inline)) Lanes shift_right(const Lanes& value, int bits) {
    return Lanes(SignedLanes(value) >> bits);
}
inline __m128i load128(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
inline void store128(void* to, __m128i value) { _mm_storeu_si128(static_cast<__m128i*>(to), value); }
inline void store256(void* to, __m256i value) { _mm256_storeu_si256(static_cast<__m256i*>(to), value); }
inline __m256i load256(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
#else
#define AVX2_OR_PORTABLE(function, ...) function##_portable(__VA_ARGS__)
#endif

}  // namespace jpeg

// AVX2 with FMA and F16C: sixteen lanes as two registers of eight.
#pragma once

#include <immintrin.h>

namespace llama_ext::cpu::LLAMA_EXT_LEVEL {

inline constexpr int kLargestTile = 4;  // tokens that a product of floats takes at once: 16 registers of half the width

struct F32x16 {
    __m256 a, b;
};
struct I32x16 {
    __m256i a, b;
};

LLAMA_EXT_INLINE F32x16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
LLAMA_EXT_INLINE F32x16 broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
LLAMA_EXT_INLINE F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
LLAMA_EXT_INLINE void store(float* p, F32x16 x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
LLAMA_EXT_INLINE F32x16 load_first(const float* p, int n) {
    float values[16] = {};
    memcpy(values, p, static_cast<size_t>(n) * sizeof(float));
    return load(values);
}
LLAMA_EXT_INLINE void store_first(float* p, int n, F32x16 x) {
    float values[16];
    store(values, x);
    memcpy(p, values, static_cast<size_t>(n) * sizeof(float));
}
LLAMA_EXT_INLINE F32x16 load_f16(const void* p) {
    const __m128i* h = static_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(h)), _mm256_cvtph_ps(_mm_loadu_si128(h + 1))};
}
LLAMA_EXT_INLINE F32x16 load_bf16(const void* p) {
    const __m128i* h = static_cast<const __m128i*>(p);
    const __m256i a = _mm256_cvtepu16_epi32(_mm_loadu_si128(h)), b = _mm256_cvtepu16_epi32(_mm_loadu_si128(h + 1));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))};
}
LLAMA_EXT_INLINE F32x16 load_i8(const int8_t* p) {
    const __m256i a = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    const __m256i b = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8)));
    return {_mm256_cvtepi32_ps(a), _mm256_cvtepi32_ps(b)};
}

LLAMA_EXT_INLINE F32x16 operator+(F32x16 x, F32x16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
LLAMA_EXT_INLINE F32x16 operator-(F32x16 x, F32x16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
LLAMA_EXT_INLINE F32x16 operator*(F32x16 x, F32x16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
LLAMA_EXT_INLINE F32x16 operator/(F32x16 x, F32x16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
LLAMA_EXT_INLINE F32x16 fma(F32x16 x, F32x16 y, F32x16 z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
LLAMA_EXT_INLINE F32x16 max(F32x16 x, F32x16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
LLAMA_EXT_INLINE F32x16 min(F32x16 x, F32x16 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
LLAMA_EXT_INLINE F32x16 abs(F32x16 x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
LLAMA_EXT_INLINE uint32_t less(F32x16 x, F32x16 y) {
    const int a = _mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ));
    const int b = _mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ));
    return static_cast<uint32_t>(a | b << 8);
}
LLAMA_EXT_INLINE __m256 mask_lanes(uint32_t mask) {
    const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(mask)), bits), bits));
}
LLAMA_EXT_INLINE F32x16 select(uint32_t mask, F32x16 yes, F32x16 no) {
    return {_mm256_blendv_ps(no.a, yes.a, mask_lanes(mask)), _mm256_blendv_ps(no.b, yes.b, mask_lanes(mask >> 8))};
}
LLAMA_EXT_INLINE float reduce_add(F32x16 x) {
    const __m256 eight = _mm256_add_ps(x.a, x.b);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
LLAMA_EXT_INLINE float reduce_max(F32x16 x) {
    const __m256 eight = _mm256_max_ps(x.a, x.b);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

LLAMA_EXT_INLINE I32x16 broadcast(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
LLAMA_EXT_INLINE I32x16 load_words(const void* p) {
    const __m256i* words = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(words), _mm256_loadu_si256(words + 1)};
}
LLAMA_EXT_INLINE I32x16 operator+(I32x16 x, I32x16 y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
LLAMA_EXT_INLINE I32x16 operator-(I32x16 x, I32x16 y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
LLAMA_EXT_INLINE I32x16 operator&(I32x16 x, I32x16 y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
LLAMA_EXT_INLINE I32x16 operator|(I32x16 x, I32x16 y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
template <int n>
LLAMA_EXT_INLINE I32x16 shift_left(I32x16 x) {
    return {_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)};
}
template <int n>
LLAMA_EXT_INLINE I32x16 shift_right(I32x16 x) {
    return {_mm256_srli_epi32(x.a, n), _mm256_srli_epi32(x.b, n)};
}
template <int n>
LLAMA_EXT_INLINE I32x16 shift_right_signed(I32x16 x) {
    return {_mm256_srai_epi32(x.a, n), _mm256_srai_epi32(x.b, n)};
}

LLAMA_EXT_INLINE F32x16 to_f32(I32x16 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
LLAMA_EXT_INLINE I32x16 round_to_i32(F32x16 x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
LLAMA_EXT_INLINE F32x16 bits_to_f32(I32x16 x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
LLAMA_EXT_INLINE I32x16 f32_to_bits(F32x16 x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
LLAMA_EXT_INLINE I32x16 max(I32x16 x, I32x16 y) { return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }
LLAMA_EXT_INLINE int32_t reduce_max(I32x16 x) {
    const __m256i eight = _mm256_max_epi32(x.a, x.b);
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
LLAMA_EXT_INLINE int32_t reduce_add(I32x16 x) {
    const __m256i eight = _mm256_add_epi32(x.a, x.b);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
LLAMA_EXT_INLINE void store_i8(int8_t* p, I32x16 x) {
    // packs_epi32 works within halves of 128 bits: 0-3 8-11 | 4-7 12-15, mended by one permutation of 64-bit quarters
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

// maddubs adds pairs of products in 16 bits: unsigned bytes up to 127 against int8 stay within them
LLAMA_EXT_INLINE __m256i dot4_eight(__m256i acc, __m256i w, __m256i x) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}
LLAMA_EXT_INLINE I32x16 dot4_unsigned(I32x16 acc, I32x16 w, int32_t x) {
    const __m256i four = _mm256_set1_epi32(x);
    return {dot4_eight(acc.a, w.a, four), dot4_eight(acc.b, w.b, four)};
}
// Signed weights: |w| takes the unsigned side (|-128| fits there) and x, never -128, carries the sign of w; with |x| <= 127
// the pairs stay within 16 bits.
inline constexpr int32_t kSignedBias = 0;
LLAMA_EXT_INLINE I32x16 prepare_signed(I32x16 w) { return w; }
LLAMA_EXT_INLINE I32x16 dot4_signed(I32x16 acc, I32x16 w, int32_t x) {
    const __m256i four = _mm256_set1_epi32(x);
    return {dot4_eight(acc.a, _mm256_abs_epi8(w.a), _mm256_sign_epi8(four, w.a)),
            dot4_eight(acc.b, _mm256_abs_epi8(w.b), _mm256_sign_epi8(four, w.b))};
}

}  // namespace llama_ext::cpu::LLAMA_EXT_LEVEL

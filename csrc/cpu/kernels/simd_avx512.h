// AVX-512 (F, BW, DQ, VL) with VNNI; compiled a second time with BF16.
#pragma once

#include <immintrin.h>

namespace llama_ext::cpu::LLAMA_EXT_LEVEL {

inline constexpr int kLargestTile = 8;  // tokens that a product of floats takes at once

struct F32x16 {
    __m512 v;
};
struct I32x16 {
    __m512i v;
};

LLAMA_EXT_INLINE F32x16 zero() { return {_mm512_setzero_ps()}; }
LLAMA_EXT_INLINE F32x16 broadcast(float x) { return {_mm512_set1_ps(x)}; }
LLAMA_EXT_INLINE F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
LLAMA_EXT_INLINE void store(float* p, F32x16 x) { _mm512_storeu_ps(p, x.v); }
LLAMA_EXT_INLINE F32x16 load_first(const float* p, int n) {
    return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p)};
}
LLAMA_EXT_INLINE void store_first(float* p, int n, F32x16 x) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), x.v);
}
LLAMA_EXT_INLINE F32x16 load_f16(const void* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)))}; }
LLAMA_EXT_INLINE F32x16 load_bf16(const void* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
LLAMA_EXT_INLINE F32x16 load_i8(const int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}

LLAMA_EXT_INLINE F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
LLAMA_EXT_INLINE F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
LLAMA_EXT_INLINE F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
LLAMA_EXT_INLINE F32x16 operator/(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
LLAMA_EXT_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
LLAMA_EXT_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
LLAMA_EXT_INLINE F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
LLAMA_EXT_INLINE F32x16 abs(F32x16 a) { return {_mm512_abs_ps(a.v)}; }
LLAMA_EXT_INLINE uint32_t less(F32x16 a, F32x16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }
LLAMA_EXT_INLINE F32x16 select(uint32_t mask, F32x16 yes, F32x16 no) {
    return {_mm512_mask_blend_ps(static_cast<__mmask16>(mask), no.v, yes.v)};
}
LLAMA_EXT_INLINE float reduce_add(F32x16 a) { return _mm512_reduce_add_ps(a.v); }
LLAMA_EXT_INLINE float reduce_max(F32x16 a) { return _mm512_reduce_max_ps(a.v); }

LLAMA_EXT_INLINE I32x16 broadcast(int32_t x) { return {_mm512_set1_epi32(x)}; }
LLAMA_EXT_INLINE I32x16 load_words(const void* p) { return {_mm512_loadu_si512(p)}; }
LLAMA_EXT_INLINE I32x16 operator+(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
LLAMA_EXT_INLINE I32x16 operator-(I32x16 a, I32x16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
LLAMA_EXT_INLINE I32x16 operator&(I32x16 a, I32x16 b) { return {_mm512_and_si512(a.v, b.v)}; }
LLAMA_EXT_INLINE I32x16 operator|(I32x16 a, I32x16 b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int n>
LLAMA_EXT_INLINE I32x16 shift_left(I32x16 a) {
    return {_mm512_slli_epi32(a.v, n)};
}
template <int n>
LLAMA_EXT_INLINE I32x16 shift_right(I32x16 a) {
    return {_mm512_srli_epi32(a.v, n)};
}
template <int n>
LLAMA_EXT_INLINE I32x16 shift_right_signed(I32x16 a) {
    return {_mm512_srai_epi32(a.v, n)};
}

LLAMA_EXT_INLINE F32x16 to_f32(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
LLAMA_EXT_INLINE I32x16 round_to_i32(F32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }
LLAMA_EXT_INLINE F32x16 bits_to_f32(I32x16 a) { return {_mm512_castsi512_ps(a.v)}; }
LLAMA_EXT_INLINE I32x16 f32_to_bits(F32x16 a) { return {_mm512_castps_si512(a.v)}; }
LLAMA_EXT_INLINE I32x16 max(I32x16 a, I32x16 b) { return {_mm512_max_epi32(a.v, b.v)}; }
LLAMA_EXT_INLINE int32_t reduce_max(I32x16 a) { return _mm512_reduce_max_epi32(a.v); }
LLAMA_EXT_INLINE int32_t reduce_add(I32x16 a) { return _mm512_reduce_add_epi32(a.v); }
// 16 values within int8's range -> 16 bytes
LLAMA_EXT_INLINE void store_i8(int8_t* p, I32x16 a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}

// acc + the dot product, lane by lane, of 4 unsigned bytes of w and the 4 signed bytes of x (the same for every lane)
LLAMA_EXT_INLINE I32x16 dot4_unsigned(I32x16 acc, I32x16 w, int32_t x) {
    return {_mm512_dpbusd_epi32(acc.v, w.v, _mm512_set1_epi32(x))};
}
// the same for signed bytes of w: the hardware wants them unsigned, so 128 is added to each (by flipping the top bit), and
// the sum starts at kSignedBias times the sum of the x it will meet
inline constexpr int32_t kSignedBias = -128;
LLAMA_EXT_INLINE I32x16 prepare_signed(I32x16 w) { return {_mm512_xor_si512(w.v, _mm512_set1_epi8(static_cast<char>(0x80)))}; }
LLAMA_EXT_INLINE I32x16 dot4_signed(I32x16 acc, I32x16 w, int32_t x) { return dot4_unsigned(acc, w, x); }

#ifdef __AVX512BF16__
#define LLAMA_EXT_HAS_BF16_DOT
// Two columns of 16 bfloat16 each, [2][16], as dot2_bf16 takes them: [16][2].
LLAMA_EXT_INLINE I32x16 pair_columns(I32x16 columns) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20,
                                           4, 19, 3, 18, 2, 17, 1, 16, 0);
    return {_mm512_permutexvar_epi16(order, columns.v)};
}
// One column of 16, beside zeros.
LLAMA_EXT_INLINE I32x16 load_half(const void* p) {
    return {_mm512_zextsi256_si512(_mm256_loadu_si256(static_cast<const __m256i*>(p)))};
}
// acc + the dot product, lane by lane, of 2 bfloat16 of w and those of x (the same for every lane); subnormals count as zeros
LLAMA_EXT_INLINE F32x16 dot2_bf16(F32x16 acc, I32x16 w, int32_t x) {
    return {_mm512_dpbf16_ps(acc.v, (__m512bh)w.v, (__m512bh)_mm512_set1_epi32(x))};
}
#endif

}  // namespace llama_ext::cpu::LLAMA_EXT_LEVEL

// Sixteen lanes, at whatever SIMD level this file is compiled for. Kernels are written once against these names and compiled
// once a level, each in its own namespace; `kernels.h` picks one at run time.
//
//   F32x16   16 floats
//   I32x16   16 32-bit integers, which also serve as 64 bytes
//
// Nothing here may leave inline functions outside the level's namespace: the linker keeps one copy of each, and a copy
// compiled for AVX-512 must never be the one that an older machine runs. For the same reason kernel files use no std templates.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(LLAMA_EXT_LEVEL_AVX512_BF16)
#define LLAMA_EXT_LEVEL avx512_bf16
#elif defined(LLAMA_EXT_LEVEL_AVX512)
#define LLAMA_EXT_LEVEL avx512
#elif defined(LLAMA_EXT_LEVEL_AVX2)
#define LLAMA_EXT_LEVEL avx2
#else
#define LLAMA_EXT_LEVEL portable
#endif

#define LLAMA_EXT_INLINE static inline __attribute__((always_inline))

#if defined(LLAMA_EXT_LEVEL_AVX512) || defined(LLAMA_EXT_LEVEL_AVX512_BF16)
#include "cpu/kernels/simd_avx512.h"
#elif defined(LLAMA_EXT_LEVEL_AVX2)
#include "cpu/kernels/simd_avx2.h"
#else
#include "cpu/kernels/simd_portable.h"
#endif

namespace llama_ext::cpu::LLAMA_EXT_LEVEL {

// e^x within 1.3 ulp for -87.3 <= x <= 88.3; 0 below, and e^88.3 (2.2e38) above, so that an infinity becomes a large number:
// softmax never asks for more than e^0, and silu's x / (1 + e^-x) is 0 there either way. After Cephes' expf: x = n ln 2 + r, e^r
// by a polynomial, then n into the exponent. A NaN stays a NaN.
LLAMA_EXT_INLINE F32x16 exp(F32x16 x) {
    const uint32_t tiny = less(x, broadcast(-87.3f));
    // max and min give back their second operand when either is a NaN, so that a NaN stays one.
    const F32x16 clamped = min(broadcast(88.3f), max(broadcast(-87.3f), x));
    const I32x16 n = round_to_i32(clamped * broadcast(1.44269504088896341f));
    const F32x16 nf = to_f32(n);
    F32x16 r = fma(nf, broadcast(-0.693359375f), clamped);
    r = fma(nf, broadcast(2.12194440e-4f), r);
    F32x16 p = broadcast(1.9875691500e-4f);
    p = fma(p, r, broadcast(1.3981999507e-3f));
    p = fma(p, r, broadcast(8.3334519073e-3f));
    p = fma(p, r, broadcast(4.1665795894e-2f));
    p = fma(p, r, broadcast(1.6666665459e-1f));
    p = fma(p, r, broadcast(5.0000001201e-1f));
    p = fma(p, r * r, r + broadcast(1.0f));
    const F32x16 result = bits_to_f32(f32_to_bits(p) + shift_left<23>(n));
    return select(tiny, zero(), result);
}

// x times a power of two
template <int32_t factor>
LLAMA_EXT_INLINE I32x16 times_power_of_two(I32x16 x) {
    static_assert(factor > 0 && (factor & (factor - 1)) == 0);
    return shift_left<__builtin_ctz(factor)>(x);
}

}  // namespace llama_ext::cpu::LLAMA_EXT_LEVEL

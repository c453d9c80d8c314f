// The formats of a cache (program/program.h, CacheFormat), eight neighbours of a row at a time: a unit, which a lane has.
//
// Of each format: kBytes an element; kScaled, whether blocks of 32 have an f16 scale in a plane of its own; Unit, its bits; load
// and store, of a row in shared or global memory; widen, as floats (scaled: without the scale); narrow, rounded to the format,
// which a whole warp calls together, lane i with unit i: blocks are units 4i to 4i + 3.
#pragma once

#include "cuda/kernels/device.cuh"

// The float32 elements of unit u are pieces of 4: piece(u, units, 0) and piece(u, units, 1) of a row. kHalves: a piece of the
// row's first half and one of its second, else neighbours.
struct Neighbours {
    static constexpr bool kHalves = false;
    __device__ static int piece(int unit, int, int half) { return 2 * unit + half; }
};

struct F32Cache {
    static constexpr int kBytes = 4;
    static constexpr bool kScaled = false;
    struct Unit {
        uint4 half[2];
    };
    static constexpr bool kHalves = true;  // so that neighbouring lanes read neighbouring 16 bytes
    __device__ static int piece(int unit, int units, int half) { return unit + half * units; }

    __device__ static Unit load(const char* row, int unit, int units) {
        const uint4* const pieces = reinterpret_cast<const uint4*>(row);
        return {{pieces[unit], pieces[unit + units]}};
    }
    __device__ static void store(char* row, int unit, int units, const Unit& bits) {
        uint4* const pieces = reinterpret_cast<uint4*>(row);
        pieces[unit] = bits.half[0];
        pieces[unit + units] = bits.half[1];
    }
    __device__ static void widen(const Unit& bits, float (&x)[8]) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            x[4 * i] = __uint_as_float(bits.half[i].x), x[4 * i + 1] = __uint_as_float(bits.half[i].y);
            x[4 * i + 2] = __uint_as_float(bits.half[i].z), x[4 * i + 3] = __uint_as_float(bits.half[i].w);
        }
    }
    __device__ static Unit narrow(const float (&x)[8], __half*) {
        Unit bits;
#pragma unroll
        for (int i = 0; i < 2; ++i)
            bits.half[i] = make_uint4(__float_as_uint(x[4 * i]), __float_as_uint(x[4 * i + 1]), __float_as_uint(x[4 * i + 2]),
                                      __float_as_uint(x[4 * i + 3]));
        return bits;
    }
};

template <float2 (*widen_pair)(uint32_t), uint32_t (*narrow_pair)(float, float)>
struct Cache16 : Neighbours {
    static constexpr int kBytes = 2;
    static constexpr bool kScaled = false;
    using Unit = uint4;

    __device__ static Unit load(const char* row, int unit, int) { return reinterpret_cast<const uint4*>(row)[unit]; }
    __device__ static void store(char* row, int unit, int, const Unit& bits) { reinterpret_cast<uint4*>(row)[unit] = bits; }
    __device__ static void widen(const Unit& bits, float (&x)[8]) {
        const uint32_t pairs[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float2 pair = widen_pair(pairs[i]);
            x[2 * i] = pair.x, x[2 * i + 1] = pair.y;
        }
    }
    __device__ static Unit narrow(const float (&x)[8], __half*) {
        return make_uint4(narrow_pair(x[0], x[1]), narrow_pair(x[2], x[3]), narrow_pair(x[4], x[5]), narrow_pair(x[6], x[7]));
    }
};

__device__ __forceinline__ uint32_t narrow_bf16(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ __forceinline__ uint32_t narrow_f16(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
}

using Bf16Cache = Cache16<widen_bf16, narrow_bf16>;
using F16Cache = Cache16<widen_f16, narrow_f16>;

// A byte an element.
struct Cache8 : Neighbours {
    static constexpr int kBytes = 1;
    using Unit = uint2;

    __device__ static Unit load(const char* row, int unit, int) { return reinterpret_cast<const uint2*>(row)[unit]; }
    __device__ static void store(char* row, int unit, int, const Unit& bits) { reinterpret_cast<uint2*>(row)[unit] = bits; }
};

struct Q8Cache : Cache8 {
    static constexpr bool kScaled = true;

    // 2^23 + 128 + x has x + 128 as its lowest byte.
    __device__ static void widen_four(uint32_t bits, float* x) {
        bits ^= 0x80808080u;
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] = __uint_as_float(__byte_perm(bits, 0x4b000000u, 0x7440 + i)) - (8388608.0f + 128.0f);
    }
    __device__ static void widen(const Unit& bits, float (&x)[8]) {
        widen_four(bits.x, x);
        widen_four(bits.y, x + 4);
    }
    __device__ static Unit narrow(const float (&x)[8], __half* scale) {
        uint32_t largest_bits = 0;  // the largest magnitude by its bits: a NaN is above all others
#pragma unroll
        for (int i = 0; i < 8; ++i) largest_bits = max(largest_bits, __float_as_uint(x[i]) & 0x7fffffffu);
        largest_bits = max(largest_bits, __shfl_xor_sync(kWholeWarp, largest_bits, 1));
        largest_bits = max(largest_bits, __shfl_xor_sync(kWholeWarp, largest_bits, 2));
        const float largest = __uint_as_float(largest_bits);
        // A block that cannot be scaled: zeros under it, or ones, which keep an infinity or a NaN of the scale visible.
        const float to_int = largest < 1e-30f ? 0.0f : __fdiv_rn(127.0f, largest);
        const bool finite = largest_bits < 0x7f800000u;
        *scale = __float2half_rn(__fdiv_rn(largest, 127.0f));
        uint32_t bytes[2] = {};
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const int q = finite ? __float2int_rn(__fmul_rn(x[i], to_int)) : 1;
            bytes[i / 4] |= (static_cast<uint32_t>(q) & 0xffu) << 8 * (i % 4);
        }
        return make_uint2(bytes[0], bytes[1]);
    }
};

// E4M3, as program/half.h has it.
struct Fp8Cache : Cache8 {
    static constexpr bool kScaled = false;

#if __CUDA_ARCH__ >= 890
    __device__ static void widen_four(uint32_t bits, float* x) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            uint32_t pair;
            asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pair) : "h"(static_cast<unsigned short>(bits >> 16 * i)));
            const float2 wide = widen_f16(pair);
            x[2 * i] = wide.x, x[2 * i + 1] = wide.y;
        }
    }
    __device__ static uint32_t narrow_two(float low, float high) {
        unsigned short pair;
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
        return pair;
    }
#else
    // Sign and magnitude where f16 has them, an exponent that is 8 too small: exact, subnormals included, except for NaN.
    __device__ static void widen_four(uint32_t bits, float* x) {
        const uint32_t magnitudes = bits & 0x7f7f7f7fu, signs = bits & 0x80808080u;
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
            const uint32_t m = __byte_perm(magnitudes, 0, i ? 0x4342 : 0x4140), s = __byte_perm(signs, 0, i ? 0x3424 : 0x1404);
            const uint32_t pair = m << 7 | s;
            const float2 wide = widen_f16(pair);
            x[i] = wide.x * 256.0f, x[i + 1] = wide.y * 256.0f;
        }
        if ((magnitudes + 0x01010101u) & 0x80808080u) {
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if ((magnitudes >> 8 * i & 0x7f) == 0x7f) x[i] = __uint_as_float(0x7fc00000u);
        }
    }
    __device__ static uint32_t narrow_one(float value) {
        const uint32_t bits = __float_as_uint(value), sign = bits >> 24 & 0x80u, magnitude = bits & 0x7fffffffu;
        // A subnormal result is in steps of 2^-9, which 2^14 puts at the last bit: the addition rounds.
        const uint32_t subnormal = __float_as_uint(__fadd_rn(__uint_as_float(magnitude), 16384.0f)) - 0x46800000u;
        const uint32_t normal = (magnitude + 0x7ffffu + (magnitude >> 20 & 1u) - 0x3c000000u) >> 20;
        const uint32_t large = magnitude > 0x7f800000u ? 0x7fu : 0x7eu;
        return sign | (magnitude < 0x3c800000u ? subnormal : magnitude < 0x43e00000u ? normal : large);
    }
    __device__ static uint32_t narrow_two(float low, float high) { return narrow_one(low) | narrow_one(high) << 8; }
#endif
    __device__ static void widen(const Unit& bits, float (&x)[8]) {
        widen_four(bits.x, x);
        widen_four(bits.y, x + 4);
    }
    __device__ static Unit narrow(const float (&x)[8], __half*) {
        return make_uint2(narrow_two(x[0], x[1]) | narrow_two(x[2], x[3]) << 16, narrow_two(x[4], x[5]) | narrow_two(x[6], x[7])
                                                                                                              << 16);
    }
};

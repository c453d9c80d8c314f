// Values of the operators for mixtures: float32 or bfloat16, computed in float32, rounded once.
#pragma once

#include "cuda/kernels/device.cuh"
#include "cuda/kernels/moe.h"

namespace llama_ext::cuda {

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ __forceinline__ void narrow(float value, float* to) { *to = value; }
__device__ __forceinline__ void narrow(float value, __nv_bfloat16* to) { *to = __float2bfloat16_rn(value); }

// kMoePerThread values from `at` on of a row of `hidden`, those that there are. whole: all of them, and their address is aligned
template <typename Value>
__device__ __forceinline__ void load(const Value* row, int64_t at, int64_t hidden, bool whole, float* values) {
    struct alignas(kMoePerThread * sizeof(Value)) Piece {
        Value of[kMoePerThread];
    };
    if (whole) {
        const Piece piece = *reinterpret_cast<const Piece*>(row + at);
#pragma unroll
        for (int i = 0; i < kMoePerThread; ++i) values[i] = widen(piece.of[i]);
    } else {
#pragma unroll
        for (int i = 0; i < kMoePerThread; ++i) values[i] = at + i < hidden ? widen(row[at + i]) : 0.0f;
    }
}

template <typename Value>
__device__ __forceinline__ void store(const float* values, Value* row, int64_t at, int64_t hidden, bool whole) {
    struct alignas(kMoePerThread * sizeof(Value)) Piece {
        Value of[kMoePerThread];
    };
    if (whole) {
        Piece piece;
#pragma unroll
        for (int i = 0; i < kMoePerThread; ++i) narrow(values[i], piece.of + i);
        *reinterpret_cast<Piece*>(row + at) = piece;
    } else {
#pragma unroll
        for (int i = 0; i < kMoePerThread; ++i)
            if (at + i < hidden) narrow(values[i], row + at + i);
    }
}

}  // namespace llama_ext::cuda

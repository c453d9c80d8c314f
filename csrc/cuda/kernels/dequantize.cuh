// One weight of a packed matrix (packed.h) as float32, in the operations and the order of program/format.cpp: the same bits.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/kernels/packed.h"

namespace llama_ext::cuda {

// The formats as kernels are told of them: the values of program/format.h.
enum PackedFormat : int32_t { kF32, kF16, kBf16, kQ8_0, kQ4_0, kQ4_1, kQ5_0, kQ5_1, kQ4K, kQ5K, kQ6K, kMxfp8 };

// A row of a packed matrix, plane by plane.
struct PackedRow {
    const unsigned char *quants, *high, *scales, *supers;
};

__device__ __forceinline__ float half_at(const unsigned char* at) { return __half2float(*reinterpret_cast<const __half*>(at)); }

// The nibble of weight i of a block.
__device__ __forceinline__ int nibble_at(const PackedRow& row, int64_t block, int i) {
    const int byte = row.quants[block * 16 + i % 16];
    return i < 16 ? byte & 15 : byte >> 4;
}

__device__ __forceinline__ int fifth_bit_at(const PackedRow& row, int64_t block, int i) {
    const uint32_t bits = reinterpret_cast<const uint32_t*>(row.high)[block];
    return static_cast<int>(bits >> (8 * (i % 4) + i / 4) & 1u) << 4;
}

__device__ __forceinline__ float e4m3(int byte) {
    const int magnitude = byte & 0x7f;
    if (magnitude == 0x7f) return __int_as_float(0x7fc00000);
    const float value = __fmul_rn(__int_as_float(magnitude << 20), __int_as_float((127 + 120) << 23));
    return byte & 0x80 ? -value : value;
}

__device__ __forceinline__ float e8m0(int byte) {
    return __int_as_float(byte == 0xff ? 0x7fc00000 : byte == 0 ? 0x00400000 : byte << 23);
}

// col: 0 .. cols - 1
__device__ __forceinline__ float weight_at(int format, const PackedRow& row, int64_t col) {
    const int64_t block = col / kBlock, super = col / kSuperBlock;
    const int i = static_cast<int>(col % kBlock);
    switch (format) {
        case kF32:
            return reinterpret_cast<const float*>(row.quants)[col];
        case kF16:
            return half_at(row.quants + 2 * col);
        case kBf16:
            return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(row.quants)[col]);
        case kQ8_0:
            return __fmul_rn(static_cast<float>(reinterpret_cast<const signed char*>(row.quants)[col]),
                             half_at(row.scales + 2 * block));
        case kMxfp8:
            return __fmul_rn(e4m3(row.quants[col]), e8m0(row.scales[block]));
        case kQ4_0:
        case kQ5_0: {
            const int value =
                format == kQ4_0 ? nibble_at(row, block, i) - 8 : (nibble_at(row, block, i) | fifth_bit_at(row, block, i)) - 16;
            return __fadd_rn(__fmul_rn(static_cast<float>(value), half_at(row.scales + 2 * block)), 0.0f);
        }
        case kQ4_1:
        case kQ5_1: {
            const int value = format == kQ4_1 ? nibble_at(row, block, i) : nibble_at(row, block, i) | fifth_bit_at(row, block, i);
            return __fadd_rn(__fmul_rn(static_cast<float>(value), half_at(row.scales + 4 * block)),
                             half_at(row.scales + 4 * block + 2));
        }
        case kQ4K:
        case kQ5K: {
            const unsigned char* const packed = row.supers + 16 * super;
            const int j = static_cast<int>(block % 8);
            const int bits = packed[4 + j] | (packed[12 + j / 2] >> (4 * (j % 2)) & 15) << 8;
            const float scale = __fmul_rn(half_at(packed), static_cast<float>(bits & 63));
            const float minimum = __fmul_rn(half_at(packed + 2), static_cast<float>(bits >> 6));
            const int value = format == kQ4K ? nibble_at(row, block, i) : nibble_at(row, block, i) | fifth_bit_at(row, block, i);
            return __fsub_rn(__fmul_rn(static_cast<float>(value), scale), minimum);
        }
        default: {  // kQ6K
            const uint32_t pairs = reinterpret_cast<const uint32_t*>(row.high)[2 * block + i / 16];
            const int value = nibble_at(row, block, i) | static_cast<int>(pairs >> (8 * (i % 4) + 2 * (i / 4 % 4)) & 3u) << 4;
            const float scale =
                __fmul_rn(half_at(row.supers + 2 * super),
                          static_cast<float>(reinterpret_cast<const signed char*>(row.scales)[2 * block + i / 16]));
            return __fmul_rn(static_cast<float>(value - 32), scale);
        }
    }
}

}  // namespace llama_ext::cuda

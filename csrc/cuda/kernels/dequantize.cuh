// Weights of a packed matrix (packed.h) to float32, in the very operations of program/format.cpp's `dequantize`: the same bits,
// but for the payload of a NaN. A word is four weights in a row, 4 w .. 4 w + 3 of a block of 32: what fits a lane's register,
// four bytes, and a float4.
#pragma once

#include "cuda/kernels/device.cuh"
#include "cuda/kernels/packed.h"
#include "program/format.h"

namespace llama_ext::cuda {

// Of one row, or of the whole matrix. A plane that the format lacks is null.
struct PackedBytes {
    const uint8_t *quants, *high, *scales, *supers;
};

// --- Bits into quants, four unsigned bytes --------------------------------------------------------------------------------

// bits: word w % 4 of a block's 16 bytes of nibbles
__device__ __forceinline__ uint32_t nibbles_of(uint32_t bits, int w) { return (bits >> (4 * (w / 4))) & 0x0f0f0f0fu; }

// bits: a block's fifth bits.  -> their worth, 16 where they are set
__device__ __forceinline__ uint32_t fifth_of(uint32_t bits, int w) { return ((bits >> w) & 0x01010101u) << 4; }

// bits: word w / 4 of a block's bit pairs.  -> their worth, a multiple of 16
__device__ __forceinline__ uint32_t pairs_of(uint32_t bits, int w) { return ((bits >> (2 * (w % 4))) & 0x03030303u) << 4; }

// --- What a quant is worth ------------------------------------------------------------------------------------------------

struct BlockScale {
    float scale, offset;  // weight = quant * scale + offset
};

// d and another f16 in one word
__device__ __forceinline__ BlockScale scales_of(uint32_t halves) {
    const float2 wide = widen_f16(halves);
    return {wide.x, wide.y};
}

// super: a super-block's 16 bytes, of q4_K or q5_K; block: 0 to 7 of it
__device__ __forceinline__ BlockScale k_scales_of(const uint4& super, int block) {
    const uint32_t low = (block < 4 ? super.y : super.z) >> (8 * (block % 4)) & 0xffu;
    const uint32_t bits = low | ((super.w >> (4 * block)) & 15u) << 8;
    const float2 factors = widen_f16(super.x);
    return {__fmul_rn(factors.x, static_cast<float>(bits & 63u)), -__fmul_rn(factors.y, static_cast<float>(bits >> 6))};
}

__device__ __forceinline__ float f32_of_e8m0(uint32_t byte) {
    return __uint_as_float(byte == 255 ? 0x7fc00000u : byte == 0 ? 0x00400000u : byte << 23);
}

__device__ __forceinline__ float f32_of_e4m3(uint32_t byte) {
    const uint32_t sign = (byte & 0x80u) << 24, magnitude = byte & 0x7fu;
    // An exponent that is 120 too small, mended by a product.
    const float value = __uint_as_float(__float_as_uint(__fmul_rn(__uint_as_float(magnitude << 20), 0x1p120f)) | sign);
    return magnitude == 0x7fu ? __uint_as_float(sign | 0x7fc00000u) : value;
}

// quants: four bytes, unsigned; zero: what is subtracted from each.  The sum rounds for itself, as nothing may be fused here; an
// offset of -0 leaves every product as it is, one of +0 turns -0 into +0, as the definition has it for q4_0 and q5_0.
__device__ __forceinline__ float4 worth_of(uint32_t quants, int zero, BlockScale by) {
    const auto one = [&](int at) {
        const float quant = static_cast<float>(static_cast<int>((quants >> (8 * at)) & 0xffu) - zero);
        return __fadd_rn(__fmul_rn(quant, by.scale), by.offset);
    };
    return make_float4(one(0), one(1), one(2), one(3));
}

// --- A word of a row ------------------------------------------------------------------------------------------------------

template <typename T>
__device__ __forceinline__ T load_weights(const uint8_t* plane, int64_t index) {
    return __ldg(reinterpret_cast<const T*>(plane) + index);
}

// Bytes of a row in each plane: as plane_rows() of cuda/pack.h says.
template <Format kFormat>
__device__ __forceinline__ PackedBytes row_of(const PackedBytes& matrix, int64_t row, int64_t cols) {
    const int64_t blocks = cols / kBlock, supers = cols / kSuperBlock;
    constexpr bool kFifth = kFormat == Format::q5_0 || kFormat == Format::q5_1 || kFormat == Format::q5_k;
    constexpr bool kTwo = kFormat == Format::q4_1 || kFormat == Format::q5_1;
    if constexpr (kFormat == Format::f32)
        return {matrix.quants + row * ((4 * cols + 15) / 16 * 16)};
    else if constexpr (kFormat == Format::f16 || kFormat == Format::bf16)
        return {matrix.quants + row * ((2 * cols + 15) / 16 * 16)};
    else if constexpr (kFormat == Format::q8_0)
        return {matrix.quants + row * cols, nullptr, matrix.scales + row * 2 * blocks};
    else if constexpr (kFormat == Format::mxfp8)
        return {matrix.quants + row * cols, nullptr, matrix.scales + row * blocks};
    else if constexpr (kFormat == Format::q6_k)
        return {matrix.quants + row * 16 * blocks, matrix.high + row * 8 * blocks, matrix.scales + row * 2 * blocks,
                matrix.supers + row * 2 * supers};
    else if constexpr (kFormat == Format::q4_k || kFormat == Format::q5_k)
        return {matrix.quants + row * 16 * blocks, kFifth ? matrix.high + row * 4 * blocks : nullptr, nullptr,
                matrix.supers + row * 16 * supers};
    else
        return {matrix.quants + row * 16 * blocks, kFifth ? matrix.high + row * 4 * blocks : nullptr,
                matrix.scales + row * (kTwo ? 4 : 2) * blocks};
}

// Weights 4 at .. 4 at + 3 of a row.
template <Format kFormat>
__device__ __forceinline__ float4 dequantize_word(const PackedBytes& row, int64_t at) {
    if constexpr (kFormat == Format::f32) {
        return load_weights<float4>(row.quants, at);
    } else if constexpr (kFormat == Format::f16 || kFormat == Format::bf16) {
        const uint2 bits = load_weights<uint2>(row.quants, at);
        const float2 low = kFormat == Format::f16 ? widen_f16(bits.x) : widen_bf16(bits.x);
        const float2 high = kFormat == Format::f16 ? widen_f16(bits.y) : widen_bf16(bits.y);
        return make_float4(low.x, low.y, high.x, high.y);
    } else {
        const int64_t block = at / 8;
        const int w = static_cast<int>(at % 8);
        if constexpr (kFormat == Format::q8_0) {
            // Signed bytes, as unsigned ones that are 128 larger.
            const uint32_t quants = load_weights<uint32_t>(row.quants, at) ^ 0x80808080u;
            return worth_of(quants, 128, {widen_f16(load_weights<uint16_t>(row.scales, block)).x, -0.0f});
        } else if constexpr (kFormat == Format::mxfp8) {
            const uint32_t bits = load_weights<uint32_t>(row.quants, at);
            const float scale = f32_of_e8m0(load_weights<uint8_t>(row.scales, block));
            return make_float4(__fmul_rn(f32_of_e4m3(bits & 0xffu), scale), __fmul_rn(f32_of_e4m3(bits >> 8 & 0xffu), scale),
                               __fmul_rn(f32_of_e4m3(bits >> 16 & 0xffu), scale), __fmul_rn(f32_of_e4m3(bits >> 24), scale));
        } else {
            uint32_t quants = nibbles_of(load_weights<uint32_t>(row.quants, 4 * block + w % 4), w);
            if constexpr (kFormat == Format::q5_0 || kFormat == Format::q5_1 || kFormat == Format::q5_k)
                quants |= fifth_of(load_weights<uint32_t>(row.high, block), w);
            if constexpr (kFormat == Format::q4_0 || kFormat == Format::q5_0) {
                const float scale = widen_f16(load_weights<uint16_t>(row.scales, block)).x;
                return worth_of(quants, kFormat == Format::q4_0 ? 8 : 16, {scale, 0.0f});
            } else if constexpr (kFormat == Format::q4_1 || kFormat == Format::q5_1) {
                return worth_of(quants, 0, scales_of(load_weights<uint32_t>(row.scales, block)));
            } else if constexpr (kFormat == Format::q4_k || kFormat == Format::q5_k) {
                const uint4 super = load_weights<uint4>(row.supers, block / 8);
                return worth_of(quants, 0, k_scales_of(super, static_cast<int>(block % 8)));
            } else {
                static_assert(kFormat == Format::q6_k);
                quants |= pairs_of(load_weights<uint32_t>(row.high, 2 * block + w / 4), w);
                const float d = widen_f16(load_weights<uint16_t>(row.supers, block / 8)).x;
                const int8_t scale = static_cast<int8_t>(load_weights<uint8_t>(row.scales, 2 * block + w / 4));
                return worth_of(quants, 32, {__fmul_rn(d, static_cast<float>(scale)), -0.0f});
            }
        }
    }
}

}  // namespace llama_ext::cuda

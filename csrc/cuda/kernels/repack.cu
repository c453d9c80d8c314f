// A checkpoint's rows into the layout of packed.h, on the device; csrc/cuda/pack.cpp does the same on the host, bit for bit.
//
// A matrix in a file is one run of blocks. A block of threads brings kRepackBlocks of them (of 32 weights) into shared memory, 16
// bytes a load, and each thread writes one out. Only what the planes hold is written, not what lies between them.
#include "cuda/kernels/device.cuh"
#include "cuda/kernels/packed.h"
#include "cuda/kernels/repack.h"

namespace {

using namespace llama_ext::cuda;

struct PlanesOut {
    uint8_t *quants, *high, *scales, *supers;
};

__device__ __forceinline__ PlanesOut planes_of(uint8_t* packed, int64_t high, int64_t scales, int64_t supers) {
    return {packed, packed + high, packed + scales, packed + supers};
}

// A file's blocks have kUnit bytes and kBlocksAUnit times 32 weights. -> the one that the thread's 32 weights lie in, in shared
// memory
template <int kUnit, int kBlocksAUnit>
__device__ __forceinline__ const uint8_t* stage(const uint8_t* source, int64_t blocks) {
    constexpr int kBytes = kRepackBlocks / kBlocksAUnit * kUnit;
    static_assert(kBytes % 16 == 0);
    __shared__ alignas(16) uint8_t staged[kBytes];
    const int64_t first = int64_t{blockIdx.x} * kBytes, all = blocks / kBlocksAUnit * kUnit;
    for (int at = 16 * threadIdx.x; at < kBytes && first + at < all; at += 16 * kRepackBlocks) {
        if (first + at + 16 <= all) {
            *reinterpret_cast<uint4*>(staged + at) = *reinterpret_cast<const uint4*>(source + first + at);
        } else {
            for (int i = 0; first + at + i < all; ++i) staged[at + i] = source[first + at + i];
        }
    }
    __syncthreads();
    return staged + threadIdx.x / kBlocksAUnit * kUnit;
}

__device__ __forceinline__ uint32_t word(const uint8_t* at) {
    return at[0] | uint32_t{at[1]} << 8 | uint32_t{at[2]} << 16 | uint32_t{at[3]} << 24;
}

__device__ __forceinline__ void copy_16(uint8_t* to, const uint8_t* from) {
    *reinterpret_cast<uint4*>(to) = make_uint4(word(from), word(from + 4), word(from + 8), word(from + 12));
}

__device__ __forceinline__ void copy_2(uint8_t* to, const uint8_t* from) {
    *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(from[0] | from[1] << 8);
}

// weight i's bit i -> bit 8 (i % 4) + i / 4
__device__ __forceinline__ uint32_t spread_bits(uint32_t bits) {
    uint32_t spread = 0;
#pragma unroll
    for (int i = 0; i < 32; ++i) spread |= (bits >> i & 1) << (8 * (i % 4) + i / 4);
    return spread;
}

// q8_0 and mxfp8: kScale bytes of scale, then 32 of weights
template <int kScale>
__device__ __forceinline__ void bytes(const uint8_t* source, PlanesOut to, int64_t blocks) {
    const int64_t block = int64_t{blockIdx.x} * kRepackBlocks + threadIdx.x;
    const uint8_t* from = stage<32 + kScale, 1>(source, blocks);
    if (block >= blocks) return;
    if (kScale == 2)
        copy_2(to.scales + 2 * block, from);
    else
        to.scales[block] = from[0];
    copy_16(to.quants + 32 * block, from + kScale);
    copy_16(to.quants + 32 * block + 16, from + kScale + 16);
}

// kScale bytes of scales, 4 of fifth bits if kFifth, 16 of nibbles
template <int kScale, bool kFifth>
__device__ __forceinline__ void nibbles(const uint8_t* source, PlanesOut to, int64_t blocks) {
    constexpr int kHigh = kFifth ? 4 : 0;
    const int64_t block = int64_t{blockIdx.x} * kRepackBlocks + threadIdx.x;
    const uint8_t* from = stage<kScale + kHigh + 16, 1>(source, blocks);
    if (block >= blocks) return;
    if (kScale == 2)
        copy_2(to.scales + 2 * block, from);
    else
        *reinterpret_cast<uint32_t*>(to.scales + 4 * block) = word(from);
    if (kFifth) *reinterpret_cast<uint32_t*>(to.high + 4 * block) = spread_bits(word(from + kScale));
    copy_16(to.quants + 16 * block, from + kScale + kHigh);
}

// Four bytes of the nibble `shift / 4` of each.
__device__ __forceinline__ uint32_t nibbles_of(const uint8_t* at, int shift) { return word(at) >> shift & 0x0f0f0f0fu; }

// The weights i of a block, whose nibbles lie in 32 bytes, as packed: i in the low half, i + 16 in the high half.
__device__ __forceinline__ void fold(uint8_t* to, const uint8_t* from, int shift) {
    uint32_t out[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = nibbles_of(from + 4 * i, shift) | nibbles_of(from + 16 + 4 * i, shift) << 4;
    *reinterpret_cast<uint4*>(to) = make_uint4(out[0], out[1], out[2], out[3]);
}

// q4_K and q5_K
template <bool kFifth>
__device__ __forceinline__ void k(const uint8_t* source, PlanesOut to, int64_t blocks) {
    const int64_t block = int64_t{blockIdx.x} * kRepackBlocks + threadIdx.x;
    const int j = threadIdx.x % 8;
    const uint8_t* from = stage<kFifth ? 176 : 144, 8>(source, blocks);
    if (block >= blocks) return;
    if (j == 0) {
        const uint8_t* twelve = from + 4;
        uint32_t low[2] = {}, high = 0;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const uint32_t scale = i < 4 ? twelve[i] & 63 : (twelve[i + 4] & 15) | twelve[i - 4] >> 6 << 4;
            const uint32_t minimum = i < 4 ? twelve[i + 4] & 63 : twelve[i + 4] >> 4 | twelve[i] >> 6 << 4;
            const uint32_t bits = scale | minimum << 6;
            low[i / 4] |= (bits & 255) << (8 * (i % 4));
            high |= (bits >> 8) << (4 * i);
        }
        *reinterpret_cast<uint4*>(to.supers + 2 * block) = make_uint4(word(from), low[0], low[1], high);
    }
    fold(to.quants + 16 * block, from + (kFifth ? 48 : 16) + 32 * (j / 2), 4 * (j % 2));
    if (kFifth) {
        uint32_t bits = 0;
#pragma unroll
        for (int i = 0; i < 32; ++i) bits |= (uint32_t{from[16 + i]} >> j & 1) << i;
        *reinterpret_cast<uint32_t*>(to.high + 4 * block) = spread_bits(bits);
    }
}

// 128 bytes of nibbles, 64 of bit pairs, 16 scales, d
__device__ __forceinline__ void q6_k(const uint8_t* source, PlanesOut to, int64_t blocks) {
    const int64_t block = int64_t{blockIdx.x} * kRepackBlocks + threadIdx.x;
    const int half = threadIdx.x % 8 / 4, j = threadIdx.x % 4;
    const uint8_t* from = stage<210, 8>(source, blocks);
    if (block >= blocks) return;
    if (threadIdx.x % 8 == 0) copy_2(to.supers + block / 4, from + 208);
    copy_2(to.scales + 2 * block, from + 192 + 2 * (4 * half + j));
    fold(to.quants + 16 * block, from + 64 * half + 32 * (j % 2), 4 * (j / 2));
    uint32_t pairs[2] = {};
#pragma unroll
    for (int i = 0; i < 8; ++i)  // weights 4 i to 4 i + 3
        pairs[i / 4] |= (word(from + 128 + 32 * half + 4 * i) >> 2 * j & 0x03030303u) << (2 * (i % 4));
    *reinterpret_cast<uint2*>(to.high + 8 * block) = make_uint2(pairs[0], pairs[1]);
}

// f32, f16, bf16: rows padded with zeros
template <typename Bits>
__device__ __forceinline__ void floats(const Bits* source, Bits* packed, int64_t rows, int64_t cols, int64_t pieces) {
    constexpr int kEach = 16 / sizeof(Bits);
    const int64_t at = int64_t{blockIdx.x} * kRepackFloatThreads + threadIdx.x;
    let_successor_start();
    wait_for_predecessor();
    if (at >= rows * pieces) return;
    const int64_t row = at / pieces, col = at % pieces * kEach;
    struct alignas(16) {
        Bits of[kEach];
    } piece;
#pragma unroll
    for (int i = 0; i < kEach; ++i) piece.of[i] = col + i < cols ? source[row * cols + col + i] : Bits{0};
    *reinterpret_cast<uint4*>(packed + at * kEach) = *reinterpret_cast<const uint4*>(&piece);
}

}  // namespace

// source: `blocks` blocks of 32 weights as a file has them, on 16 bytes -> packed, whose planes begin at the offsets given
// PRECOND: grid (ceil(blocks / kRepackBlocks)), block (kRepackBlocks); q4_K, q5_K, q6_K: blocks a multiple of 8
#define LLAMA_EXT_REPACK(name, body)                                                                                          \
    extern "C" __global__ void __launch_bounds__(kRepackBlocks)                                                               \
        repack_##name(const uint8_t* source, uint8_t* packed, int64_t high, int64_t scales, int64_t supers, int64_t blocks) { \
        let_successor_start();                                                                                                \
        wait_for_predecessor();                                                                                               \
        body(source, planes_of(packed, high, scales, supers), blocks);                                                        \
    }
LLAMA_EXT_REPACK(q8_0, bytes<2>)
LLAMA_EXT_REPACK(mxfp8, bytes<1>)
LLAMA_EXT_REPACK(q4_0, (nibbles<2, false>))
LLAMA_EXT_REPACK(q4_1, (nibbles<4, false>))
LLAMA_EXT_REPACK(q5_0, (nibbles<2, true>))
LLAMA_EXT_REPACK(q5_1, (nibbles<4, true>))
LLAMA_EXT_REPACK(q4_k, k<false>)
LLAMA_EXT_REPACK(q5_k, k<true>)
LLAMA_EXT_REPACK(q6_k, q6_k)
#undef LLAMA_EXT_REPACK

// source [rows, cols] -> packed [rows, pieces of 16 bytes]
// PRECOND: grid (ceil(rows * pieces / kRepackFloatThreads)), block (kRepackFloatThreads); packed on 16 bytes
extern "C" __global__ void __launch_bounds__(kRepackFloatThreads)
    repack_32(const uint32_t* source, uint32_t* packed, int64_t rows, int64_t cols, int64_t pieces) {
    floats(source, packed, rows, cols, pieces);
}
extern "C" __global__ void __launch_bounds__(kRepackFloatThreads)
    repack_16(const uint16_t* source, uint16_t* packed, int64_t rows, int64_t cols, int64_t pieces) {
    floats(source, packed, rows, cols, pieces);
}

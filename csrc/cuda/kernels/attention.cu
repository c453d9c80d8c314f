// Attention of one token over its cache, split over keys (attention_split_*) and put together again (attention_combine).
//
// The cache of a layer is keys [kv_heads][capacity][head_dim], values likewise; position p lies in slot p % capacity. A step's
// keys are those from first_key(position) (program/instruction.h, Mask) to `position`, which is read from device memory: one
// captured graph serves every step. They are shared out in tiles of 32 among a fixed number of splits, so a split may have none.
//
// A block has one key-value head and one split. All query heads of the group share each load of keys and values: a tile of both
// is copied to shared memory (cp.async, the next tile while this one is used); a warp has one, two or four query heads. Scores: a
// lane has a key, so no sum crosses lanes. Values: a lane has pairs of elements. The softmax is online, in float32, with
// exponents to the base 2.
#include "cuda/kernels/device.cuh"
#include "cuda/kernels/attention.h"

namespace {

using namespace llama_ext::cuda;

constexpr float kLog2E = 1.4426950408889634f;

// 16 bytes of T as floats, and two neighbours.
template <typename T>
struct Wide;

template <>
struct Wide<float> {
    static constexpr int kCount = 4;
    __device__ static void all(uint4 raw, float* out) {
        out[0] = __uint_as_float(raw.x), out[1] = __uint_as_float(raw.y);
        out[2] = __uint_as_float(raw.z), out[3] = __uint_as_float(raw.w);
    }
    __device__ static float2 pair(const float* at) { return *reinterpret_cast<const float2*>(at); }
};

template <float2 (*widen)(uint32_t)>
struct Wide16 {
    static constexpr int kCount = 8;
    __device__ static void all(uint4 raw, float* out) {
        const float2 a = widen(raw.x), b = widen(raw.y), c = widen(raw.z), d = widen(raw.w);
        out[0] = a.x, out[1] = a.y, out[2] = b.x, out[3] = b.y, out[4] = c.x, out[5] = c.y, out[6] = d.x, out[7] = d.y;
    }
    __device__ static float2 pair(const void* at) { return widen(*static_cast<const uint32_t*>(at)); }
};

template <>
struct Wide<__nv_bfloat16> : Wide16<widen_bf16> {};
template <>
struct Wide<__half> : Wide16<widen_f16> {};

__device__ __forceinline__ void copy_async(uint4* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))), "l"(from)
                 : "memory");
}

__device__ __forceinline__ void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most kLeft groups of this thread's copies are under way.
template <int kLeft>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// The keys of one split: `count` of them, the first in slot `slot` of the ring.
struct KeyRange {
    int64_t slot, count;
};

__device__ KeyRange key_range(int64_t position, int mask, int64_t extent, int64_t capacity) {
    int64_t first = 0;
    if (mask == kMaskChunked) first = position - position % extent;
    if (mask == kMaskSliding) first = max(int64_t{0}, position - extent + 1);
    first = max(first, position + 1 - capacity);  // older ones have been overwritten
    const int64_t tiles = (position + 1 - first + kTileKeys - 1) / kTileKeys;
    const int64_t share = (tiles + gridDim.x - 1) / gridDim.x * kTileKeys;
    first += blockIdx.x * share;
    return {first % capacity, min(share, position + 1 - first)};
}

// Rows `from` .. of the range, kTileKeys of them or what is left, to shared memory; the rest of the tile becomes zeros, which
// meet probabilities of zero.
// cache [capacity][head_dim] of this head -> tile [kTileKeys][tile_row]
template <typename T>
__device__ __forceinline__ void fetch(const T* cache, const KeyRange& range, int64_t from, int64_t capacity, int head_dim,
                                      uint4* tile) {
    const int row = tile_row(head_dim, sizeof(T)), pieces = head_dim * static_cast<int>(sizeof(T)) / 16;
    for (int i = threadIdx.x; i < kTileKeys * pieces; i += blockDim.x) {
        const int key = i / pieces, piece = i % pieces;
        uint4* to = tile + key * row + piece;
        if (from + key < range.count) {
            int64_t slot = range.slot + from + key;
            if (slot >= capacity) slot -= capacity;
            copy_async(to, reinterpret_cast<const uint4*>(cache + slot * head_dim) + piece);
        } else {
            *to = make_uint4(0, 0, 0, 0);
        }
    }
}

// kHeadDim 0: any, given as any_head_dim.  kHeads: query heads a warp.  The rest as at attention_split below.
template <typename T, int kHeadDim, int kHeads>
__device__ __forceinline__ void split(const float* q, const T* keys, const T* values, const int64_t* position_at,
                                      float* partial_max, float* partial_sum, float* partial_values, int64_t capacity,
                                      int64_t extent, int mask, int group, int any_head_dim, float scale) {
    constexpr int kStages = split_stages(kHeadDim);
    constexpr int kPairs = (kHeadDim ? kHeadDim : kMaxHeadDim) / 64;  // of elements, a lane
    const int head_dim = kHeadDim ? kHeadDim : any_head_dim;
    const int row = tile_row(head_dim, sizeof(T)), pieces = head_dim * static_cast<int>(sizeof(T)) / 16;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first_head = warp * kHeads;

    extern __shared__ uint4 shared[];
    uint4* const key_tiles = shared;                                                           // [kStages][kTileKeys][row]
    uint4* const value_tiles = key_tiles + kStages * kTileKeys * row;                          // [kStages][kTileKeys][row]
    float* const queries = reinterpret_cast<float*>(value_tiles + kStages * kTileKeys * row);  // [group][head_dim]
    float* const probabilities = queries + group * head_dim;                                   // [group][kTileKeys]

    let_successor_start();
    wait_for_predecessor();
    const KeyRange range = key_range(*position_at, mask, extent, capacity);
    const int64_t head = int64_t{blockIdx.y} * group;  // the group's first
    keys += blockIdx.y * capacity * head_dim;
    values += blockIdx.y * capacity * head_dim;

    if (range.count > 0) {
        fetch(keys, range, 0, capacity, head_dim, key_tiles);
        fetch(values, range, 0, capacity, head_dim, value_tiles);
    }
    end_copies();
    for (int i = threadIdx.x; i < group * head_dim; i += blockDim.x) queries[i] = q[head * head_dim + i] * (scale * kLog2E);

    float highest[kHeads], sum[kHeads];
    float2 result[kHeads][kPairs];
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
        highest[h] = -INFINITY;
        sum[h] = 0.0f;  // of this lane's keys
#pragma unroll
        for (int p = 0; p < kPairs; ++p) result[h][p] = make_float2(0.0f, 0.0f);
    }

    int stage = 0;
    for (int64_t from = 0; from < range.count; from += kTileKeys) {
        if constexpr (kStages == 2) {
            if (from + kTileKeys < range.count) {
                const int next = (stage ^ 1) * kTileKeys * row;
                fetch(keys, range, from + kTileKeys, capacity, head_dim, key_tiles + next);
                fetch(values, range, from + kTileKeys, capacity, head_dim, value_tiles + next);
            }
            end_copies();
        }
        wait_for_copies<kStages - 1>();
        __syncthreads();  // everyone's copies are there

        const uint4* const key_row = key_tiles + (stage * kTileKeys + lane) * row;
        float score[kHeads] = {};
        for (int piece = 0; piece < pieces; ++piece) {
            float k[Wide<T>::kCount];
            Wide<T>::all(key_row[piece], k);
#pragma unroll
            for (int h = 0; h < kHeads; ++h) {
                if (first_head + h < group) {
                    const float4* const query =
                        reinterpret_cast<const float4*>(queries + (first_head + h) * head_dim + piece * Wide<T>::kCount);
#pragma unroll
                    for (int i = 0; i < Wide<T>::kCount / 4; ++i) {
                        const float4 four = query[i];
                        score[h] = fmaf(four.x, k[4 * i], score[h]);
                        score[h] = fmaf(four.y, k[4 * i + 1], score[h]);
                        score[h] = fmaf(four.z, k[4 * i + 2], score[h]);
                        score[h] = fmaf(four.w, k[4 * i + 3], score[h]);
                    }
                }
            }
        }
        const bool there = from + lane < range.count;
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
            if (first_head + h < group) {
                const float masked = there ? score[h] : -INFINITY;
                const float now = fmaxf(highest[h], warp_max(masked));  // finite: each tile has a key
                const float fade = exp2f(highest[h] - now);
                const float probability = exp2f(masked - now);
                highest[h] = now;
                sum[h] = sum[h] * fade + probability;
#pragma unroll
                for (int p = 0; p < kPairs; ++p) result[h][p].x *= fade, result[h][p].y *= fade;
                probabilities[(first_head + h) * kTileKeys + lane] = probability;
            }
        }
        __syncwarp();

        const T* const value_tile = reinterpret_cast<const T*>(value_tiles + stage * kTileKeys * row);
        const int value_row = row * 16 / static_cast<int>(sizeof(T));
        for (int key = 0; key < kTileKeys; key += 4) {
            float2 value[4][kPairs];
#pragma unroll
            for (int k = 0; k < 4; ++k)
#pragma unroll
                for (int p = 0; p < kPairs; ++p) {
                    const int d = 64 * p + 2 * lane;
                    if (kHeadDim || d < head_dim) value[k][p] = Wide<T>::pair(value_tile + (key + k) * value_row + d);
                }
#pragma unroll
            for (int h = 0; h < kHeads; ++h) {
                if (first_head + h < group) {
                    const float4 four = *reinterpret_cast<const float4*>(probabilities + (first_head + h) * kTileKeys + key);
                    const float weight[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
                    for (int k = 0; k < 4; ++k)
#pragma unroll
                        for (int p = 0; p < kPairs; ++p) {
                            if (kHeadDim || 64 * p + 2 * lane < head_dim) {
                                result[h][p].x = fmaf(weight[k], value[k][p].x, result[h][p].x);
                                result[h][p].y = fmaf(weight[k], value[k][p].y, result[h][p].y);
                            }
                        }
                }
            }
        }
        __syncthreads();  // everyone is through with this tile, and each warp with its probabilities
        if constexpr (kStages == 2) {
            stage ^= 1;
        } else {
            if (from + kTileKeys < range.count) {
                fetch(keys, range, from + kTileKeys, capacity, head_dim, key_tiles);
                fetch(values, range, from + kTileKeys, capacity, head_dim, value_tiles);
            }
            end_copies();
        }
    }

#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
        if (first_head + h < group) {
            const int64_t at = (head + first_head + h) * gridDim.x + blockIdx.x;
            const float total = warp_sum(sum[h]);
            if (lane == 0) {
                partial_max[at] = highest[h];
                partial_sum[at] = total;
            }
            if (range.count > 0) {
#pragma unroll
                for (int p = 0; p < kPairs; ++p) {
                    const int d = 64 * p + 2 * lane;
                    if (kHeadDim || d < head_dim) *reinterpret_cast<float2*>(partial_values + at * head_dim + d) = result[h][p];
                }
            }
        }
    }
}

}  // namespace

// attention_split_{type of the cache}_{head_dim or any}_{query heads a warp}:
//   q [kv_heads * group, head_dim], keys and values [kv_heads, capacity, head_dim], position [1]
//   -> partial_max, partial_sum [kv_heads * group, splits], partial_values [kv_heads * group, splits, head_dim]
// partial_max is in units of log2; a split without keys has -inf there, 0 as its sum, and leaves its values unwritten.
// PRECOND: grid (splits, kv_heads), block (32 * ceil(group / heads_per_warp(group))),
//          shared split_shared_bytes(group, head_dim, sizeof(type)); group <= kMaxGroup; head_dim % 8 == 0, <= kMaxHeadDim;
//          keys, values and partial_values on 16 bytes; *position >= 0
// One block a multiprocessor is asked for, though many fit: without a number ptxas saves registers for more, and spills.
#define LLAMA_EXT_SPLIT(name, T, kHeadDim, kHeads)                                                                              \
    extern "C" __global__ void __launch_bounds__(32 * kSplitWarps, 1) attention_split_##name##_##kHeads(                        \
        const float* q, const T* keys, const T* values, const int64_t* position, float* partial_max, float* partial_sum,        \
        float* partial_values, int64_t capacity, int64_t extent, int mask, int group, int head_dim, float scale) {              \
        split<T, kHeadDim, kHeads>(q, keys, values, position, partial_max, partial_sum, partial_values, capacity, extent, mask, \
                                   group, head_dim, scale);                                                                     \
    }
#define LLAMA_EXT_SPLITS(name, T, kHeadDim) \
    LLAMA_EXT_SPLIT(name, T, kHeadDim, 1)   \
    LLAMA_EXT_SPLIT(name, T, kHeadDim, 2)   \
    LLAMA_EXT_SPLIT(name, T, kHeadDim, 4)

LLAMA_EXT_SPLITS(f32_64, float, 64)
LLAMA_EXT_SPLITS(f32_128, float, 128)
LLAMA_EXT_SPLITS(f32_any, float, 0)
LLAMA_EXT_SPLITS(bf16_64, __nv_bfloat16, 64)
LLAMA_EXT_SPLITS(bf16_128, __nv_bfloat16, 128)
LLAMA_EXT_SPLITS(bf16_any, __nv_bfloat16, 0)
LLAMA_EXT_SPLITS(f16_64, __half, 64)
LLAMA_EXT_SPLITS(f16_128, __half, 128)
LLAMA_EXT_SPLITS(f16_any, __half, 0)

// Splits in ascending order, so that the result does not depend on which block ended first.
// partial_max, partial_sum [heads, splits], partial_values [heads, splits, head_dim] -> out [heads, head_dim]
// PRECOND: grid (heads), block (head_dim rounded up to 32)
extern "C" __global__ void __launch_bounds__(kMaxHeadDim)
    attention_combine(const float* partial_max, const float* partial_sum, const float* partial_values, float* out, int splits,
                      int head_dim) {
    let_successor_start();
    wait_for_predecessor();
    const int64_t head = blockIdx.x;
    const int d = threadIdx.x;
    partial_max += head * splits;
    partial_sum += head * splits;
    partial_values += head * splits * head_dim;
    float highest = -INFINITY;
    for (int s = 0; s < splits; ++s) highest = fmaxf(highest, partial_max[s]);
    if (d >= head_dim) return;
    float sum = 0.0f, value = 0.0f;
    for (int s = 0; s < splits; ++s) {
        const float of_split = partial_max[s];
        if (of_split == -INFINITY) continue;
        const float weight = exp2f(of_split - highest);
        sum = fmaf(weight, partial_sum[s], sum);
        value = fmaf(weight, partial_values[int64_t{s} * head_dim + d], value);
    }
    out[head * head_dim + d] = value / sum;
}

// Attention of a step of up to 16 rows, whole: normalises, appends, attends, combines. A file of kernels a format of the cache.
//
// A block has one row, one key-value head and one split of the row's keys, first_key(position) to position: a fixed number of
// splits shares them out by the row's position alone, so that a row's bits depend neither on the rows beside it nor on how many
// there might be. Keys are taken in steps of 8, which go round the key sets of the block's warps, 1 to 8 of them: a step's
// bytes are copied to shared memory once (cp.async, several steps ahead) for all query heads of the group, of which each warp of
// the set serves up to 4. Key sets run independently and are put together at the end.
//
// 8, 16 or 32 lanes share a key, eight elements each; they have the same elements of 4 queries and of 4 results in registers.
// Scores: partial sums of 8 keys and 4 heads are added up across lanes, each time handing half of them over, which leaves a lane
// one score, so that its exponential is taken once. The softmax is online, in float32, to the base 2.
//
// Keys and values of the step itself lie in qkv, where the product put them. Other blocks may not have written them to the
// cache yet, so that each block takes them from there, rounded to the cache's format as they are stored; nobody reads their
// slots. The block that has the row's own position stores it.
//
// Splits: the last block of a row and key-value head that arrives adds up the results of all, in ascending order.
#pragma once

#include <cfloat>

#include "cuda/kernels/attention.h"
#include "cuda/kernels/attention_format.cuh"
#include "cuda/kernels/device.cuh"
#include "cuda/kernels/step.h"

namespace {

using namespace llama_ext::cuda;

constexpr float kLog2E = 1.4426950408889634f;

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

template <int kBytes>
__device__ __forceinline__ void copy_async(char* to, const char* from) {
    const uint32_t shared = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    if constexpr (kBytes == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared), "l"(from), "n"(kBytes) : "memory");
}

__device__ __forceinline__ void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most kLeft groups of this thread's copies are under way.
template <int kLeft>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// A struct of 8-byte words, all of it at once: else what is needed behind a branch is asked for behind it, a way to memory later.
template <typename T>
__device__ __forceinline__ T load_whole(const T* from) {
    static_assert(sizeof(T) % 8 == 0);
    uint64_t words[sizeof(T) / 8];
#pragma unroll
    for (size_t i = 0; i < sizeof(T) / 8; ++i)
        asm volatile("ld.global.u64 %0, [%1];" : "=l"(words[i]) : "l"(reinterpret_cast<const uint64_t*>(from) + i) : "memory");
    T value;
    memcpy(&value, words, sizeof value);
    return value;
}

// Sums across kLanes neighbouring lanes, kCount of them at once; lane i of them gets sum i / (kLanes / kCount).
template <int kLanes, int kCount, int kGiven = kCount>
__device__ __forceinline__ float share_sums(float (&sums)[kGiven], int lane) {
    if constexpr (kCount > 1) {
        const bool upper = lane & kLanes / 2;
#pragma unroll
        for (int i = 0; i < kCount / 2; ++i) {
            const float kept = upper ? sums[i + kCount / 2] : sums[i], given = upper ? sums[i] : sums[i + kCount / 2];
            sums[i] = kept + __shfl_xor_sync(kWholeWarp, given, kLanes / 2);
        }
        return share_sums<kLanes / 2, kCount / 2>(sums, lane);
    } else {
#pragma unroll
        for (int width = kLanes / 2; width > 0; width /= 2) sums[0] += __shfl_xor_sync(kWholeWarp, sums[0], width);
        return sums[0];
    }
}

// What RMS norm multiplies a head by, of which kLanes neighbouring lanes have 8 elements each.
template <int kLanes>
__device__ __forceinline__ float norm_factor(const float (&x)[8], int head_dim, float eps) {
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) squares = fmaf(x[i], x[i], squares);
#pragma unroll
    for (int width = kLanes / 2; width > 0; width /= 2) squares += __shfl_xor_sync(kWholeWarp, squares, width);
    return rsqrtf(squares / static_cast<float>(head_dim) + eps);
}

// The keys that a row sees of the split: `count` of them, none if it is not positive, the first in slot `slot`. Key i is that of
// the step's row i + first_row, and of none where that is negative.
struct KeyRange {
    int slot, count, first_row, used_splits;
};

__device__ __forceinline__ KeyRange key_range(int64_t position, int row, int64_t start, int capacity, int mask, int64_t extent,
                                              int sets) {
    int64_t first = start;
    if (mask == kMaskChunked) first = max(first, position - position % extent);
    if (mask == kMaskSliding) first = max(first, position - extent + 1);
    first = max(first, position + 1 - capacity);
    const int splits = static_cast<int>(gridDim.x), split = static_cast<int>(blockIdx.x);
    const int keys = static_cast<int>(position + 1 - first), steps = (keys + kStepKeys - 1) / kStepKeys;
    const int share = steps <= kAloneTurns * sets ? steps : (steps + splits - 1) / splits;
    const int used_splits = (steps + share - 1) / share;
    const int begin = min(split, used_splits) * share * kStepKeys;
    const int64_t first_of_split = first + begin;
    const int64_t slot = first_of_split < capacity ? first_of_split : first_of_split % capacity;  // a division takes long
    return {static_cast<int>(slot), min(share * kStepKeys, keys - begin), row + 1 - keys + begin, used_splits};
}

// Where a key-value head's keys or values lie.
struct Plane {
    char* rows;      // [capacity][row_bytes]
    __half* scales;  // [capacity][blocks], if scaled
};

// kHeadDim 0: any, given as any_head_dim.  kHeads: query heads a warp.  The rest as at the kernels below.
template <typename F, int kHeadDim, int kHeads>
__device__ __forceinline__ void attend(const float* qkv, const Step* step, const CacheState* cache, float* out,
                                       unsigned* counters, float2* partial_stats, float* partial_values, int64_t extent,
                                       int64_t temperature_floor, int mask, int group, int any_head_dim, float scale, int qk_norm,
                                       float qk_norm_eps, float temperature_scale) {
    constexpr int kLanes = kHeadDim ? kHeadDim / 8 : 32;  // that share a key
    constexpr int kAtOnce = 32 / kLanes;                  // keys that the warp looks at at once
    constexpr int kTurns = kStepKeys / kAtOnce;
    constexpr int kStages = decode_stages(kHeadDim, F::kBytes);
    constexpr int kCopy = kHeadDim == 0 && F::kBytes == 1 && !F::kScaled ? 8 : 16;  // rows are multiples of it
    const int head_dim = kHeadDim ? kHeadDim : any_head_dim;
    const int units = head_dim / 8, row_bytes = head_dim * F::kBytes, blocks = F::kScaled ? head_dim / 32 : 0;

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, sub = lane / kLanes, unit = lane % kLanes;
    const bool has_unit = kHeadDim || unit < units;
    const int sharing = head_sets(group), head_set = warp % sharing, key_set = warp / sharing;
    const int sets = static_cast<int>(blockDim.x) / 32 / sharing;
    const int heads_of_set = (group + sharing - 1) / sharing, first_head = head_set * heads_of_set;
    const int heads_here = min(heads_of_set, group - first_head);

    extern __shared__ uint4 shared[];
    constexpr int kWarpBytes = 32 * sizeof(float);
    const int stage = stage_bytes(head_dim, F::kBytes, F::kScaled);
    float* const probabilities = reinterpret_cast<float*>(shared) + 32 * warp;  // [kStepKeys][4]
    char* const stages = reinterpret_cast<char*>(shared) + kWarpBytes * (blockDim.x / 32) + key_set * kStages * stage;

    let_successor_start();
    wait_for_predecessor();
    const Step this_step = load_whole(step);
    const CacheState state = load_whole(cache);
    const int row = static_cast<int>(blockIdx.z), kv_head = static_cast<int>(blockIdx.y), kv_heads = static_cast<int>(gridDim.y);
    if (row >= this_step.rows) return;
    const int64_t position = this_step.position + row;
    const int capacity = static_cast<int>(state.capacity);
    const KeyRange range = key_range(position, row, this_step.start, capacity, mask, extent, sets);
    if (range.count <= 0) return;
    float query_scale = scale * kLog2E;
    if (temperature_scale != 0.0f)
        query_scale *= logf(static_cast<float>((position + 1) / temperature_floor + 1)) * temperature_scale + 1.0f;

    const int64_t qkv_row = int64_t{group + 2} * kv_heads * head_dim;
    const int64_t cache_row = int64_t{kv_head} * capacity;
    Plane planes[2];  // keys, values
    planes[0].rows = reinterpret_cast<char*>(state.keys) + cache_row * row_bytes;
    planes[1].rows = reinterpret_cast<char*>(state.values) + cache_row * row_bytes;
    if constexpr (F::kScaled) {
        planes[0].scales = reinterpret_cast<__half*>(state.key_scales) + cache_row * blocks;
        planes[1].scales = reinterpret_cast<__half*>(state.value_scales) + cache_row * blocks;
    }

    // Keys and values of step `from / kStepKeys` to `to`, by the warps of this key set.
    const auto fetch = [&](int from, char* to) {
        const int left = range.count - from;
        int slot = range.slot + from;
        if (slot >= capacity) slot -= capacity;
        char* const to_values = to + kStepKeys * row_bytes;
        __half* const to_scales = reinterpret_cast<__half*>(to_values + kStepKeys * row_bytes);  // keys', then values'
        if (left >= kStepKeys && range.first_row + from + kStepKeys <= 0 && slot + kStepKeys <= capacity) {
            // Slots are neighbours: one piece of memory.
            const char* const keys = planes[0].rows + int64_t{slot} * row_bytes;
            const char* const values = planes[1].rows + int64_t{slot} * row_bytes;
            for (int i = (head_set * 32 + lane) * kCopy; i < kStepKeys * row_bytes; i += 32 * kCopy * sharing) {
                copy_async<kCopy>(to + i, keys + i);
                copy_async<kCopy>(to_values + i, values + i);
            }
            if constexpr (F::kScaled) {
                if constexpr (kHeadDim) {
                    if (head_set == 0 && lane < 2 * kStepKeys) {
                        const int at = lane % kStepKeys * blocks;
                        const __half* const scales = lane < kStepKeys ? planes[0].scales : planes[1].scales;
                        copy_async<kHeadDim / 16>(reinterpret_cast<char*>(to_scales + lane * blocks),
                                                  reinterpret_cast<const char*>(scales + int64_t{slot} * blocks + at));
                    }
                } else if (head_set == 0) {
                    for (int i = lane; i < kStepKeys * blocks; i += 32) {
                        to_scales[i] = planes[0].scales[int64_t{slot} * blocks + i];
                        to_scales[kStepKeys * blocks + i] = planes[1].scales[int64_t{slot} * blocks + i];
                    }
                }
            }
            return;
        }
        // The ring's end, keys of this step, or the end of the split: key by key.
#pragma unroll 1
        for (int first = head_set * kAtOnce; first < kStepKeys; first += sharing * kAtOnce) {
            const int key = first + sub, of_row = range.first_row + from + key;
            int64_t at = slot + key;
            if (at >= capacity) at -= capacity;
            const bool fresh = key < left && of_row >= 0 && has_unit;
            float x[2][8] = {};
            if (fresh) {
                const float* const of_key = qkv + of_row * qkv_row + (int64_t{group} * kv_heads + kv_head) * head_dim;
#pragma unroll
                for (int which = 0; which < 2; ++which)
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const float4 four = reinterpret_cast<const float4*>(of_key + int64_t{which} * kv_heads *
                                                                                         head_dim)[F::piece(unit, units, half)];
                        x[which][4 * half] = four.x, x[which][4 * half + 1] = four.y;
                        x[which][4 * half + 2] = four.z, x[which][4 * half + 3] = four.w;
                    }
            }
            const bool any_fresh = range.first_row + from + first + kAtOnce > 0 && first < left;  // the same for the whole warp
            if (any_fresh && qk_norm) {
                const float norm = norm_factor<kLanes>(x[0], head_dim, qk_norm_eps);
#pragma unroll
                for (int i = 0; i < 8; ++i) x[0][i] *= norm;
            }
#pragma unroll
            for (int which = 0; which < 2; ++which) {
                char* const to_row = (which ? to_values : to) + key * row_bytes;
                __half* const to_scale = to_scales + (which * kStepKeys + key) * blocks;
                char* const row_at = planes[which].rows + at * row_bytes;
                __half* const scale_at = F::kScaled ? planes[which].scales + at * blocks : nullptr;
                if (key >= left) {  // zeros, which meet probabilities of zero
                    if (has_unit) F::store(to_row, unit, units, typename F::Unit{});
                    if (F::kScaled && unit < blocks) to_scale[unit] = __ushort_as_half(0);
                } else if (of_row < 0) {
                    for (int i = unit * kCopy; i < row_bytes; i += kLanes * kCopy) copy_async<kCopy>(to_row + i, row_at + i);
                    if (F::kScaled && unit < blocks) to_scale[unit] = scale_at[unit];
                }
                if (any_fresh) {
                    __half block_scale = __ushort_as_half(0);
                    const typename F::Unit bits = F::narrow(x[which], &block_scale);
                    if (fresh) {
                        F::store(to_row, unit, units, bits);
                        if (F::kScaled && unit % 4 == 0) to_scale[unit / 4] = block_scale;
                        if (of_row == row) {
                            F::store(row_at, unit, units, bits);
                            if (F::kScaled && unit % 4 == 0) scale_at[unit / 4] = block_scale;
                        }
                    }
                }
            }
        }
    };

    // Of the lane's unit: the queries, and the sum of values under probabilities.
    float query[kHeads][8], result[kHeads][8];
#pragma unroll
    for (int h = 0; h < kHeads; ++h)
#pragma unroll
        for (int i = 0; i < 8; ++i) query[h][i] = result[h][i] = 0.0f;
    // After the sums are shared a lane has the score of head lane % 4 (or of the only one) with key my_key of the step.
    const int my_key = lane / 4 % kTurns * kAtOnce + sub;
    // highest: finite, so that scores of -infinity weigh nothing whatever they come before.  sum: of this lane's keys
    float highest = -FLT_MAX, sum = 0.0f;
    const int step_stride = kStepKeys * sets, begin = kStepKeys * key_set;
    int stage_of = 0, stage_to = 0;
    // The first kStages - 1 turns only fetch.
    for (int at = begin - (kStages - 1) * step_stride; at < range.count; at += step_stride) {
        if (at == begin) {  // the first keys are under way: time for the queries
#pragma unroll
            for (int h = 0; h < kHeads; ++h) {
                if (h < heads_here && has_unit) {
                    const int64_t head = int64_t{kv_head} * group + first_head + h;
                    const float4* const from = reinterpret_cast<const float4*>(qkv + row * qkv_row + head * head_dim);
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const float4 four = from[F::piece(unit, units, half)];
                        query[h][4 * half] = four.x, query[h][4 * half + 1] = four.y;
                        query[h][4 * half + 2] = four.z, query[h][4 * half + 3] = four.w;
                    }
                }
            }
#pragma unroll
            for (int h = 0; h < kHeads; ++h) {
                float factor = query_scale;
                if (qk_norm) {
                    factor *= norm_factor<kLanes>(query[h], head_dim, qk_norm_eps);
                }
#pragma unroll
                for (int i = 0; i < 8; ++i) query[h][i] *= factor;
            }
        }
        if (at >= begin) {
            wait_for_copies<kStages - 2>();
            // Everyone's copies of this step are there, and everyone is through with the step before it.
            if (sharing == 1)
                __syncwarp();
            else
                asm volatile("bar.sync %0, %1;" ::"r"(1 + key_set), "r"(32 * sharing) : "memory");
        }
        const int next = at + (kStages - 1) * step_stride;
        if (next < range.count) fetch(next, stages + stage_to * stage);
        stage_to = stage_to == kStages - 1 ? 0 : stage_to + 1;
        end_copies();
        if (at < begin) continue;
        const char* const keys = stages + stage_of * stage;
        const char* const values = keys + kStepKeys * row_bytes;
        const __half* const scales = reinterpret_cast<const __half*>(values + kStepKeys * row_bytes);
        stage_of = stage_of == kStages - 1 ? 0 : stage_of + 1;

        float sums[kTurns * kHeads];
#pragma unroll
        for (int turn = 0; turn < kTurns; ++turn) {
            const int key = turn * kAtOnce + sub;
            typename F::Unit bits{};
            float x[8];
            if (has_unit) bits = F::load(keys + key * row_bytes, unit, units);
            F::widen(bits, x);
            float key_scale = 1.0f;
            if constexpr (F::kScaled) {
                if (has_unit) key_scale = __half2float(scales[key * blocks + unit / 4]);
            }
#pragma unroll
            for (int h = 0; h < kHeads; ++h) {
                float dot = query[h][0] * x[0];
#pragma unroll
                for (int i = 1; i < 8; ++i) dot = fmaf(query[h][i], x[i], dot);
                sums[turn * kHeads + h] = F::kScaled ? dot * key_scale : dot;
            }
        }
        const float score = share_sums<kLanes, kTurns * kHeads>(sums, lane);
        const float masked = my_key < range.count - at ? score : -INFINITY;
        float now = masked;
#pragma unroll
        for (int width = 4; width < 32; width *= 2) now = fmaxf(now, __shfl_xor_sync(kWholeWarp, now, width));
        now = fmaxf(now, highest);
        const float fade = exp2_fast(highest - now), probability = exp2_fast(masked - now);
        sum = fmaf(sum, fade, probability);
        probabilities[lane] = probability;
        if (__any_sync(kWholeWarp, now != highest)) {
#pragma unroll
            for (int h = 0; h < kHeads; ++h) {
                const float of_head = __shfl_sync(kWholeWarp, fade, h);
#pragma unroll
                for (int i = 0; i < 8; ++i) result[h][i] *= of_head;
            }
        }
        highest = now;
        __syncwarp();

#pragma unroll
        for (int turn = 0; turn < kTurns; ++turn) {
            const int key = turn * kAtOnce + sub;
            typename F::Unit bits{};
            float x[8], weight[kHeads];
            if (has_unit) bits = F::load(values + key * row_bytes, unit, units);
            F::widen(bits, x);
            const float* const from = probabilities + 4 * (sub * kTurns + turn);
            if constexpr (kHeads == 4) {
                const float4 four = *reinterpret_cast<const float4*>(from);
                weight[0] = four.x, weight[1] = four.y, weight[2] = four.z, weight[3] = four.w;
            } else {
                weight[0] = *from;
            }
            if constexpr (F::kScaled) {
                const float value_scale = has_unit ? __half2float(scales[(kStepKeys + key) * blocks + unit / 4]) : 0.0f;
#pragma unroll
                for (int h = 0; h < kHeads; ++h) weight[h] *= value_scale;
            }
#pragma unroll
            for (int h = 0; h < kHeads; ++h)
#pragma unroll
                for (int i = 0; i < 8; ++i) result[h][i] = fmaf(weight[h], x[i], result[h][i]);
        }
    }

    // Key sets, in ascending order.
    __syncthreads();  // everyone is through with its steps, whose memory the results take
    const int half = result_half(head_dim);
    float4* const results = reinterpret_cast<float4*>(shared);                           // [sets][group][2][half]
    float2* const stats = reinterpret_cast<float2*>(results + sets * group * 2 * half);  // [sets][group]: highest, sum
#pragma unroll
    for (int width = 4; width < 32; width *= 2) sum += __shfl_xor_sync(kWholeWarp, sum, width);
    if (lane < heads_here) stats[key_set * group + first_head + lane] = make_float2(highest, sum);
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
#pragma unroll
        for (int width = kLanes; width < 32; width *= 2)
#pragma unroll
            for (int i = 0; i < 8; ++i) result[h][i] += __shfl_xor_sync(kWholeWarp, result[h][i], width);
        if (h < heads_here && sub == 0 && has_unit) {
            float4* const to = results + (key_set * group + first_head + h) * 2 * half;
            to[unit] = make_float4(result[h][0], result[h][1], result[h][2], result[h][3]);
            to[half + unit] = make_float4(result[h][4], result[h][5], result[h][6], result[h][7]);
        }
    }
    __syncthreads();                  // results of every warp
    const int pieces = head_dim / 4;  // of 4 elements
    const int64_t of_row = int64_t{row} * kv_heads + kv_head;
    float4* const out_pieces = reinterpret_cast<float4*>(out + of_row * group * head_dim);  // [group][pieces]
    float2* const all_stats = partial_stats + of_row * gridDim.x * group;                   // [group][splits]
    float4* const all_values =
        reinterpret_cast<float4*>(partial_values + of_row * gridDim.x * group * head_dim);  // [splits][group][pieces]
    for (int i = threadIdx.x; i < group * pieces; i += blockDim.x) {
        const int h = i / pieces, piece = i % pieces;
        const int at = F::kHalves ? piece < units ? piece : half + piece - units : piece % 2 * half + piece / 2;
        const float4* const from = results + h * 2 * half + at;
        float most = -INFINITY, total = 0.0f;
        for (int s = 0; s < sets; ++s) most = fmaxf(most, stats[s * group + h].x);
        float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        for (int s = 0; s < sets; ++s) {
            const float2 of_set = stats[s * group + h];
            const float weight = exp2_fast(of_set.x - most);
            const float4 four = from[s * group * 2 * half];
            total = fmaf(weight, of_set.y, total);
            value.x = fmaf(weight, four.x, value.x), value.y = fmaf(weight, four.y, value.y);
            value.z = fmaf(weight, four.z, value.z), value.w = fmaf(weight, four.w, value.w);
        }
        if (range.used_splits == 1) {
            const float inverse = 1.0f / total;
            out_pieces[i] = make_float4(value.x * inverse, value.y * inverse, value.z * inverse, value.w * inverse);
        } else {
            all_values[int64_t{blockIdx.x} * group * pieces + i] = value;
            if (piece == 0) all_stats[h * gridDim.x + blockIdx.x] = make_float2(most, total);
        }
    }
    if (range.used_splits == 1) return;

    // Splits, in ascending order, by the block that arrives last: it finds the counter one short, and the counter is 0 again.
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        const unsigned before_last = range.used_splits - 1;
        last = atomicInc(counters + of_row, before_last) == before_last;
        __threadfence();
    }
    __syncthreads();
    if (!last) return;
    constexpr int kInFlight = 8;  // values of so many splits
    for (int h = warp; h < group; h += static_cast<int>(blockDim.x) / 32) {
        const auto stats_of = [&](int split) {
            return split < range.used_splits ? __ldcg(all_stats + h * gridDim.x + split) : make_float2(-INFINITY, 0.0f);
        };
        for (int first = 0; first < pieces; first += 32) {
            const int piece = first + lane;
            float4 values[kInFlight];
            const auto load_values = [&](int split) {
#pragma unroll
                for (int i = 0; i < kInFlight; ++i)
                    if (split + i < range.used_splits && piece < pieces)
                        values[i] = __ldcg(all_values + int64_t{split + i} * group * pieces + h * pieces + piece);
            };
            load_values(0);
            float most = -INFINITY, total = 0.0f;
            for (int s = lane; s < range.used_splits; s += 32) most = fmaxf(most, stats_of(s).x);
            most = warp_max(most);
            float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            float weight = 0.0f;  // of the lane's split
            for (int split = 0; split < range.used_splits; split += kInFlight) {
                if (split % 32 == 0) {
                    const float2 of_split = stats_of(split + lane);
                    weight = exp2_fast(of_split.x - most);
                    total = fmaf(weight, of_split.y, total);
                }
#pragma unroll
                for (int i = 0; i < kInFlight; ++i) {
                    const float of_split = __shfl_sync(kWholeWarp, weight, split % 32 + i);
                    if (split + i < range.used_splits) {
                        value.x = fmaf(of_split, values[i].x, value.x), value.y = fmaf(of_split, values[i].y, value.y);
                        value.z = fmaf(of_split, values[i].z, value.z), value.w = fmaf(of_split, values[i].w, value.w);
                    }
                }
                load_values(split + kInFlight);
            }
            const float inverse = 1.0f / warp_sum(total);
            if (piece < pieces)
                out_pieces[h * pieces + piece] =
                    make_float4(value.x * inverse, value.y * inverse, value.z * inverse, value.w * inverse);
        }
    }
}

}  // namespace

// attention_decode_{format}_{head_dim or any}_{query heads a warp}: rows 0 to step->rows of out.
//
//   qkv             [max_rows, (heads + 2 kv_heads) * head_dim]
//   step, cache     [1]; of the cache the slots of the rows' positions are written
//   out             [max_rows, heads * head_dim]
//   counters        [max_rows, kv_heads], 0 between launches
//   partial_stats   [max_rows, kv_heads, group, splits], of a split the highest score, in units of log2, and the sum
//   partial_values  [max_rows, kv_heads, splits, group, head_dim]
//
// PRECOND: grid (splits, kv_heads, max_rows), block (32 * head_sets(group) * decode_key_sets(...)), decode_shared_bytes(...)
//
// PRECOND: group <= kMaxGroup; head_dim % 8 == 0 (q8_0: 32), <= kMaxHeadDim; all arrays but step, cache and counters on 16 bytes
//
// PRECOND: 0 <= start <= position; a capacity of at least the mask's extent and the step's rows, or of the whole context
#define LLAMA_EXT_DECODE_KERNEL(name, F, kHeadDim, kHeads)                                                                     \
    extern "C" __global__ void __launch_bounds__(32 * kDecodeWarps, decode_blocks(kHeadDim, F::kBytes))                        \
        attention_decode_##name##_##kHeads(const float* qkv, const Step* step, const CacheState* cache, float* out,            \
                                           unsigned* counters, float2* partial_stats, float* partial_values, int64_t extent,   \
                                           int64_t temperature_floor, int mask, int group, int head_dim, float scale,          \
                                           int qk_norm, float qk_norm_eps, float temperature_scale) {                          \
        attend<F, kHeadDim, kHeads>(qkv, step, cache, out, counters, partial_stats, partial_values, extent, temperature_floor, \
                                    mask, group, head_dim, scale, qk_norm, qk_norm_eps, temperature_scale);                    \
    }
#define LLAMA_EXT_DECODE_KERNELS(name, F)          \
    LLAMA_EXT_DECODE_KERNEL(name##_64, F, 64, 1)   \
    LLAMA_EXT_DECODE_KERNEL(name##_64, F, 64, 4)   \
    LLAMA_EXT_DECODE_KERNEL(name##_128, F, 128, 1) \
    LLAMA_EXT_DECODE_KERNEL(name##_128, F, 128, 4) \
    LLAMA_EXT_DECODE_KERNEL(name##_any, F, 0, 1)   \
    LLAMA_EXT_DECODE_KERNEL(name##_any, F, 0, 4)

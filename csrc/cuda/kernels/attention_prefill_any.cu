// Attention of many rows without tensor cores: for a cache in float32, and for any head_dim.
//
// A block has kAnyQueries queries of a key-value head, a warp four of them. Tiles of 32 keys and values lie in shared memory as
// float32. Scores: a lane has a key. Values: a lane has pairs of elements. The softmax is online, in float32, to the base 2.
#include "cuda/kernels/attention_format.cuh"
#include "cuda/kernels/attention_prefill.cuh"

namespace {

constexpr int kOfWarp = kAnyQueries / kPrefillWarps;

// A tile's keys or values as float32, zeros behind the block's last key.
// plane [capacity][head_dim], scales [capacity][head_dim / 32] of this head -> tile [kAnyKeys][any_row]
template <typename F>
__device__ __forceinline__ void widen_tile(const char* plane, const __half* scales, const Queries& queries, int from, int head_dim,
                                           float4* tile) {
    const int units = head_dim / 8;
    for (int i = threadIdx.x; i < kAnyKeys * units; i += 32 * kPrefillWarps) {
        const int key = i / units, unit = i % units;
        float x[8] = {};
        if (from + key < queries.count) {
            const int64_t slot = queries.slot_of(from + key);
            F::widen(F::load(plane + slot * head_dim * F::kBytes, unit, units), x);
            if constexpr (F::kScaled) {
                const float scale = __half2float(scales[slot * (units / 4) + unit / 4]);
#pragma unroll
                for (int j = 0; j < 8; ++j) x[j] *= scale;
            }
        }
        float4* const row = tile + key * any_row(head_dim);
        row[F::piece(unit, units, 0)] = make_float4(x[0], x[1], x[2], x[3]);
        row[F::piece(unit, units, 1)] = make_float4(x[4], x[5], x[6], x[7]);
    }
}

__device__ __forceinline__ float dot(float4 a, float4 b, float sum) {
    return fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, fmaf(a.w, b.w, sum))));
}

template <typename F>
__device__ __forceinline__ void attend(const float* qkv, const Step* step, const CacheState* cache, float* out, int64_t extent,
                                       int64_t temperature_floor, int mask, int group, int head_dim, float scale, int qk_norm,
                                       float qk_norm_eps, float temperature_scale) {
    constexpr int kPairs = kMaxHeadDim / 64;  // of elements, a lane
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, kv_head = blockIdx.x, kv_heads = gridDim.x;
    const int fours = head_dim / 4;
    extern __shared__ float4 shared[];
    float4* const key_tile = shared;                                                               // [kAnyKeys][any_row]
    float4* const value_tile = key_tile + kAnyKeys * any_row(head_dim);                            // [kAnyKeys][any_row]
    float4* const query_rows = value_tile + kAnyKeys * any_row(head_dim) + warp * kOfWarp * fours;  // of the warp: [4][fours]
    float* const probabilities =
        reinterpret_cast<float*>(value_tile + kAnyKeys * any_row(head_dim) + kAnyQueries * fours) + warp * kOfWarp * kAnyKeys;

    let_successor_start();
    wait_for_predecessor();
    Queries queries;
    if (!queries.find(step, cache, kAnyQueries, group, mask, extent)) return;
    const int64_t first_row = kv_head * queries.capacity;  // of the head in the cache
    const char* const keys = reinterpret_cast<const char*>(cache->keys) + first_row * head_dim * F::kBytes;
    const char* const values = reinterpret_cast<const char*>(cache->values) + first_row * head_dim * F::kBytes;
    const __half* const key_scales = reinterpret_cast<const __half*>(cache->key_scales) + first_row * (head_dim / 32);
    const __half* const value_scales = reinterpret_cast<const __half*>(cache->value_scales) + first_row * (head_dim / 32);

    int low[kOfWarp], high[kOfWarp];
    float factor[kOfWarp], highest[kOfWarp], sum[kOfWarp];
    float2 result[kOfWarp][kPairs];
#pragma unroll
    for (int i = 0; i < kOfWarp; ++i) {
        const int query = queries.from + warp * kOfWarp + i;
        queries.range(query, group, mask, extent, &low[i], &high[i]);
        factor[i] = 0.0f, highest[i] = -INFINITY, sum[i] = 0.0f;
#pragma unroll
        for (int p = 0; p < kPairs; ++p) result[i][p] = make_float2(0.0f, 0.0f);
        float squares = 0.0f;
        if (query < queries.end) {
            const int64_t row = query / group, head = kv_head * group + query % group;
            const float4* const q =
                reinterpret_cast<const float4*>(qkv + (row * (group + 2) * kv_heads + head) * head_dim);
            for (int d = lane; d < fours; d += 32) {
                const float4 four = q[d];
                squares = dot(four, four, squares);
                query_rows[i * fours + d] = four;
            }
            factor[i] = scale * kLog2E * temperature(queries.position + row, temperature_scale, temperature_floor);
        } else {
            for (int d = lane; d < fours; d += 32) query_rows[i * fours + d] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
        if (qk_norm) factor[i] *= rsqrtf(warp_sum(squares) / static_cast<float>(head_dim) + qk_norm_eps);
    }

    for (int from = 0; from < queries.count; from += kAnyKeys) {
        __syncthreads();  // everyone is through with the tile before, and each warp's queries are there
        widen_tile<F>(keys, key_scales, queries, from, head_dim, key_tile);
        widen_tile<F>(values, value_scales, queries, from, head_dim, value_tile);
        __syncthreads();
        float score[kOfWarp] = {};
        const float4* const key = key_tile + lane * any_row(head_dim);
        for (int d = 0; d < fours; ++d) {
#pragma unroll
            for (int i = 0; i < kOfWarp; ++i) score[i] = dot(key[d], query_rows[i * fours + d], score[i]);
        }
#pragma unroll
        for (int i = 0; i < kOfWarp; ++i) {
            const bool seen = from + lane >= low[i] && from + lane <= high[i];
            score[i] = seen ? score[i] * factor[i] : -INFINITY;
            const float before = highest[i];
            highest[i] = fmaxf(before, warp_max(score[i]));
            const float base = highest[i] == -INFINITY ? 0.0f : highest[i];  // no key was seen yet
            const float kept = exp2_of(before - base), probability = exp2_of(score[i] - base);
            sum[i] = fmaf(sum[i], kept, probability);
            probabilities[i * kAnyKeys + lane] = probability;
#pragma unroll
            for (int p = 0; p < kPairs; ++p) result[i][p].x *= kept, result[i][p].y *= kept;
        }
        __syncwarp();
        for (int k = 0; k < kAnyKeys; ++k) {
            const float2* const value = reinterpret_cast<const float2*>(value_tile + k * any_row(head_dim));
#pragma unroll
            for (int p = 0; p < kPairs; ++p) {
                if (64 * p + 2 * lane < head_dim) {
                    const float2 pair = value[32 * p + lane];
#pragma unroll
                    for (int i = 0; i < kOfWarp; ++i) {
                        result[i][p].x = fmaf(probabilities[i * kAnyKeys + k], pair.x, result[i][p].x);
                        result[i][p].y = fmaf(probabilities[i * kAnyKeys + k], pair.y, result[i][p].y);
                    }
                }
            }
        }
    }

#pragma unroll
    for (int i = 0; i < kOfWarp; ++i) {
        const int query = queries.from + warp * kOfWarp + i;
        const float total = warp_sum(sum[i]);
        if (query >= queries.end) continue;
        const int64_t row = query / group, head = kv_head * group + query % group;
        float2* const to = reinterpret_cast<float2*>(out + (row * group * kv_heads + head) * head_dim);
#pragma unroll
        for (int p = 0; p < kPairs; ++p) {
            if (64 * p + 2 * lane < head_dim)
                to[32 * p + lane] = make_float2(result[i][p].x / total, result[i][p].y / total);
        }
    }
}

}  // namespace

// attention_prefill_any_{format of the cache}: qkv [max_rows, (heads + 2 kv_heads) * head_dim], step [1], cache [1], which holds
//   the step's keys and values already -> out [max_rows, heads * head_dim]
// PRECOND: grid (kv_heads, ceil(max_rows * group / kAnyQueries)), block (32 * kPrefillWarps), shared any_shared_bytes(head_dim);
//          head_dim % 8 == 0 (q8_0: % 32), <= kMaxHeadDim; qkv and the cache on 16 bytes, out on 8; every key that the mask shows
//          a row of the step still lies in the cache
#define LLAMA_EXT_PREFILL(format, F)                                                                                              \
    extern "C" __global__ void __launch_bounds__(32 * kPrefillWarps, 2) attention_prefill_any_##format(                           \
        const float* qkv, const Step* step, const CacheState* cache, float* out, int64_t extent, int64_t temperature_floor,       \
        int mask, int group, int head_dim, float scale, int qk_norm, float qk_norm_eps, float temperature_scale) {                \
        attend<F>(qkv, step, cache, out, extent, temperature_floor, mask, group, head_dim, scale, qk_norm, qk_norm_eps,           \
                  temperature_scale);                                                                                             \
    }

LLAMA_EXT_PREFILL(f32, F32Cache)
LLAMA_EXT_PREFILL(f16, F16Cache)
LLAMA_EXT_PREFILL(bf16, Bf16Cache)
LLAMA_EXT_PREFILL(q8_0, Q8Cache)
LLAMA_EXT_PREFILL(fp8, Fp8Cache)

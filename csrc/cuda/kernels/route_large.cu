// A router for more than 16 rows, in four launches: RMSNorm, logits, each row's experts and scores, the rows sorted by expert.
#include "cuda/kernels/grouping.cuh"
#include "cuda/kernels/route.cuh"
#include "cuda/kernels/step.h"

namespace {

using namespace llama_ext::cuda;

// A thread of a tile, 16 by 8 of them, has 4 experts by 4 rows.
constexpr int kTileCols = 32;  // at a time
// Rows of a tile lie so that 8 neighbouring ones meet all banks with 16 bytes each.
constexpr int kTileStride = kTileCols + 4;
constexpr int kPerThread = 4;
static_assert(kRouteTileThreads == kRouteTileExperts / kPerThread * kRouteTileRows / kPerThread);

struct Weights {
    const uint8_t *quants, *scales;
    int64_t row_bytes, cols;
};

// 4 columns of a row, from `column` on, a multiple of 4.
struct F32 {
    static __device__ __forceinline__ float4 load(const Weights& w, int64_t row, int64_t column) {
        return *reinterpret_cast<const float4*>(w.quants + row * w.row_bytes + 4 * column);
    }
};
template <float2 (*kWiden)(uint32_t)>
struct Halves {
    static __device__ __forceinline__ float4 load(const Weights& w, int64_t row, int64_t column) {
        const uint2 pairs = *reinterpret_cast<const uint2*>(w.quants + row * w.row_bytes + 2 * column);
        const float2 low = kWiden(pairs.x), high = kWiden(pairs.y);
        return make_float4(low.x, low.y, high.x, high.y);
    }
};
struct Q8_0 {
    static __device__ __forceinline__ float4 load(const Weights& w, int64_t row, int64_t column) {
        const uint32_t four = *reinterpret_cast<const uint32_t*>(w.quants + row * w.row_bytes + column);
        const float d = __half2float(*reinterpret_cast<const __half*>(w.scales + (row * w.cols + column) / 32 * 2));
        const auto weight = [&](int i) { return d * static_cast<float>(static_cast<int8_t>(four >> (8 * i))); };
        return make_float4(weight(0), weight(1), weight(2), weight(3));
    }
};

// A tile of rows against a tile of experts. The next columns come from memory while these are multiplied. A sum of kTileCols
// products is made first, then added.
template <typename Format>
__device__ __forceinline__ void logits_of_tile(const Weights& router, const Step* step, const float* n, float* logits,
                                               int experts) {
    __shared__ float4 rows_in[kRouteTileRows][kTileStride / 4], weights_in[kRouteTileExperts][kTileStride / 4];
    constexpr int kQuads = kTileCols / 4, kRowLoads = kRouteTileRows * kQuads / kRouteTileThreads,
                  kWeightLoads = kRouteTileExperts * kQuads / kRouteTileThreads;
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16, quad = threadIdx.x % kQuads, line = threadIdx.x / kQuads;
    const int first_row = blockIdx.x * kRouteTileRows, first_expert = blockIdx.y * kRouteTileExperts;
    const float4 zero = make_float4(0, 0, 0, 0);
    float4 row_held[kRowLoads], weight_held[kWeightLoads];
    const auto fetch_weights = [&](int64_t column) {
#pragma unroll
        for (int i = 0; i < kWeightLoads; ++i) {
            const int expert = first_expert + line + i * (kRouteTileThreads / kQuads);
            weight_held[i] = expert < experts && column < router.cols ? Format::load(router, expert, column) : zero;
        }
    };
    let_successor_start();
    fetch_weights(4 * quad);
    wait_for_predecessor();
    const int rows = step->rows;
    if (first_row >= rows) return;
    const auto fetch_rows = [&](int64_t column) {
#pragma unroll
        for (int i = 0; i < kRowLoads; ++i) {
            const int row = first_row + line + i * (kRouteTileThreads / kQuads);
            row_held[i] =
                row < rows && column < router.cols ? *reinterpret_cast<const float4*>(n + row * router.cols + column) : zero;
        }
    };
    fetch_rows(4 * quad);
    float sums[kPerThread][kPerThread] = {};
    for (int64_t column = 0; column < router.cols; column += kTileCols) {
        if (column) __syncthreads();  // the tiles before are used
#pragma unroll
        for (int i = 0; i < kRowLoads; ++i) rows_in[line + i * (kRouteTileThreads / kQuads)][quad] = row_held[i];
#pragma unroll
        for (int i = 0; i < kWeightLoads; ++i) weights_in[line + i * (kRouteTileThreads / kQuads)][quad] = weight_held[i];
        __syncthreads();  // the tiles are there
        fetch_weights(column + kTileCols + 4 * quad);
        fetch_rows(column + kTileCols + 4 * quad);
        float part[kPerThread][kPerThread] = {};
#pragma unroll 2
        for (int q = 0; q < kQuads; ++q) {
            float4 r[kPerThread], w[kPerThread];
#pragma unroll
            for (int i = 0; i < kPerThread; ++i) r[i] = rows_in[ty + 8 * i][q];
#pragma unroll
            for (int i = 0; i < kPerThread; ++i) w[i] = weights_in[tx + 16 * i][q];
#pragma unroll
            for (int i = 0; i < kPerThread; ++i) {
#pragma unroll
                for (int j = 0; j < kPerThread; ++j) {
                    part[i][j] = fmaf(r[i].x, w[j].x, part[i][j]);
                    part[i][j] = fmaf(r[i].y, w[j].y, part[i][j]);
                    part[i][j] = fmaf(r[i].z, w[j].z, part[i][j]);
                    part[i][j] = fmaf(r[i].w, w[j].w, part[i][j]);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < kPerThread; ++i) {
#pragma unroll
            for (int j = 0; j < kPerThread; ++j) sums[i][j] += part[i][j];
        }
    }
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
        const int row = first_row + ty + 8 * i;
#pragma unroll
        for (int j = 0; j < kPerThread; ++j) {
            const int expert = first_expert + tx + 16 * j;
            if (row < rows && expert < experts) logits[static_cast<int64_t>(row) * experts + expert] = sums[i][j];
        }
    }
}

}  // namespace

// x [max_rows, hidden], norm [hidden] -> n [max_rows, hidden]; counts [kRouteExperts] = 0
// PRECOND: grid (max_rows), block (256); hidden % 4 == 0; x, norm and n on 16 bytes
extern "C" __global__ void __launch_bounds__(kRouteThreads)
    route_large_norm(const float* x, const float* norm, const Step* step, float* n, int32_t* counts, int64_t hidden, float eps) {
    __shared__ float of_warp[kRouteThreads / 32];
    const int64_t row = blockIdx.x, quads = hidden / 4;
    let_successor_start();
    wait_for_predecessor();
    if (row >= step->rows) return;
    if (row == 0) counts[threadIdx.x] = 0;
    const float4* from = reinterpret_cast<const float4*>(x) + row * quads;
    float squares = 0.0f;
    for (int64_t i = threadIdx.x; i < quads; i += kRouteThreads) {
        const float4 v = from[i];
        squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    squares = warp_sum(squares);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = squares;
    __syncthreads();  // sums of warps are there
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kRouteThreads / 32; ++w) sum += of_warp[w];
    const float scale = rsqrtf(sum / static_cast<float>(hidden) + eps);
    for (int64_t i = threadIdx.x; i < quads; i += kRouteThreads) {
        const float4 v = from[i], w = reinterpret_cast<const float4*>(norm)[i];
        reinterpret_cast<float4*>(n)[row * quads + i] =
            make_float4(v.x * scale * w.x, v.y * scale * w.y, v.z * scale * w.z, v.w * scale * w.w);
    }
}
static_assert(kRouteThreads == kRouteExperts && kRouteThreads == 32 * kGroupingWarps);

// router [experts, hidden]: quants and scales are its planes (packed.h); n [max_rows, hidden] -> logits [max_rows, experts]
// PRECOND: grid (ceil(max_rows / kRouteTileRows), ceil(experts / kRouteTileExperts)), block (128); hidden % 4 == 0 (q8_0: % 32);
//          n on 16 bytes
#define ROUTE_LOGITS(name, Format, bytes_of_row)                                                                            \
    extern "C" __global__ void __launch_bounds__(kRouteTileThreads)                                                         \
        name(const uint8_t* quants, const uint8_t* scales, const Step* step, const float* n, float* logits, int64_t hidden, \
             int experts) {                                                                                                 \
        logits_of_tile<Format>({quants, scales, bytes_of_row, hidden}, step, n, logits, experts);                           \
    }

ROUTE_LOGITS(route_large_logits_f32, F32, 4 * hidden)
ROUTE_LOGITS(route_large_logits_bf16, Halves<widen_bf16>, (2 * hidden + 15) / 16 * 16)
ROUTE_LOGITS(route_large_logits_f16, Halves<widen_f16>, (2 * hidden + 15) / 16 * 16)
ROUTE_LOGITS(route_large_logits_q8_0, Q8_0, hidden)

// logits [max_rows, experts] -> chosen, scores [max_rows, top_k]; counts [experts]: how often each was chosen, 0 before. A sum of
// integers, so it is the same in whatever order they arrive.
// PRECOND: grid (ceil(max_rows / kRouteChooseRows)), block (32 * kRouteChooseRows); experts <= kRouteExperts
extern "C" __global__ void __launch_bounds__(32 * kRouteChooseRows)
    route_large_choose(const float* logits, const Step* step, int32_t* chosen, float* scores, int32_t* counts, int experts,
                       int top_k, int scoring) {
    const int64_t row = int64_t{blockIdx.x} * kRouteChooseRows + threadIdx.x / 32;
    let_successor_start();
    wait_for_predecessor();
    if (row >= step->rows) return;
    logits += row * experts;
    chosen += row * top_k;
    choose(logits, experts, top_k, [&](int i, int expert) {
        if (threadIdx.x % 32 == 0) {
            chosen[i] = expert;
            atomicAdd(counts + expert, 1);
        }
    });
    __syncwarp();
    score(top_k, scoring, [&](int i) { return logits[chosen[i]]; }, [&](int i, float value) { scores[row * top_k + i] = value; });
}

// chosen, scores [max_rows, top_k], counts [experts] -> with `entries` = max_rows * (top_k + shared):
// count [1], expert [groups], first [groups + 1], row [entries], score [entries], entry [max_rows, top_k + shared]
// A block has an expert, the last one what concerns them all.
// PRECOND: grid (experts + 1), block (32 * kGroupingWarps); experts <= kRouteExperts
extern "C" __global__ void __launch_bounds__(32 * kGroupingWarps, 1)
    route_large_sort(const int32_t* chosen, const float* scores, const int32_t* counts, const Step* step, int32_t* count,
                     int32_t* expert, int32_t* first, int32_t* row, float* score, int32_t* entry, int experts, int top_k,
                     int shared) {
    __shared__ int of_warp[2][kGroupingWarps], places[kGroupingWarps];
    const int warp = threadIdx.x / 32, own = blockIdx.x;
    let_successor_start();
    wait_for_predecessor();
    const int64_t rows = step->rows;
    // How many groups and entries come before this expert's.
    const unsigned here = threadIdx.x < own && threadIdx.x < experts ? counts[threadIdx.x] : 0;
    const unsigned groups_of_warp = __popc(__ballot_sync(kWholeWarp, here != 0));
    const unsigned entries_of_warp = __reduce_add_sync(kWholeWarp, here);
    if (threadIdx.x % 32 == 0) {
        of_warp[0][warp] = static_cast<int>(groups_of_warp);
        of_warp[1][warp] = static_cast<int>(entries_of_warp);
    }
    __syncthreads();  // sums of warps are there
    int group = 0, begin = 0;
#pragma unroll
    for (int w = 0; w < kGroupingWarps; ++w) {
        group += of_warp[0][w];
        begin += of_warp[1][w];
    }
    const int passes = top_k + shared;
    if (own == experts) {
        if (threadIdx.x == 0) {
            first[group] = begin;
            if (shared) {
                expert[group] = experts;
                first[group + 1] = begin + static_cast<int>(rows);
            }
            *count = group + shared;
        }
        for (int64_t r = threadIdx.x; shared && r < rows; r += blockDim.x) {
            row[begin + r] = static_cast<int>(r);
            score[begin + r] = 1.0f;
            entry[r * passes + top_k] = static_cast<int>(begin + r);
        }
        return;
    }
    if (counts[own] == 0) return;
    if (threadIdx.x == 0) {
        expert[group] = own;
        first[group] = begin;
    }
    place_choices(chosen, rows * top_k, own, places, [&](int64_t i, int64_t n) {
        const int64_t r = i / top_k;
        row[begin + n] = static_cast<int>(r);
        score[begin + n] = scores[i];
        entry[r * passes + i % top_k] = static_cast<int>(begin + n);
    });
}

// A router for up to 16 rows, in one launch: RMSNorm, logits, each row's experts and scores, the rows sorted by expert.
//
// A block has one expert: its logits of every row, in one pass over the row of weights, which is fetched before the wait for the
// kernel that makes x. RMSNorm's factor is common to a row, so it multiplies the sum, and each block has it from the same pass
// over x. Each block also writes a slice of n. The last block to arrive chooses and sorts. Sums run in an order that depends on
// hidden alone.
#include "cuda/kernels/route.cuh"
#include "cuda/kernels/step.h"

namespace {

using namespace llama_ext::cuda;

constexpr int kWarps = kRouteThreads / 32;

// volatile: stays above the wait for the predecessor.
__device__ __forceinline__ uint4 load_constant(const void* at) {
    uint4 w;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w) : "l"(at));
    return w;
}

// Weights come in pieces of 8 columns, the last of which may be half a one. quants and scales: of the expert's row.
struct F32 {
    uint4 low, high;
    __device__ __forceinline__ void load(const uint8_t* quants, const uint8_t*, int64_t column, bool whole) {
        low = load_constant(quants + 4 * column);
        high = whole ? load_constant(quants + 4 * column + 16) : make_uint4(0, 0, 0, 0);
    }
    __device__ __forceinline__ void widen(float* w) const {
        const uint32_t bits[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int i = 0; i < 8; ++i) w[i] = __uint_as_float(bits[i]);
    }
};

template <float2 (*kWiden)(uint32_t)>
struct Halves {
    uint4 pairs;  // padded with zeros
    __device__ __forceinline__ void load(const uint8_t* quants, const uint8_t*, int64_t column, bool) {
        pairs = load_constant(quants + 2 * column);
    }
    __device__ __forceinline__ void widen(float* w) const {
        const uint32_t bits[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float2 two = kWiden(bits[i]);
            w[2 * i] = two.x;
            w[2 * i + 1] = two.y;
        }
    }
};
using BF16 = Halves<widen_bf16>;
using F16 = Halves<widen_f16>;

struct Q8_0 {
    uint2 bytes;
    uint16_t scale;
    __device__ __forceinline__ void load(const uint8_t* quants, const uint8_t* scales, int64_t column, bool) {
        asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(bytes.x), "=r"(bytes.y) : "l"(quants + column));
        asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(scale) : "l"(scales + column / 32 * 2));
    }
    __device__ __forceinline__ void widen(float* w) const {
        const float d = __half2float(__ushort_as_half(scale));
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const uint32_t word = i < 4 ? bytes.x : bytes.y;
            w[i] = __fmul_rn(d, static_cast<float>(static_cast<int8_t>(word >> (8 * (i % 4)))));
        }
    }
};

// A piece of weights and of the norm's, on their way.
template <typename Weights>
struct Piece {
    Weights weights;
    uint4 norm_low, norm_high;
    __device__ __forceinline__ void load(const uint8_t* quants, const uint8_t* scales, const float* norm, int64_t column,
                                         bool whole) {
        weights.load(quants, scales, column, whole);
        norm_low = load_constant(norm + column);
        norm_high = whole ? load_constant(norm + column + 4) : make_uint4(0, 0, 0, 0);
    }
    __device__ __forceinline__ void widen(float* w) const {
        const uint32_t norm[8] = {norm_low.x,  norm_low.y,  norm_low.z,  norm_low.w,
                                  norm_high.x, norm_high.y, norm_high.z, norm_high.w};
        weights.widen(w);
#pragma unroll
        for (int i = 0; i < 8; ++i) w[i] = __fmul_rn(w[i], __uint_as_float(norm[i]));
    }
};

struct Sums {
    float product, squares;  // of weights and x, of x
};

__device__ __forceinline__ void add(const float* w, float4 low, float4 high, Sums* sums) {
    const float x[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        sums->product = fmaf(w[i], x[i], sums->product);
        sums->squares = fmaf(x[i], x[i], sums->squares);
    }
}

__device__ __forceinline__ float factor(float squares, int64_t hidden, float eps) {
    return rsqrtf(squares / static_cast<float>(hidden) + eps);
}

struct Groups {
    int32_t *count, *expert, *first, *row;
    float* score;
    int32_t* entry;
};

// One row: its experts in ascending order are its groups. By one warp.
__device__ __forceinline__ void sort_one(const float* logits, int experts, int top_k, int scoring, int shared, Groups to) {
    __shared__ int32_t chosen[kRouteExperts];
    const int lane = threadIdx.x % 32;
    choose(logits, experts, top_k, [&](int i, int expert) {
        if (lane == 0) chosen[i] = expert;
    });
    __syncwarp();
    score(
        top_k, scoring, [&](int i) { return __ldcg(logits + chosen[i]); },
        [&](int i, float value) {
            int place = 0;
            for (int j = 0; j < top_k; ++j) place += chosen[j] < chosen[i];
            to.expert[place] = chosen[i];
            to.first[place] = place;
            to.row[place] = 0;
            to.score[place] = value;
            to.entry[i] = place;
        });
    if (lane == 0) {
        const int groups = top_k + shared;
        if (shared) {
            to.expert[top_k] = experts;
            to.first[top_k] = top_k;
            to.row[top_k] = 0;
            to.score[top_k] = 1.0f;
            to.entry[top_k] = top_k;
        }
        to.first[groups] = groups;
        *to.count = groups;
    }
}

// Several rows, a bit each: an expert's rows are a word, and places follow from counting bits. By the block.
// rows_of [kRouteExperts]: zero
__device__ __forceinline__ void sort_several(const float* logits, int rows, int experts, int top_k, int scoring, int shared,
                                             uint32_t* rows_of, Groups to) {
    __shared__ uint16_t chosen[kRouteRows][kRouteExperts];
    __shared__ int32_t first_of[kRouteExperts], of_warp[kWarps];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int r = warp; r < rows; r += kWarps) {
        choose(logits + r * experts, experts, top_k, [&](int i, int expert) {
            if (lane == 0) {
                chosen[r][i] = static_cast<uint16_t>(expert);
                atomicOr(rows_of + expert, 1u << r);
            }
        });
    }
    __syncthreads();  // choices are there
    // Groups in the high half, entries in the low one: summed up together.
    const int expert = threadIdx.x;
    const uint32_t mine = rows_of[expert];
    const int here = (mine != 0) << 16 | __popc(mine);
    int upto = here;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const int before = __shfl_up_sync(kWholeWarp, upto, step);
        if (lane >= step) upto += before;
    }
    if (lane == 31) of_warp[warp] = upto;
    __syncthreads();  // sums of warps are there
    int total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
        if (w < warp) upto += of_warp[w];
        total += of_warp[w];
    }
    const int group = (upto - here) >> 16, first = (upto - here) & 0xffff;
    const int groups = total >> 16, entries = total & 0xffff;
    first_of[expert] = first;
    if (mine) {
        to.expert[group] = expert;
        to.first[group] = first;
    }
    if (threadIdx.x == 0) {
        if (shared) {
            to.expert[groups] = experts;
            to.first[groups] = entries;
        }
        to.first[groups + shared] = entries + shared * rows;
        *to.count = groups + shared;
    }
    __syncthreads();  // places are there
    for (int r = warp; r < rows; r += kWarps) {
        int32_t* entry = to.entry + r * (top_k + shared);
        score(
            top_k, scoring, [&](int i) { return __ldcg(logits + r * experts + chosen[r][i]); },
            [&](int i, float value) {
                const int e = chosen[r][i], place = first_of[e] + __popc(rows_of[e] & ((1u << r) - 1));
                to.row[place] = r;
                to.score[place] = value;
                entry[i] = place;
            });
        if (shared && lane == 0) {
            to.row[entries + r] = r;
            to.score[entries + r] = 1.0f;
            entry[top_k] = entries + r;
        }
    }
}

// kRows: the most there can be; kInFlight: pieces of weights under way
template <typename Weights, int kRows, int kInFlight>
__device__ __forceinline__ void route(const uint8_t* quants, const uint8_t* scales, const Step* step, const float* x,
                                      const float* norm, float* n, float* logits, uint32_t* arrived, int64_t hidden, float eps,
                                      int experts, int top_k, int scoring, int shared, Groups to) {
    __shared__ Sums of_warp[kWarps][kRows];
    __shared__ uint32_t rows_of[kRouteExperts];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64_t pieces = (hidden + 7) / 8;
    let_successor_start();
    Piece<Weights> in_flight[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
        const int64_t at = threadIdx.x + u * kRouteThreads;
        if (at < pieces) in_flight[u].load(quants, scales, norm, 8 * at, 8 * at + 4 < hidden);
    }
    if (kRows > 1) rows_of[threadIdx.x] = 0;
    wait_for_predecessor();
    const int rows = kRows == 1 ? 1 : step->rows;
    Sums sums[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) sums[r] = {0.0f, 0.0f};
    for (int64_t base = threadIdx.x; base < pieces; base += kInFlight * kRouteThreads) {
#pragma unroll
        for (int u = 0; u < kInFlight; ++u) {
            const int64_t at = base + u * kRouteThreads, next = at + kInFlight * kRouteThreads;
            if (at >= pieces) break;
            float w[8];
            in_flight[u].widen(w);
            if (next < pieces) in_flight[u].load(quants, scales, norm, 8 * next, 8 * next + 4 < hidden);
            const bool whole = 8 * at + 4 < hidden;
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
                if (r < rows) {
                    const float4* from = reinterpret_cast<const float4*>(x + r * hidden + 8 * at);
                    add(w, from[0], whole ? from[1] : make_float4(0, 0, 0, 0), &sums[r]);
                }
            }
        }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        if (r < rows) {
            const Sums all{warp_sum(sums[r].product), warp_sum(sums[r].squares)};
            if (lane == 0) of_warp[warp][r] = all;
        }
    }
    __syncthreads();  // sums of warps are there
    const auto total = [&](int r) {
        Sums sum = of_warp[0][r];
#pragma unroll
        for (int w = 1; w < kWarps; ++w) {
            sum.product += of_warp[w][r].product;
            sum.squares += of_warp[w][r].squares;
        }
        return sum;
    };
    bool last = false;
    if (warp == 0) {
        if (lane < rows) {
            const Sums sum = total(lane);
            logits[lane * experts + blockIdx.x] = __fmul_rn(sum.product, factor(sum.squares, hidden, eps));
        }
        last = arrive(arrived);
        if (kRows == 1 && last) sort_one(logits, experts, top_k, scoring, shared, to);
    } else {
        const int64_t quads = hidden / 4, share = (quads + gridDim.x - 1) / gridDim.x;
        const int64_t first = blockIdx.x * share, end = min(quads, first + share);
        for (int r = 0; r < rows; ++r) {
            const float scale = factor(total(r).squares, hidden, eps);
            const float4* from = reinterpret_cast<const float4*>(x + r * hidden);
            float4* result = reinterpret_cast<float4*>(n + r * hidden);
            for (int64_t i = first + threadIdx.x - 32; i < end; i += kRouteThreads - 32) {
                const float4 v = from[i], w = reinterpret_cast<const float4*>(norm)[i];
                result[i] = make_float4(v.x * scale * w.x, v.y * scale * w.y, v.z * scale * w.z, v.w * scale * w.w);
            }
        }
    }
    if (kRows > 1 && __syncthreads_or(last)) sort_several(logits, rows, experts, top_k, scoring, shared, rows_of, to);
}

}  // namespace

// router [experts, hidden]: quants and scales are its planes (packed.h); step [1], x [max_rows, hidden], norm [hidden]
// -> n [max_rows, hidden], logits [max_rows, experts], and with `entries` = max_rows * (top_k + shared):
//    count [1], expert [groups], first [groups + 1], row [entries], score [entries], entry [max_rows, top_k + shared]
// arrived [1]: 0 before and after
// PRECOND: grid (experts), block (kRouteThreads); step->rows is 1, or up to kRouteRows in kernels named _16; hidden % 4 == 0
//          (q8_0: % 32); experts <= kRouteExperts, 1 <= top_k <= experts, shared 0 or 1; x, norm and n on 16 bytes
#define ROUTE(name, Weights, bytes_of_row, bytes_of_scales, rows, in_flight)                                                    \
    extern "C" __global__ void __launch_bounds__(kRouteThreads)                                                                 \
        name(const uint8_t* quants, const uint8_t* scales, const Step* step, const float* x, const float* norm, float* n,       \
             float* logits, int32_t* count, int32_t* expert, int32_t* first, int32_t* row, float* score, int32_t* entry,        \
             uint32_t* arrived, int64_t hidden, float eps, int experts, int top_k, int scoring, int shared) {                   \
        route<Weights, rows, in_flight>(quants + blockIdx.x * (bytes_of_row), scales + blockIdx.x * (bytes_of_scales), step, x, \
                                        norm, n, logits, arrived, hidden, eps, experts, top_k, scoring, shared,                 \
                                        {count, expert, first, row, score, entry});                                             \
    }

ROUTE(route_f32_1, F32, 4 * hidden, 0, 1, 4)
ROUTE(route_bf16_1, BF16, (2 * hidden + 15) / 16 * 16, 0, 1, 4)
ROUTE(route_f16_1, F16, (2 * hidden + 15) / 16 * 16, 0, 1, 4)
ROUTE(route_q8_0_1, Q8_0, hidden, hidden / 16, 1, 4)
ROUTE(route_f32_16, F32, 4 * hidden, 0, 16, 1)
ROUTE(route_bf16_16, BF16, (2 * hidden + 15) / 16 * 16, 0, 16, 1)
ROUTE(route_f16_16, F16, (2 * hidden + 15) / 16 * 16, 0, 16, 1)
ROUTE(route_q8_0_16, Q8_0, hidden, hidden / 16, 16, 1)

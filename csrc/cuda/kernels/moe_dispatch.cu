// Rows copied for each of their experts, brought together by expert.
#include "cuda/kernels/grouping.cuh"
#include "cuda/kernels/moe.cuh"

namespace {

using namespace llama_ext::cuda;

template <typename Value>
__device__ __forceinline__ void gather(const Value* x, const int64_t* source, const float* scores, Value* gathered,
                                       int64_t choices, int64_t top_k, int64_t hidden, int aligned) {
    const int64_t at = (int64_t{blockIdx.y} * kMoeRowThreads + threadIdx.x) * kMoePerThread;
    let_successor_start();
    wait_for_predecessor();
    if (at >= hidden) return;
    const int64_t choice = source[blockIdx.x];
    if (choice < 0 || choice >= choices) return;  // an expert was out of range: nothing came here
    const bool whole = aligned && at + kMoePerThread <= hidden;
    float values[kMoePerThread];
    load(x + choice / top_k * hidden, at, hidden, whole, values);
    if (scores) {
        const float score = scores[choice];
#pragma unroll
        for (int i = 0; i < kMoePerThread; ++i) values[i] *= score;
    }
    store(values, gathered + blockIdx.x * hidden, at, hidden, whole);
}

}  // namespace

// experts [choices], each 0 to num_experts - 1 -> offsets [num_experts + 1], source [choices]; a block has an expert at a time
// A choice whose expert is out of range has no place: source then holds what it held before somewhere.
// PRECOND: any grid in x, block (kMoeSortThreads)
extern "C" __global__ void __launch_bounds__(kMoeSortThreads, 1)
    moe_dispatch_sort(const int64_t* experts, int64_t* offsets, int64_t* source, int64_t choices, int64_t num_experts) {
    __shared__ int64_t less_of_warp[kGroupingWarps];
    __shared__ int of_warp[kGroupingWarps];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    let_successor_start();
    wait_for_predecessor();
    for (int64_t expert = blockIdx.x; expert <= num_experts; expert += gridDim.x) {
        int64_t less = 0;
        for (int64_t i = threadIdx.x; i < choices; i += kMoeSortThreads) less += experts[i] < expert;
#pragma unroll
        for (int step = 16; step > 0; step /= 2) less += __shfl_xor_sync(kWholeWarp, less, step);
        if (lane == 0) less_of_warp[warp] = less;
        __syncthreads();  // sums of warps are there
        int64_t first = 0;
#pragma unroll
        for (int w = 0; w < kGroupingWarps; ++w) first += less_of_warp[w];
        if (threadIdx.x == 0) offsets[expert] = first;
        place_choices(experts, choices, expert, of_warp, [&](int64_t i, int64_t n) {
            if (expert < num_experts) source[first + n] = i;
        });
        __syncthreads();  // the sums are used
    }
}
static_assert(kMoeSortThreads == 32 * kGroupingWarps);

// x [rows, hidden], source [choices], scores [rows, top_k] or null -> gathered [choices, hidden]
// PRECOND: grid (choices, ceil(hidden / (kMoePerThread * kMoeRowThreads))), block (kMoeRowThreads); choices = rows * top_k;
//          aligned: every row of x and gathered lies on kMoePerThread values
extern "C" __global__ void __launch_bounds__(kMoeRowThreads)
    moe_dispatch_f32(const float* x, const int64_t* source, const float* scores, float* gathered, int64_t choices, int64_t top_k,
                     int64_t hidden, int aligned) {
    gather(x, source, scores, gathered, choices, top_k, hidden, aligned);
}
extern "C" __global__ void __launch_bounds__(kMoeRowThreads)
    moe_dispatch_bf16(const __nv_bfloat16* x, const int64_t* source, const float* scores, __nv_bfloat16* gathered,
                      int64_t choices, int64_t top_k, int64_t hidden, int aligned) {
    gather(x, source, scores, gathered, choices, top_k, hidden, aligned);
}

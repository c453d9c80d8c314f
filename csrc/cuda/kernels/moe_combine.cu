// The experts' results of each row, added up from its first choice to its last.
#include "cuda/kernels/moe.cuh"

namespace {

using namespace llama_ext::cuda;

template <typename Value>
__device__ __forceinline__ void combine(const Value* y, const int64_t* source, const int64_t* place, const float* scores,
                                        Value* out, int64_t choices, int64_t top_k, int64_t hidden, int aligned) {
    const int64_t at = (int64_t{blockIdx.y} * kMoeRowThreads + threadIdx.x) * kMoePerThread;
    let_successor_start();
    wait_for_predecessor();
    if (at >= hidden) return;
    const bool whole = aligned && at + kMoePerThread <= hidden;
    float sum[kMoePerThread];
    for (int64_t i = 0; i < top_k; ++i) {
        const int64_t choice = blockIdx.x * top_k + i;
        const int64_t from = place[choice];
        float values[kMoePerThread];
        if (from >= 0 && from < choices && source[from] == choice) {
            load(y + from * hidden, at, hidden, whole, values);
        } else {  // source is no permutation
#pragma unroll
            for (int j = 0; j < kMoePerThread; ++j) values[j] = NAN;
        }
        const float score = scores ? scores[choice] : 1.0f;
#pragma unroll
        for (int j = 0; j < kMoePerThread; ++j) {
            const float value = __fmul_rn(values[j], score);
            sum[j] = i ? __fadd_rn(sum[j], value) : value;
        }
    }
    store(sum, out + blockIdx.x * hidden, at, hidden, whole);
}

}  // namespace

// source [choices] -> place [choices]: where in source each of 0 .. choices - 1 stands. Where it does not, place stays as it is.
// PRECOND: grid (ceil(choices / kMoeSortThreads)), block (kMoeSortThreads)
extern "C" __global__ void __launch_bounds__(kMoeSortThreads)
    moe_combine_place(const int64_t* source, int64_t* place, int64_t choices) {
    const int64_t i = int64_t{blockIdx.x} * kMoeSortThreads + threadIdx.x;
    let_successor_start();
    wait_for_predecessor();
    if (i >= choices) return;
    const int64_t choice = source[i];
    // A plain store but for a source that is no permutation, where two may meet.
    if (choice >= 0 && choice < choices)
        asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(place + choice), "l"(i) : "memory");
}

// y [choices, hidden], source and place [choices], scores [rows, top_k] or null -> out [rows, hidden]
// PRECOND: grid (rows, ceil(hidden / (kMoePerThread * kMoeRowThreads))), block (kMoeRowThreads); choices = rows * top_k,
//          top_k >= 1; aligned: every row of y and out lies on kMoePerThread values
extern "C" __global__ void __launch_bounds__(kMoeRowThreads)
    moe_combine_f32(const float* y, const int64_t* source, const int64_t* place, const float* scores, float* out, int64_t choices,
                    int64_t top_k, int64_t hidden, int aligned) {
    combine(y, source, place, scores, out, choices, top_k, hidden, aligned);
}
extern "C" __global__ void __launch_bounds__(kMoeRowThreads)
    moe_combine_bf16(const __nv_bfloat16* y, const int64_t* source, const int64_t* place, const float* scores, __nv_bfloat16* out,
                     int64_t choices, int64_t top_k, int64_t hidden, int aligned) {
    combine(y, source, place, scores, out, choices, top_k, hidden, aligned);
}

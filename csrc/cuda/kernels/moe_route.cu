// A router's choice on given logits, a row a warp, any number of experts.
#include "cuda/kernels/moe.cuh"
#include "cuda/kernels/route.cuh"

namespace {

using namespace llama_ext::cuda;

template <typename Value>
__device__ __forceinline__ void route(const Value* logits, int64_t* chosen, float* scores, int64_t rows, int experts, int top_k,
                                      int scoring) {
    const int64_t row = int64_t{blockIdx.x} * kMoeRouteRows + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    let_successor_start();
    wait_for_predecessor();
    if (row >= rows) return;
    logits += row * experts;
    chosen += row * top_k;
    scores += row * top_k;
    const auto order = [&](int i) { return 32 * i + lane < experts ? order_of(widen(logits[32 * i + lane])) : 0; };
    Choice choice = before_all();
    for (int i = 0; i < top_k; ++i) {
        choice = next_choice<0>(choice, (experts + 31) / 32, order);
        if (lane == 0) chosen[i] = choice.expert;
    }
    __syncwarp();
    score(top_k, scoring, [&](int i) { return widen(logits[chosen[i]]); }, [&](int i, float value) { scores[i] = value; });
}

}  // namespace

// logits [rows, experts] -> chosen, scores [rows, top_k]
// PRECOND: grid (ceil(rows / kMoeRouteRows)), block (32 * kMoeRouteRows); 1 <= top_k <= experts
extern "C" __global__ void __launch_bounds__(32 * kMoeRouteRows)
    moe_route_f32(const float* logits, int64_t* chosen, float* scores, int64_t rows, int experts, int top_k, int scoring) {
    route(logits, chosen, scores, rows, experts, top_k, scoring);
}
extern "C" __global__ void __launch_bounds__(32 * kMoeRouteRows)
    moe_route_bf16(const __nv_bfloat16* logits, int64_t* chosen, float* scores, int64_t rows, int experts, int top_k,
                   int scoring) {
    route(logits, chosen, scores, rows, experts, top_k, scoring);
}

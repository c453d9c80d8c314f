// A row's choice of experts, by one warp: program/route.h's definition.
#pragma once

#include <climits>

#include "cuda/kernels/device.cuh"
#include "cuda/kernels/route.h"

namespace llama_ext::cuda {

// Integers in the order of the logits: NaN above everything, -0 and +0 the same. Never 0.
__device__ __forceinline__ uint32_t order_of(float logit) {
    if (isnan(logit)) return 0xffffffffu;
    const uint32_t bits = __float_as_uint(logit == 0.0f ? 0.0f : logit);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

struct Choice {
    uint32_t order;
    int expert;
};
__device__ __forceinline__ Choice before_all() { return {0xffffffffu, -1}; }

// The expert that comes next behind one that was chosen; there is one. The same in every lane.
// order(i): of expert 32 i + lane, or 0 where there is none.  kSteps: how many i there are, or 0: `steps`
template <int kSteps, typename Order>
__device__ __forceinline__ Choice next_choice(Choice last, int steps, Order order) {
    const int lane = threadIdx.x % 32;
    uint32_t best = 0;
    int at = INT_MAX;
#pragma unroll(kSteps ? kSteps : 1)
    for (int i = 0; i < (kSteps ? kSteps : steps); ++i) {
        const uint32_t here = order(i);
        const int expert = 32 * i + lane;
        const bool behind = here < last.order || (here == last.order && expert > last.expert);
        if (behind && here > best) best = here, at = expert;
    }
    const uint32_t highest = __reduce_max_sync(kWholeWarp, best);
    const int expert = __reduce_min_sync(kWholeWarp, best == highest ? at : INT_MAX);
    return {highest, expert};
}

// Whether this is the last block of the launch to arrive: then the warp may read what the others' calling warps had written.
// arrived [1]: 0 before the launch and, because it wraps, after it
__device__ __forceinline__ bool arrive(uint32_t* arrived) {
    __threadfence();
    __syncwarp();
    const uint32_t before = threadIdx.x % 32 == 0 ? atomicInc(arrived, gridDim.x - 1) : 0;
    const bool last = __shfl_sync(kWholeWarp, before, 0) == gridDim.x - 1;
    __threadfence();
    __syncwarp();  // what lane 0 has learnt, all may read
    return last;
}

constexpr int kOrdersHeld = kRouteExperts / 32;

// The top_k experts of a row of up to kRouteExperts logits.  take(i, expert), in every lane
template <typename Take>
__device__ __forceinline__ void choose(const float* logits, int experts, int top_k, Take take) {
    const int lane = threadIdx.x % 32;
    uint32_t orders[kOrdersHeld];
#pragma unroll
    for (int i = 0; i < kOrdersHeld; ++i) {
        const int expert = 32 * i + lane;
        orders[i] = expert < experts ? order_of(__ldcg(logits + expert)) : 0;
    }
    Choice choice = before_all();
    for (int i = 0; i < top_k; ++i) {
        choice = next_choice<kOrdersHeld>(choice, 0, [&](int at) { return orders[at]; });
        take(i, choice.expert);
    }
}

// Scores of the chosen logits, in float64, rounded once.  logit(i): of choice i.  give(i, score), in one lane
template <typename Logit, typename Give>
__device__ __forceinline__ void score(int top_k, int scoring, Logit logit, Give give) {
    const int lane = threadIdx.x % 32;
    if (scoring == kRouteSigmoid) {
        for (int i = lane; i < top_k; i += 32) give(i, static_cast<float>(1 / (1 + exp(-static_cast<double>(logit(i))))));
        return;
    }
    const double largest = logit(0);
    double sum = 0, power = 0;
    for (int base = 0; base < top_k; base += 32) {
        power = base + lane < top_k ? exp(logit(base + lane) - largest) : 0;
        for (int i = 0; i < min(32, top_k - base); ++i) sum += __shfl_sync(kWholeWarp, power, i);
    }
    for (int i = lane; i < top_k; i += 32) {
        if (top_k > 32) power = exp(logit(i) - largest);
        give(i, static_cast<float>(power / sum));
    }
}

}  // namespace llama_ext::cuda

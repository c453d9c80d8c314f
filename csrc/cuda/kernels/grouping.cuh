// Rows brought together by expert: a counting sort in which a block places the choices that are its expert.
#pragma once

#include "cuda/kernels/device.cuh"

namespace llama_ext::cuda {

constexpr int kGroupingWarps = 8;  // a block

// place(i, n) for each i with choices[i] == expert, in one thread, where n of them come before it. By the whole block. A warp has
// a stretch of the choices; it counts first, so that it knows where its own begin.  of_warp [kGroupingWarps] in shared memory
template <typename Index, typename Place>
__device__ __forceinline__ void place_choices(const Index* choices, int64_t count, Index expert, int* of_warp, Place place) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64_t share = (count + 32 * kGroupingWarps - 1) / (32 * kGroupingWarps) * 32;
    const int64_t begin = min(count, warp * share), end = min(count, begin + share);
    unsigned here = 0;
    for (int64_t i = begin + lane; i < end; i += 32) here += choices[i] == expert;
    here = __reduce_add_sync(kWholeWarp, here);
    if (lane == 0) of_warp[warp] = static_cast<int>(here);
    __syncthreads();  // counts of warps are there
    int64_t next = 0;
    for (int w = 0; w < warp; ++w) next += of_warp[w];
    for (int64_t base = begin; base < end; base += 32) {
        const int64_t i = base + lane;
        const bool is = i < end && choices[i] == expert;
        const unsigned all = __ballot_sync(kWholeWarp, is);
        if (is) place(i, next + __popc(all & ((1u << lane) - 1)));
        next += __popc(all);
    }
}

}  // namespace llama_ext::cuda

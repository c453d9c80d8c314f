// The state of a pool of experts on the card, in device memory, as kernels and the host see it:
//   FetchState [1], uint64 [slots] last used, FetchOwner [slots], FetchCounts [layers]
#pragma once

#include "cuda/kernels/both.h"

namespace llama_ext::cuda {

inline constexpr int kFetchThreads = 256;    // a block
inline constexpr int kFetchGroups = 1024;    // experts of a step, the most
inline constexpr int kFetchSlots = 1 << 16;  // of a pool, the most: their numbers are the low bits of what orders them

struct FetchState {
    uint64_t uses;     // fetches so far: the time that "last used" counts in, from 1 on; 0 is an empty slot's
    uint32_t arrived;  // blocks of the launch that runs; 0 before and after
    int32_t slots, layers;
    int32_t padding[3];
};

// Whose weights a slot holds.
struct FetchOwner {
    uint64_t entry;  // the address of its entry of its layer's table of experts; 0: nobody's
    uint64_t home;   // what stands there when it has no slot
};

// Of a layer: chosen experts that had a slot, and those that had none.
struct FetchCounts {
    uint64_t hits, misses;
};

LLAMA_EXT_BOTH constexpr int64_t fetch_owners_offset(int slots) {
    return static_cast<int64_t>(sizeof(FetchState)) + (slots + 1) / 2 * 2 * int64_t{sizeof(uint64_t)};
}
LLAMA_EXT_BOTH constexpr int64_t fetch_counts_offset(int slots) {
    return fetch_owners_offset(slots) + slots * static_cast<int64_t>(sizeof(FetchOwner));
}
LLAMA_EXT_BOTH constexpr int64_t fetch_bytes(int slots, int layers) {
    return fetch_counts_offset(slots) + layers * static_cast<int64_t>(sizeof(FetchCounts));
}

}  // namespace llama_ext::cuda

// Numbers that the kernels of a router and the host code that launches them must agree on.
#pragma once

#include "cuda/kernels/both.h"

namespace llama_ext::cuda {

inline constexpr int kRouteRows = 16;         // the most that one launch serves
inline constexpr int kRouteThreads = 256;     // a block: one expert's logits
inline constexpr int kRouteExperts = 256;     // the most there are; a thread each while rows are sorted
inline constexpr int kRouteTileRows = 32;     // of a block, where there are more rows
inline constexpr int kRouteTileExperts = 64;  // likewise
inline constexpr int kRouteTileThreads = 128;
inline constexpr int kRouteChooseRows = 4;  // a block, a warp each

// Of the scratch: int32 counters of the blocks that have arrived, and of the entries of each expert; then, for more than
// kRouteRows rows, what each row has chosen, int32 and float32 [max_rows, experts] at most.
inline constexpr int kRouteCountsOffset = 256;
inline constexpr int kRouteChosenOffset = kRouteCountsOffset + 4 * kRouteExperts;

enum RouteScoring : int32_t { kRouteSoftmax = 0, kRouteSigmoid = 1 };

}  // namespace llama_ext::cuda

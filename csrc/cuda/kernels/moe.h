// Numbers that the kernels of the operators for mixtures and the host code that launches them must agree on.
#pragma once

#include "cuda/kernels/both.h"

namespace llama_ext::cuda {

inline constexpr int kMoeRouteRows = 4;  // a block, a warp each
inline constexpr int kMoeSortThreads = 256;
inline constexpr int kMoeRowThreads = 128;  // of a block that copies or adds up a part of a row
inline constexpr int kMoePerThread = 4;     // values of the row

}  // namespace llama_ext::cuda

#pragma once

#include "cuda/kernels/both.h"

namespace llama_ext::cuda {

inline constexpr int kRopeCallThreads = 128;  // a pair each

}  // namespace llama_ext::cuda

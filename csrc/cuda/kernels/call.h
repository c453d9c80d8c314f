#pragma once

#include "cuda/kernels/both.h"

namespace llama_ext::cuda {

inline constexpr int kCallThreads = 256;  // 16 bytes each

}  // namespace llama_ext::cuda

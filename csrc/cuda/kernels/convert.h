#pragma once

#include "cuda/kernels/both.h"

namespace llama_ext::cuda {

inline constexpr int kConvertThreads = 256;
inline constexpr int kConvertEach = 8;  // values a thread: 16 bytes of bfloat16

}  // namespace llama_ext::cuda

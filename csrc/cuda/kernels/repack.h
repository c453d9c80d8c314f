#pragma once

#include "cuda/kernels/both.h"

namespace llama_ext::cuda {

// Blocks of 32 weights that a block of threads packs, a thread each. The bytes of so many are a multiple of 16 in every format.
inline constexpr int kRepackBlocks = 128;
inline constexpr int kRepackFloatThreads = 256;  // 16 bytes of a packed row each

}  // namespace llama_ext::cuda

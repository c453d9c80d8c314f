// Numbers that the tiled product's kernels and the host code that launches them must agree on.
#pragma once

namespace llama_ext::cuda {

// A block makes this many results of this many rows of x.
inline constexpr int kTileWeights = 64, kTileTokens = 64;
inline constexpr int kTileThreads = 128;

}  // namespace llama_ext::cuda

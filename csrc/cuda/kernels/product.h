// Numbers that the product's kernels and the host code that launches them must agree on.
#pragma once

#include "cuda/kernels/both.h"

namespace llama_ext::cuda {

inline constexpr int kProductWarps = 8;        // a block: each warp has a row of its own
inline constexpr int kProductTileCols = 8192;  // of x that lie in shared memory at a time: 32 KB

// x in shared memory: each 8 columns, the partners of one 16-byte load of weights, are split over two planes of 4 columns, so
// that neighbouring lanes read neighbouring 16 bytes of either. The planes lie half a line of banks apart: staging, where every
// other lane writes to the other plane, then meets no bank twice either.
LLAMA_EXT_BOTH constexpr int product_plane(int tile_cols) { return (tile_cols / 8 + 7) / 8 * 8 + 4; }  // in 16 bytes
LLAMA_EXT_BOTH constexpr int product_shared_bytes(int tile_cols) { return (product_plane(tile_cols) + tile_cols / 8) * 16; }

}  // namespace llama_ext::cuda

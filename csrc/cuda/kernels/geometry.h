// Numbers that a kernel and the host code that launches it must agree on.
#pragma once

#ifdef __CUDACC__
#define LLAMA_EXT_BOTH __host__ __device__
#else
#define LLAMA_EXT_BOTH
#endif

namespace llama_ext::cuda {

// --- product ---
inline constexpr int kProductWarps = 8;        // a block: each warp has a row of its own
inline constexpr int kProductTileCols = 8192;  // of x that lie in shared memory at a time: 32 KB

// x in shared memory: each 8 columns, the partners of one 16-byte load of weights, are split over two planes of 4 columns, so
// that neighbouring lanes read neighbouring 16 bytes of either. The planes lie half a line of banks apart: staging, where every
// other lane writes to the other plane, then meets no bank twice either.
LLAMA_EXT_BOTH constexpr int product_plane(int tile_cols) { return (tile_cols / 8 + 7) / 8 * 8 + 4; }  // in 16 bytes
LLAMA_EXT_BOTH constexpr int product_shared_bytes(int tile_cols) { return (product_plane(tile_cols) + tile_cols / 8) * 16; }

// --- attention ---
inline constexpr int kMaskGlobal = 0, kMaskChunked = 1, kMaskSliding = 2;
inline constexpr int kTileKeys = 32;  // a key a lane
inline constexpr int kMaxGroup = 16;  // query heads a key-value head
inline constexpr int kMaxHeadDim = 256;
inline constexpr int kSplitWarps = 4;  // the most a block has

// A key's row in shared memory, in 16 bytes: an odd number, so that the lanes of a quarter-warp, each reading a row of its own,
// meet different banks.
LLAMA_EXT_BOTH constexpr int tile_row(int head_dim, int element_bytes) { return head_dim * element_bytes / 16 | 1; }

// Tiles in flight: the next one is fetched while this one is used, except by the kernels for any head_dim, whose tiles are large.
LLAMA_EXT_BOTH constexpr int split_stages(int head_dim) { return head_dim == 64 || head_dim == 128 ? 2 : 1; }

// Query heads that a warp serves: 1, 2 or 4.
LLAMA_EXT_BOTH constexpr int heads_per_warp(int group) { return group <= kSplitWarps ? 1 : group <= 2 * kSplitWarps ? 2 : 4; }

// keys and values [stages][kTileKeys][tile_row], queries [group][head_dim], probabilities [group][kTileKeys]
LLAMA_EXT_BOTH constexpr int split_shared_bytes(int group, int head_dim, int element_bytes) {
    return 2 * split_stages(head_dim) * kTileKeys * tile_row(head_dim, element_bytes) * 16 + group * (head_dim + kTileKeys) * 4;
}

}  // namespace llama_ext::cuda

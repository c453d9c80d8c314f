// Numbers that attention's kernels and the host code that launches them must agree on.
#pragma once

#include "cuda/kernels/both.h"

namespace llama_ext::cuda {

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

// Numbers that the kernels of attention for many rows and the host code that launches them must agree on.
#pragma once

#include "cuda/kernels/both.h"

namespace llama_ext::cuda {

inline constexpr int kAppendWarps = 4;  // a block: each has a head's key or value

// Queries are counted through: query m of a key-value head is row m / group, head m % group of the group. A block has so many
// neighbouring ones, which share its loads of keys and values.
inline constexpr int kPrefillWarps = 4;
inline constexpr int kPrefillQueries = 16 * kPrefillWarps;  // on tensor cores: a warp has 16
inline constexpr int kAnyQueries = 4 * kPrefillWarps;       // without: a warp has 4
inline constexpr int kAnyKeys = 32;                         // a tile: a key a lane

// A key's row in shared memory as float32, in 16 bytes: an odd number, so that the lanes of a quarter-warp, each reading a row of
// its own, meet different banks.
LLAMA_EXT_BOTH constexpr int any_row(int head_dim) { return head_dim / 4 | 1; }

// keys and values [kAnyKeys][any_row], queries [kAnyQueries][head_dim], probabilities [kAnyQueries][kAnyKeys]
LLAMA_EXT_BOTH constexpr int any_shared_bytes(int head_dim) {
    return 2 * kAnyKeys * any_row(head_dim) * 16 + kAnyQueries * (head_dim + kAnyKeys) * 4;
}

}  // namespace llama_ext::cuda

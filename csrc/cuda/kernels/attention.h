// Numbers that attention's kernels and the host code that launches them must agree on.
#pragma once

#include "cuda/kernels/both.h"

namespace llama_ext::cuda {

inline constexpr int kMaskGlobal = 0, kMaskChunked = 1, kMaskSliding = 2;
inline constexpr int kMaxGroup = 16;  // query heads a key-value head
inline constexpr int kMaxHeadDim = 256;

// --- attention_decode: up to 16 rows -----------------------------------------------------------------------------------

inline constexpr int kDecodeRows = 16;
inline constexpr int kDecodeSplits = 256;
inline constexpr int kDecodeWarps = 8;  // the most a block has
inline constexpr int kStepKeys = 8;     // that a warp takes at a time
// Keys for so many turns of every warp are left to one block: to put several blocks' results together takes longer.
inline constexpr int kAloneTurns = 2;

// A warp serves up to 4 heads of the group, each with every key that the warp sees: so many warps share a key.
LLAMA_EXT_BOTH constexpr int head_sets(int group) { return (group + 3) / 4; }
// Query heads that the kernel is made for: 1, or 4 of which some may be missing.
LLAMA_EXT_BOTH constexpr int heads_a_warp(int group) { return group == 1 ? 1 : 4; }

// Steps of keys and values in shared memory, one in use and the others under way: enough bytes to keep memory busy.
// head_dim: that the kernel is made for, 0: any
LLAMA_EXT_BOTH constexpr int decode_stages(int head_dim, int element_bytes) {
    const int row = head_dim * element_bytes;
    return row == 0 || row >= 256 ? 2 : row >= 128 ? 3 : 4;
}

// keys [kStepKeys][head_dim], values likewise; key_scales [kStepKeys][head_dim / 32], value_scales likewise, if scaled
LLAMA_EXT_BOTH constexpr int stage_bytes(int head_dim, int element_bytes, bool scaled) {
    return 2 * kStepKeys * (head_dim * element_bytes + (scaled ? head_dim / 32 * 2 : 0));
}

// A warp's results of a head in shared memory: two halves, each with 4 elements of every 8. So many times 4 floats has a half, an
// odd multiple of 4 times 4, so that neither writing one half nor reading both in turns meets a bank twice.
LLAMA_EXT_BOTH constexpr int result_half(int head_dim) { return (head_dim / 8 + 3) / 8 * 8 + 4; }

// The warps of a block are key sets of head_sets(group) each: a key set has every so manieth step, and memory of its own, so that
// there are as many as warps and memory allow.
// stages_bytes: of a key set
LLAMA_EXT_BOTH constexpr int decode_key_sets(int group, int stages_bytes) {
    int sets = kDecodeWarps;
    while (sets * head_sets(group) > kDecodeWarps || (sets > 1 && sets * stages_bytes > 72 * 1024)) sets /= 2;
    return sets;
}

// One after the other: probabilities [warps][kStepKeys][4] with the key sets' stages; results [key_sets][group][result_floats]
// with float2 [key_sets][group]; weights [group][splits] with [group].
LLAMA_EXT_BOTH constexpr int decode_shared_bytes(int group, int head_dim, int stages_bytes) {
    const int sets = decode_key_sets(group, stages_bytes);
    const int steps = sets * (head_sets(group) * kStepKeys * 4 * 4 + stages_bytes);
    const int results = sets * group * (2 * result_half(head_dim) * 4 + 2) * 4;
    return steps > results ? steps : results;
}

// Blocks a multiprocessor that registers are kept for. Where more would make them spill, it is one: without a number ptxas saves
// registers all the same.
LLAMA_EXT_BOTH constexpr int decode_blocks(int head_dim, bool scaled) { return head_dim && !scaled ? 2 : 1; }

}  // namespace llama_ext::cuda

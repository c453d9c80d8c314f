// Attention over a key-value cache: what one step's queries do to one block of slots.
//
// Keys lie in tiles of 16 slots, transposed, so that a tile's scores are lanes of one vector; values lie slot by slot. In q8_0 a
// tile of either holds its integers first and then its scales, block by block and 16 slots side by side: a scale meets a whole
// sum over 32 elements of the keys, or a whole vector of weights for the values, never a single element. A query's
// softmax is taken block by block (kKeyBlock slots) and the blocks are merged in ascending order: however the blocks are
// dealt out to threads and whichever queries go along, the result is the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "program/program.h"

namespace llama_ext::cpu {

inline constexpr int kKeyTile = 16;
inline constexpr int kKeyBlock = 128;
inline constexpr int kQueryTile = 4;  // queries that share one pass over a block

struct CacheView {
    CacheFormat format;
    int kv_heads, head_dim;
    int64_t capacity, padded;  // slots; padded: rounded up to a whole tile
    // of f32, f16 and bf16
    //   keys    [kv_heads][padded / 16][head_dim][16]
    //   values  [kv_heads][padded / 16][16][head_dim]
    // of q8_0, in bytes: int8 [16 head_dim] in the same order, then f16 [head_dim / 32][16]
    //   keys    [kv_heads][padded / 16] of {int8 [head_dim][16], f16 [head_dim / 32][16]}
    //   values  [kv_heads][padded / 16] of {int8 [16][head_dim], f16 [head_dim / 32][16]}
    std::byte *keys, *values;
};

// Where the tile of a head's slot begins, in bytes, among the keys as among the values. `static`: the kernels of all levels use
// it.
static inline size_t tile_offset(const CacheView& cache, int kv_head, int64_t slot) {
    return static_cast<size_t>(kv_head * cache.padded + slot / kKeyTile * kKeyTile) *
           cache_row_bytes(cache.format, cache.head_dim);
}

// The slots a query sees: low .. high, or, where the ring wraps between them (low > high), all but those strictly between.
struct SlotRange {
    int64_t low, high;
};

// One query's softmax so far: sum of e^(score - maximum) over its keys, and the same weights over the values.
struct Partial {
    float* values;  // [head_dim]
    float maximum;
    float sum;  // 0: no key yet
};

struct Query {
    const float* q;  // [head_dim], the score's scale already in it
    SlotRange slots;
};

// k, v [head_dim] of one head into `slot`
using AppendFn = void (*)(const CacheView& cache, int kv_head, int64_t slot, const float* k, const float* v);

// count <= kQueryTile queries of one key-value head over slots block * kKeyBlock .. + kKeyBlock: out[i] becomes query i's
// softmax over this block alone (sum 0 where it sees none of it).
using AttendFn = void (*)(const CacheView& cache, int kv_head, int64_t block, const Query* queries, int count, Partial* out);

// total = total and, after it, next
using MergeFn = void (*)(Partial* total, const Partial& next, int head_dim);

}  // namespace llama_ext::cpu

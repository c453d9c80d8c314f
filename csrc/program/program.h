// A program: one Llama as a flat list of instructions, with what they share: rotation frequencies and the layout of the cache.
#pragma once

#include <cstdint>
#include <vector>

#include "program/instruction.h"

namespace llama_ext {

// q8_0: blocks of 32 along head_dim, in ggml's arithmetic: d = max |x| / 127, kept as f16, and 32 integers of 8 bits, x 127 / max
// |x| rounded to nearest, ties to even; x is d times the integer. A d below half of f16's smallest makes a block of zeros; a
// block with a value that is not finite, or of 8.3 million and more (d overflows), reads back as not finite.
// fp8: E4M3 without a scale, rounded to nearest even, what is beyond 448 becomes 448; NaN stays NaN.
enum class CacheFormat : uint8_t { f32, f16, bf16, q8_0, fp8 };

inline constexpr int kCacheBlock = 32;  // elements under one scale of q8_0

// Bytes of one head's key, or value, of one slot. q8_0 needs a head_dim of whole blocks.
size_t cache_row_bytes(CacheFormat format, int head_dim);

// The keys and values of one layer: `capacity` slots, position p in slot p % capacity.
// A global layer has a slot a position. A chunked or sliding one has min(max_context, extent + max_rows): a step of
// max_rows rows appends that many keys before its first row has read the oldest one it still needs, and up to max_rows
// positions can be taken back without a key missing.
struct CacheLayer {
    int kv_heads, head_dim;
    int64_t capacity;
    CacheFormat format;

    size_t bytes_per_slot() const { return 2 * static_cast<size_t>(kv_heads) * cache_row_bytes(format, head_dim); }
};

int64_t cache_capacity(const Mask& mask, int64_t max_context, int max_rows);

// Rotation of interleaved pairs (2i, 2i + 1) of a head by position * inverse_frequency[i].
struct Rope {
    std::vector<double> inverse_frequency;  // [head_dim / 2]
};

struct Program {
    int64_t vocab, hidden;
    int64_t max_context;
    int max_rows;  // the most tokens a step takes; longer prompts are several steps
    std::vector<Rope> ropes;
    std::vector<CacheLayer> caches;
    std::vector<Instruction> code;

    // Throws std::invalid_argument that names the instruction and the operand whose shape or index does not fit.
    void validate() const;

    // How far `position` may go back: exactly so far that the rows to come find every key they look at, all the way while no
    // ring has wrapped. highest: the furthest position since the caches were empty. What it overwrote stays lost when
    // `position` has gone back since.
    int64_t max_rollback(int64_t position, int64_t highest) const;
};

}  // namespace llama_ext

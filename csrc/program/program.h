// A program: one Llama as a flat list of instructions, with what they share: rotation frequencies and the layout of the cache.
#pragma once

#include <cstdint>
#include <vector>

#include "program/instruction.h"

namespace llama_ext {

enum class CacheFormat : uint8_t { f32, f16, bf16 };

size_t cache_element_bytes(CacheFormat format);

// The keys and values of one layer: `capacity` slots, position p in slot p % capacity.
// A global layer has a slot a position. A chunked or sliding one has min(max_context, extent + max_rows): a step of
// max_rows rows appends that many keys before its first row has read the oldest one it still needs, and up to max_rows
// positions can be taken back without a key missing.
struct CacheLayer {
    int kv_heads, head_dim;
    int64_t capacity;
    CacheFormat format;

    size_t bytes_per_slot() const { return 2 * static_cast<size_t>(kv_heads * head_dim) * cache_element_bytes(format); }
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

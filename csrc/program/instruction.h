// The instruction set: what one forward step of a Llama consists of. An instruction is semantics and its operands; how it is
// computed (kernels, layouts, launches) is an executor's affair. Every instruction works on `rows` >= 1 tokens.
//
// The values that pass between instructions, all row-major:
//   x [rows, hidden]               residual stream, float32
//   q [rows, heads, head_dim]      k, v [rows, kv_heads, head_dim]
//   a [rows, heads, head_dim]      attention's result
//   h [rows, intermediate]         the feed-forward network's inside
//   logits [rows or 1, vocab]      float32
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "program/format.h"

namespace llama_ext {

// A matrix [rows, cols] of a checkpoint, one row after the other in `format`; a vector has one row. y = W x.
struct Weight {
    std::string name;
    Format format;
    int64_t rows, cols;
    const std::byte* data;  // stays valid while the Weight lives
    std::shared_ptr<void> owner;

    size_t bytes() const { return static_cast<size_t>(rows) * row_bytes(format, cols); }
};
using WeightPtr = std::shared_ptr<const Weight>;

// Which keys a query at `position` may see: those from first_key(position) to position.
struct Mask {
    enum class Kind : uint8_t { global, chunked, sliding };
    Kind kind = Kind::global;
    int64_t extent = 0;  // the chunk's length or the window's; unused for a global mask

    int64_t first_key(int64_t position) const {
        switch (kind) {
            case Kind::chunked:
                return position - position % extent;
            case Kind::sliding:
                return std::max<int64_t>(0, position - extent + 1);
            case Kind::global:
                break;
        }
        return 0;
    }
};

// x = table[id], dequantized
struct Embed {
    WeightPtr table;  // [vocab, hidden]
};

// n = rms_norm(x) * norm;  q, k, v = W_q n, W_k n, W_v n;  q, k rotated at their position
struct Qkv {
    int layer;
    WeightPtr norm, q, k, v;
    float eps;
    int heads, kv_heads, head_dim;
    int rope;            // index into Program::ropes, or -1: no position embedding
    int64_t rope_chunk;  // rotate by position % rope_chunk; 0: by the position itself
};

// q, k = rms_norm(q), rms_norm(k) a head (weightless), if qk_norm;  q *= temperature(position)
// cache[position] = k, v;  a = softmax(scale q K^T over the mask's keys) V
struct Attention {
    int layer;
    int cache;  // index into Program::caches
    int heads, kv_heads, head_dim;
    float scale;
    Mask mask;
    bool qk_norm;
    float qk_norm_eps;
    float temperature_scale;    // attn_scale; 0: no temperature
    int64_t temperature_floor;  // floor_scale

    // Llama 4's factor for queries of layers without RoPE: ln(floor((pos + 1) / floor_scale) + 1) * attn_scale + 1
    float temperature(int64_t position) const;
};

// x += W_o a
struct Output {
    int layer;
    WeightPtr weight;  // [hidden, heads * head_dim]
};

// n = rms_norm(x) * norm;  h = silu(W_gate n) * W_up n
struct GateUp {
    int layer;
    WeightPtr norm, gate, up;
    float eps;
};

// x += W_down h
struct Down {
    int layer;
    WeightPtr weight;  // [hidden, intermediate]
};

// logits = W (rms_norm(x) * norm)
struct Head {
    WeightPtr norm, weight;  // weight [vocab, hidden]
    float eps;
};

// id = a token drawn from the last row's logits (sampling.h), if the step asks for one
struct Sample {};

using Instruction = std::variant<Embed, Qkv, Attention, Output, GateUp, Down, Head, Sample>;

// "embed", "qkv", ...
const char* name(const Instruction& instruction);
// The layer an instruction belongs to; -1 for embed, head and sample.
int layer(const Instruction& instruction);
// Every matrix and vector that an instruction reads, in the order of its fields.
std::vector<WeightPtr> weights(const Instruction& instruction);

}  // namespace llama_ext

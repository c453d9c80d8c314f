// The instruction set: what one forward step of a Llama consists of. An instruction is semantics and its operands; how it is
// computed (kernels, layouts, launches) is an executor's affair. Every instruction works on `rows` >= 1 tokens.
//
// The values that pass between instructions, all row-major:
//   x [rows, hidden]               residual stream, float32
//   q [rows, heads, head_dim]      k, v [rows, kv_heads, head_dim]
//   a [rows, heads, head_dim]      attention's result
//   h [rows, intermediate]         the feed-forward network's inside
//   n [rows, hidden], experts, scores [rows, top_k]    a mixture of experts: its normalised input, and what the router chose
//   logits [rows or 1, vocab]      float32
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "program/format.h"
#include "program/route.h"

namespace llama_ext {

// A matrix's bytes for as long as they are looked at.
struct WeightBytes {
    const std::byte* data;
    std::shared_ptr<void> owner;  // of bytes that were made
};

// A matrix [rows, cols] of a checkpoint, one row after the other in `format`; a vector has one row. y = W x.
struct Weight {
    std::string name;
    Format format;
    int64_t rows, cols;
    // The bytes, valid while the Weight lives. Null: they are not in any file as they stand here (permuted, quantized, put
    // together from parts), and `make` makes them each time, so that no converted model lies in memory beside the packed one.
    const std::byte* data;
    std::shared_ptr<void> owner;
    std::function<WeightBytes()> make{};

    size_t bytes() const { return static_cast<size_t>(rows) * row_bytes(format, cols); }
    WeightBytes fetch() const { return data ? WeightBytes{data, nullptr} : make(); }
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

// A mixture of experts takes three instructions. Each row goes through the top_k experts that its router scores highest, and
// through a shared expert, if there is one.

// n = rms_norm(x) * norm;  experts = the top_k largest of W n;  scores of them (route.h)
struct Route {
    int layer;
    WeightPtr norm, router;  // router [experts, hidden]
    float eps;
    int top_k;
    Scoring scoring;
};

// for each expert e that was chosen for a row, s its score if scores scale the input, else 1, and for the shared one, s = 1:
// h_e = silu(W_gate s n) * W_up s n
struct ExpertsGateUp {
    int layer;
    std::vector<WeightPtr> gate, up;   // [experts] of [intermediate, hidden]
    WeightPtr shared_gate, shared_up;  // [intermediate, hidden], or null: no shared expert
    bool scale_input;
};

// x += sum over the chosen experts, in the order of their choice, and the shared one, of s W_down h_e;  s as above, if scores
// scale the output
struct ExpertsDown {
    int layer;
    std::vector<WeightPtr> down;  // [experts] of [hidden, intermediate]
    WeightPtr shared_down;        // [hidden, intermediate], or null
    bool scale_output;
};

// logits = W (rms_norm(x) * norm)
struct Head {
    WeightPtr norm, weight;  // weight [vocab, hidden]
    float eps;
};

// id = a token drawn from the last row's logits (sampling.h), if the step asks for one
struct Sample {};

using Instruction = std::variant<Embed, Qkv, Attention, Output, GateUp, Down, Route, ExpertsGateUp, ExpertsDown, Head, Sample>;

// "embed", "qkv", ...
const char* name(const Instruction& instruction);
// The layer an instruction belongs to; -1 for embed, head and sample.
int layer(const Instruction& instruction);
// Every matrix and vector that an instruction reads, in the order of its fields.
std::vector<WeightPtr> weights(const Instruction& instruction);

}  // namespace llama_ext

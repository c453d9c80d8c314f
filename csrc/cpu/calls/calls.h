// Operations as single calls over plain row-major memory, without a program, a session or a team: what torch's operators for CPU
// tensors do once their arguments are checked. The kernels are the executor's, so what is tested here is what decodes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#include "cpu/kernels.h"
#include "program/half.h"
#include "program/instruction.h"
#include "program/route.h"

namespace llama_ext::cpu {

// How values lie in memory. Everything is computed in float32; bf16 is rounded once, when a result is written.
enum class ValueType : uint8_t { f32, bf16 };

inline size_t value_bytes(ValueType type) { return type == ValueType::f32 ? 4 : 2; }

inline const std::byte* at(const void* values, ValueType type, int64_t index) {
    return static_cast<const std::byte*>(values) + static_cast<size_t>(index) * value_bytes(type);
}
inline std::byte* at(void* values, ValueType type, int64_t index) {
    return static_cast<std::byte*>(values) + static_cast<size_t>(index) * value_bytes(type);
}

inline void widen(ValueType type, const void* values, int64_t n, float* out) {
    if (type == ValueType::f32) {
        std::memcpy(out, values, static_cast<size_t>(n) * sizeof(float));
    } else {
        const uint16_t* bits = static_cast<const uint16_t*>(values);
        for (int64_t i = 0; i < n; ++i) out[i] = f32_from_bf16(bits[i]);
    }
}

inline void narrow(ValueType type, const float* values, int64_t n, void* out) {
    if (type == ValueType::f32) {
        std::memcpy(out, values, static_cast<size_t>(n) * sizeof(float));
    } else {
        uint16_t* bits = static_cast<uint16_t*>(out);
        for (int64_t i = 0; i < n; ++i) bits[i] = bf16_from_f32(values[i]);
    }
}

// The caller's threads: body(begin, end) over ranges that together are 0 .. count, side by side, no range smaller than `grain`
// unless it is the last; returns when all are done. How the ranges fall changes no bit of a result.
using Body = std::function<void(int64_t begin, int64_t end)>;
using Parallel = std::function<void(int64_t count, int64_t grain, const Body& body)>;

// How many things of `cost` elementary steps are worth a thread's start.
inline int64_t grain(int64_t cost) {
    constexpr int64_t kWorthAThread = 1 << 16;
    return cost >= kWorthAThread ? 1 : kWorthAThread / (cost > 0 ? cost : 1);
}

// out = x / sqrt(mean(x^2) + eps) * weight, row by row
struct RmsNormCall {
    ValueType type;  // of x and out
    int64_t rows, n;
    float eps;
    const void* x;        // [rows, n]
    const float* weight;  // [n], or null: all ones
    void* out;            // [rows, n]
};
void rms_norm(const Kernels& kernels, const RmsNormCall& call, const Parallel& parallel);

// Pair i of a head turned by positions[row] * inverse_frequency[i]: (2i, 2i + 1) when interleaved, else (i, i + head_dim / 2)
struct RopeCall {
    ValueType type;  // of x and out
    bool interleaved;
    int64_t batch, rows, heads, head_dim;
    const int64_t* positions;         // [rows]
    const double* inverse_frequency;  // [head_dim / 2]
    const void* x;                    // [batch, rows, heads, head_dim]
    void* out;                        // the same
};
void rope(const Kernels& kernels, const RopeCall& call, const Parallel& parallel);

// out = softmax(scale q K^T over the mask's keys) V; heads share key-value heads in order. rows >= 1; query r stands at
// first_position + r, key j at j, and first_position + rows <= keys.
struct AttentionCall {
    ValueType type;  // of q, k, v and out
    int heads, kv_heads, head_dim;
    int64_t rows, keys, first_position;
    Mask mask;
    float scale;
    const void* q;  // [rows, heads, head_dim]
    const void* k;  // [keys, kv_heads, head_dim]
    const void* v;  // the same
    void* out;      // [rows, heads, head_dim]
};
void attention(const Kernels& kernels, const AttentionCall& call, const Parallel& parallel);

// out = x W^T, W in a file's blocks; cols a multiple of the format's block and more than 0
struct LinearCall {
    ValueType type;  // of x and out
    Format format;
    int64_t rows, cols, outputs;
    const void* x;            // [rows, cols]
    const std::byte* weight;  // [outputs][row_bytes(format, cols)]
    void* out;                // [rows, outputs]
};
void linear(const Kernels& kernels, const LinearCall& call, const Parallel& parallel);

// Each row's top_k experts and their scores (program/route.h); 1 <= top_k <= experts
struct MoeRouteCall {
    ValueType type;  // of logits
    int64_t rows;
    int experts, top_k;
    Scoring scoring;
    const void* logits;  // [rows, experts]
    int64_t* chosen;     // [rows, top_k]
    float* scores;       // [rows, top_k]
};
void moe_route(const MoeRouteCall& call, const Parallel& parallel);

// A copy of x's row for each of its choices, grouped by expert in ascending order and, inside, in the order of the choices. A
// choice is row * top_k + its place among the row's. Every expert is one of 0 .. num_experts - 1: the caller has looked.
struct MoeDispatchCall {
    ValueType type;  // of x and gathered
    int64_t rows, top_k, hidden, num_experts;
    const void* x;           // [rows, hidden]
    const int64_t* experts;  // [rows, top_k]
    const float* scores;     // [rows, top_k], each multiplies its copy, or null
    void* gathered;          // [rows * top_k, hidden]
    int64_t* offsets;        // [num_experts + 1]: expert e has rows offsets[e] .. offsets[e + 1] of gathered
    int64_t* source;         // [rows * top_k]: the choice that each row of gathered serves
};
void moe_dispatch(const MoeDispatchCall& call, const Parallel& parallel);

// out[row] = the sum of the results of the row's choices, each times its score, from the first choice to the last; top_k >= 1
struct MoeCombineCall {
    ValueType type;  // of y and out
    int64_t rows, top_k, hidden;
    const void* y;         // [rows * top_k, hidden]
    const int64_t* place;  // [rows, top_k]: the row of y that holds a choice's result
    const float* scores;   // [rows, top_k], or null
    void* out;             // [rows, hidden]
};
void moe_combine(const MoeCombineCall& call, const Parallel& parallel);

}  // namespace llama_ext::cpu

// What a mixture of experts does around its products, on plain arrays, for the torch operators (llama_ext/ops.py says what they
// are). `type` is of the values: Format::f32 or Format::bf16.
#pragma once

#include <cstdint>

#include "cuda/plan.h"
#include "program/format.h"
#include "program/route.h"

namespace llama_ext::cuda {

struct MoeRouteCall {
    Format type;
    int64_t rows;
    int experts, top_k;  // 1 <= top_k <= experts
    Scoring scoring;
    Address logits;  // [rows, experts]
    Address chosen;  // int64 [rows, top_k]
    Address scores;  // float32 [rows, top_k]
};
Plan moe_route(const MoeRouteCall& call);

// Two launches. Experts must be 0 to num_experts - 1: one that is not has no place in what comes out, where some of it is then
// not written. Nothing out of bounds is touched.
struct MoeDispatchCall {
    Format type;
    int64_t rows, top_k, hidden, num_experts;
    Address x;         // [rows, hidden]
    Address experts;   // int64 [rows, top_k]
    Address scores;    // float32 [rows, top_k] or null: each multiplies its copy
    Address gathered;  // [rows * top_k, hidden]
    Address offsets;   // int64 [num_experts + 1]
    Address source;    // int64 [rows * top_k]
};
Plan moe_dispatch(const MoeDispatchCall& call);

// Two launches. source must be a permutation: a choice that it lacks makes its row NaN.
struct MoeCombineCall {
    Format type;
    int64_t rows, top_k, hidden;
    Address y;       // [rows * top_k, hidden]
    Address source;  // int64 [rows * top_k]
    Address scores;  // float32 [rows, top_k] or null: each multiplies its choice's result
    Address place;   // int64 [rows * top_k], for what lies between
    Address out;     // [rows, hidden]
};
Plan moe_combine(const MoeCombineCall& call);

}  // namespace llama_ext::cuda

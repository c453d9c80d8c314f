// A mixture of experts: which experts each row goes to, and the step's rows sorted by expert.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/pack.h"
#include "cuda/plan.h"
#include "cuda/product.h"
#include "program/route.h"

// What comes after, for those who need all of a mixture.
#include "cuda/combine.h"
#include "cuda/fetch.h"

namespace llama_ext::cuda {

// n = rms_norm(x) * norm;  experts = the top_k largest of W n, their scores (program/route.h); rows sorted by expert.
// W n is computed in float32, whatever W's format: f32, f16, bf16 or q8_0.
struct RouteCall {
    Matrix router;  // [experts, hidden], packed; up to 256 experts, hidden a multiple of 4
    Address step;
    int max_rows;
    Address x;     // float32 [max_rows, hidden]
    Address norm;  // float32 [hidden]
    float eps;
    int top_k;
    Scoring scoring;
    bool shared;      // there is a shared expert: each row has one more entry
    Address n;        // float32 [max_rows, hidden], written
    Address logits;   // float32 [max_rows, experts], written
    Groups groups;    // written; max_groups >= route_groups(...)
    Address entry;    // int32 [max_rows, top_k + shared], written: a row's entries, in the order in which they are added up
    Address scratch;  // route_scratch_bytes(), zeroed once, when it is made
};

int route_groups(int max_rows, int top_k, int experts, bool shared);  // min(max_rows * top_k, experts) + shared
size_t route_scratch_bytes(int max_rows, int experts);

// One launch for up to 16 rows, in which a row's results are the same bits for any max_rows up to 16 and any number of rows; four
// launches for more.
Plan route(const RouteCall& call, const Card& card);

}  // namespace llama_ext::cuda

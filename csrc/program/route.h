// A router's choice for one token: which experts it goes to and what their scores are. Defined once, for every executor and for
// torch's operators.
//
//  1. The top_k largest logits, in descending order, compared in float32. Ties go to the lowest expert index (-0 and +0 are a
//     tie). A NaN ranks above every number, as in torch.topk: it is chosen and shows in the result instead of vanishing.
//  2. Scores of the chosen logits l_0 >= l_1 >= ..., computed in float64 with the C library's exp and rounded to float32 once:
//       sigmoid   1 / (1 + exp(-l_i)), each by itself (Llama 4; multiplies an expert's input)
//       softmax   exp(l_i - l_0) / sum_j exp(l_j - l_0), summed in the order of the choices (Mixtral; multiplies its output). The
//                 same as renormalising a softmax over all experts. As in torch.softmax, an infinite l_0 gives NaN.
//
// A function of the logits alone: no threads, no SIMD level and no other token moves a bit. The C library's exp in float64 is off
// by less than 1 ulp, so that two libraries give different float32 scores about once in 10^8.
#pragma once

#include <cstdint>

namespace llama_ext {

enum class Scoring : uint8_t { softmax, sigmoid };

// logits: [experts]; chosen, scores: [top_k]; 1 <= top_k <= experts, any number of experts. chosen are distinct indices of
// 0 .. experts - 1 whatever the logits are. Allocates nothing.
void route(const float* logits, int experts, int top_k, Scoring scoring, int32_t* chosen, float* scores);

}  // namespace llama_ext

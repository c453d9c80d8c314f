// Which experts a token goes to: the routing of a mixture of experts, one row at a time.
#pragma once

#include <cstdint>

namespace llama_ext {

// What the logits of the chosen experts become.
//   softmax   a softmax over the chosen alone (Mixtral)
//   sigmoid   each its own sigmoid, whatever the others are (Llama 4)
enum class Scoring : uint8_t { softmax, sigmoid };

// logits [experts] -> chosen, scores [top_k]: the top_k largest logits in descending order, compared as they are, in float32;
// of equal ones the lowest index comes first. Where logits are NaN, the indices are still distinct and in range.
void route(const float* logits, int experts, int top_k, Scoring scoring, int32_t* chosen, float* scores);

}  // namespace llama_ext

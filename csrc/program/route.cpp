#include "program/route.h"

#include <algorithm>
#include <cmath>

namespace llama_ext {

void route(const float* logits, int experts, int top_k, Scoring scoring, int32_t* chosen, float* scores) {
    for (int j = 0; j < top_k; ++j) {
        int best = -1;
        for (int e = 0; e < experts; ++e) {
            if (best >= 0 && !(logits[e] > logits[best])) continue;
            if (std::find(chosen, chosen + j, e) == chosen + j) best = e;
        }
        chosen[j] = best;
    }
    if (scoring == Scoring::sigmoid) {
        for (int j = 0; j < top_k; ++j)
            scores[j] = static_cast<float>(1 / (1 + std::exp(-static_cast<double>(logits[chosen[j]]))));
        return;
    }
    // In float64, so that the result is float32's nearest whatever the exponential's implementation.
    double sum = 0;
    for (int j = 0; j < top_k; ++j) sum += std::exp(static_cast<double>(logits[chosen[j]]) - logits[chosen[0]]);
    for (int j = 0; j < top_k; ++j)
        scores[j] = static_cast<float>(std::exp(static_cast<double>(logits[chosen[j]]) - logits[chosen[0]]) / sum);
}

}  // namespace llama_ext

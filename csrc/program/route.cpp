#include "program/route.h"

#include <cmath>

namespace llama_ext {
namespace {

// Strictly above in the order of the choice; equals are taken in the order of their indices.
bool above(float a, float b) { return a > b || (std::isnan(a) && !std::isnan(b)); }

void choose(const float* logits, int experts, int top_k, int32_t* chosen) {
    int count = 0;
    for (int32_t expert = 0; expert < experts; ++expert) {
        if (count == top_k && !above(logits[expert], logits[chosen[count - 1]])) continue;
        int place = count < top_k ? count++ : count - 1;
        for (; place > 0 && above(logits[expert], logits[chosen[place - 1]]); --place) chosen[place] = chosen[place - 1];
        chosen[place] = expert;
    }
}

}  // namespace

void route(const float* logits, int experts, int top_k, Scoring scoring, int32_t* chosen, float* scores) {
    choose(logits, experts, top_k, chosen);
    if (scoring == Scoring::sigmoid) {
        for (int i = 0; i < top_k; ++i)
            scores[i] = static_cast<float>(1 / (1 + std::exp(-static_cast<double>(logits[chosen[i]]))));
        return;
    }
    // exp is called twice instead of keeping top_k float64 values somewhere.
    const double largest = logits[chosen[0]];
    const auto power = [&](int i) { return std::exp(logits[chosen[i]] - largest); };
    double sum = 0;
    for (int i = 0; i < top_k; ++i) sum += power(i);
    for (int i = 0; i < top_k; ++i) scores[i] = static_cast<float>(power(i) / sum);
}

}  // namespace llama_ext

#pragma once

#include <cstdint>

#include "cuda/plan.h"

namespace llama_ext::cuda {

// y = x / sqrt(mean(x^2) + eps) * weight, a row at a time, all float32
struct RmsNormCall {
    Address x;       // [rows, n]
    Address weight;  // [n] or null
    Address y;       // [rows, n], may be x
    int64_t rows, n;
    float eps;
};

Plan rms_norm(const RmsNormCall& call);

}  // namespace llama_ext::cuda

#pragma once

#include <cstdint>

#include "cuda/plan.h"

namespace llama_ext::cuda {

// y = W x, or y = W x + residual
struct ProductCall {
    Address weight;    // [rows, cols] bf16
    Address x;         // [cols] float32
    Address residual;  // [rows] float32 or null, may be y
    Address y;         // [rows] float32
    int64_t rows, cols;
};

// multiprocessors: of the card, which the grid is made for
Plan product(const ProductCall& call, int multiprocessors);

}  // namespace llama_ext::cuda

#pragma once

#include <cstdint>

#include "cuda/plan.h"

namespace llama_ext::cuda {

// y = W x, or y = W x + residual
struct ProductCall {
    Address weight;    // [rows, cols] bf16; no launch ahead in the stream may write it: it is read before the wait for them
    Address x;         // [cols] float32, apart from y
    Address residual;  // [rows] float32 or null, may be y
    Address y;         // [rows] float32
    int64_t rows, cols;
};

// The card, which the grid is made for: its multiprocessors, and the shared memory of each in bytes.
Plan product(const ProductCall& call, int multiprocessors, int shared_bytes_each);

}  // namespace llama_ext::cuda

#include "cuda/kernels/product.cuh"

LLAMA_EXT_PRODUCTS(q4_0, WeightsQ4_0)

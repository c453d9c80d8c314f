#include "cuda/kernels/product.cuh"

LLAMA_EXT_PRODUCTS(q4_1, WeightsQ4_1)

#include "cuda/kernels/product.cuh"

LLAMA_EXT_PRODUCTS(q4_k, WeightsQ4_K)

#include "cuda/kernels/product.cuh"

LLAMA_EXT_PRODUCTS(q5_k, WeightsQ5_K)

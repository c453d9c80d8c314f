#include "cuda/kernels/product.cuh"

LLAMA_EXT_PRODUCTS(q6_k, WeightsQ6_K)

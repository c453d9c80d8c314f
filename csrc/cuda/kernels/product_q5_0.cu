#include "cuda/kernels/product.cuh"

LLAMA_EXT_PRODUCTS(q5_0, WeightsQ5_0)

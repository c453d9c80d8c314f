#include "cuda/kernels/product.cuh"

LLAMA_EXT_PRODUCTS(q5_1, WeightsQ5_1)

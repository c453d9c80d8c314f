#include "cuda/kernels/product.cuh"

LLAMA_EXT_PRODUCTS(q8_0, WeightsQ8_0)

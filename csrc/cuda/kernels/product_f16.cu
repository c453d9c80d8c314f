#include "cuda/kernels/product.cuh"

LLAMA_EXT_PRODUCTS(f16, WeightsF16)

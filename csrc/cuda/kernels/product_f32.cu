#include "cuda/kernels/product.cuh"

LLAMA_EXT_PRODUCTS(f32, WeightsF32)

#include "cuda/kernels/product.cuh"

LLAMA_EXT_PRODUCTS(mxfp8, WeightsMxfp8)

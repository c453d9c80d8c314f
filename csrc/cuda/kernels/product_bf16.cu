#include "cuda/kernels/product.cuh"

LLAMA_EXT_PRODUCTS(bf16, WeightsBf16)

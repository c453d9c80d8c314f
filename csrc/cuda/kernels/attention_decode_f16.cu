// Attention of up to 16 rows over a cache in f16.
#include "cuda/kernels/attention_decode.cuh"

LLAMA_EXT_DECODE_KERNELS(f16, F16Cache)

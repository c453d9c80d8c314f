// Attention of up to 16 rows over a cache in bf16.
#include "cuda/kernels/attention_decode.cuh"

LLAMA_EXT_DECODE_KERNELS(bf16, Bf16Cache)

// Attention of up to 16 rows over a cache in fp8.
#include "cuda/kernels/attention_decode.cuh"

LLAMA_EXT_DECODE_KERNELS(fp8, Fp8Cache)

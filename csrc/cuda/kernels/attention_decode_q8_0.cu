// Attention of up to 16 rows over a cache in q8_0.
#include "cuda/kernels/attention_decode.cuh"

LLAMA_EXT_DECODE_KERNELS(q8_0, Q8Cache)

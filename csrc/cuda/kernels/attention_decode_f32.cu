// Attention of up to 16 rows over a cache in f32.
#include "cuda/kernels/attention_decode.cuh"

LLAMA_EXT_DECODE_KERNELS(f32, F32Cache)

#include "cuda/kernels/attention_prefill_tiles.cuh"

LLAMA_EXT_PREFILL(q8_0, Q8Tiles, 64)
LLAMA_EXT_PREFILL(q8_0, Q8Tiles, 128)

#include "cuda/kernels/attention_prefill_tiles.cuh"

LLAMA_EXT_PREFILL(f16, F16Tiles, 64)
LLAMA_EXT_PREFILL(f16, F16Tiles, 128)

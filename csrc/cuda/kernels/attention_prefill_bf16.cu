#include "cuda/kernels/attention_prefill_tiles.cuh"

LLAMA_EXT_PREFILL(bf16, Bf16Tiles, 64)
LLAMA_EXT_PREFILL(bf16, Bf16Tiles, 128)

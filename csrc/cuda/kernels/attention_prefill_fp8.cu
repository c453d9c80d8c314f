#include "cuda/kernels/attention_prefill_tiles.cuh"

LLAMA_EXT_PREFILL(fp8, Fp8Tiles, 64)
LLAMA_EXT_PREFILL(fp8, Fp8Tiles, 128)

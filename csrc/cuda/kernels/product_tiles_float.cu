#include "cuda/kernels/product_tiles.cuh"

LLAMA_EXT_PRODUCT_TILES(float_bf16, TileBf16)
LLAMA_EXT_PRODUCT_TILES(float_f16, TileF16)
LLAMA_EXT_PRODUCT_TILES(float_mxfp8, TileMxfp8)

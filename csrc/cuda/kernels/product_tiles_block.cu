#include "cuda/kernels/product_tiles.cuh"

LLAMA_EXT_PRODUCT_TILES(block_q8_0, TileQ8_0)
LLAMA_EXT_PRODUCT_TILES(block_q4_0, TileQ4_0)
LLAMA_EXT_PRODUCT_TILES(block_q4_1, TileQ4_1)
LLAMA_EXT_PRODUCT_TILES(block_q5_0, TileQ5_0)
LLAMA_EXT_PRODUCT_TILES(block_q5_1, TileQ5_1)

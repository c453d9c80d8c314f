#include "cuda/kernels/product_tiles.cuh"

LLAMA_EXT_PRODUCT_TILES(k_q4, TileQ4_K)
LLAMA_EXT_PRODUCT_TILES(k_q5, TileQ5_K)
LLAMA_EXT_PRODUCT_TILES(k_q6, TileQ6_K)

// For headers that kernels share with the host code that launches them.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define LLAMA_EXT_BOTH __host__ __device__
#else
#define LLAMA_EXT_BOTH
#endif

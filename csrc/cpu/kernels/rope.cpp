// Rotary position embedding (Su et al. 2021) on interleaved pairs.
#include "cpu/kernels/level.h"

namespace llama_ext::cpu::LLAMA_EXT_LEVEL {

void rotate(float* x, const float* cosine, const float* sine, int64_t n) {
    for (int64_t i = 0; i < n / 2; ++i) {
        const float even = x[2 * i], odd = x[2 * i + 1];
        x[2 * i] = even * cosine[i] - odd * sine[i];
        x[2 * i + 1] = even * sine[i] + odd * cosine[i];
    }
}

}  // namespace llama_ext::cpu::LLAMA_EXT_LEVEL

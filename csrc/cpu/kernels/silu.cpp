// SwiGLU's elementwise part (Shazeer 2020): silu(gate) * up, silu(x) = x / (1 + e^-x).
#include "cpu/kernels/level.h"

namespace llama_ext::cpu::LLAMA_EXT_LEVEL {

void silu_times(const float* gate, const float* up, int64_t n, float* out) {
    const F32x16 one = broadcast(1.0f);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const F32x16 g = load(gate + i);
        store(out + i, g / (one + exp(zero() - g)) * load(up + i));
    }
    if (const int rest = static_cast<int>(n - i)) {
        const F32x16 g = load_first(gate + i, rest);
        store_first(out + i, rest, g / (one + exp(zero() - g)) * load_first(up + i, rest));
    }
}

}  // namespace llama_ext::cpu::LLAMA_EXT_LEVEL

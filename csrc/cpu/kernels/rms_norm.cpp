// Root mean square normalisation (Zhang and Sennrich 2019), with the weight applied in float32 without a rounding in between.
#include "cpu/kernels/level.h"

namespace llama_ext::cpu::LLAMA_EXT_LEVEL {

void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out) {
    // Four sums, because one would wait for every addition before it.
    F32x16 sums[4] = {zero(), zero(), zero(), zero()};
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) {
        for (int j = 0; j < 4; ++j) {
            const F32x16 v = load(x + i + 16 * j);
            sums[j] = fma(v, v, sums[j]);
        }
    }
    for (; i < n; i += 16) {
        const F32x16 v = n - i >= 16 ? load(x + i) : load_first(x + i, static_cast<int>(n - i));
        sums[0] = fma(v, v, sums[0]);
    }
    const float mean = reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3])) / static_cast<float>(n);
    const F32x16 factor = broadcast(1.0f / __builtin_sqrtf(mean + eps));
    for (i = 0; i + 16 <= n; i += 16) {
        const F32x16 v = load(x + i) * factor;
        store(out + i, weight ? v * load(weight + i) : v);
    }
    if (const int rest = static_cast<int>(n - i)) {
        const F32x16 v = load_first(x + i, rest) * factor;
        store_first(out + i, rest, weight ? v * load_first(weight + i, rest) : v);
    }
}

}  // namespace llama_ext::cpu::LLAMA_EXT_LEVEL

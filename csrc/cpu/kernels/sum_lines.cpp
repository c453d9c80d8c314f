#include "cpu/kernels/level.h"

namespace llama_ext::cpu::LLAMA_EXT_LEVEL {

uint64_t sum_lines(const std::byte* p, int64_t lines) {
    I32x16 sums[4] = {broadcast(0), broadcast(0), broadcast(0), broadcast(0)};
    int64_t i = 0;
    for (; i + 4 <= lines; i += 4)
        for (int j = 0; j < 4; ++j) sums[j] = sums[j] + load_words(p + 64 * (i + j));
    for (; i < lines; ++i) sums[0] = sums[0] + load_words(p + 64 * i);
    return static_cast<uint32_t>(reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3])));
}

}  // namespace llama_ext::cpu::LLAMA_EXT_LEVEL

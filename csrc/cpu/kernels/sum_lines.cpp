#include "cpu/kernels/level.h"

namespace llama_ext::cpu::LLAMA_EXT_LEVEL {

uint64_t sum_lines(const std::byte* p, int64_t lines) {
    I32x16 sums[4] = {broadcast(0), broadcast(0), broadcast(0), broadcast(0)};
    int64_t i = 0;
    for (; i + 4 <= lines; i += 4)
        for (int j = 0; j < 4; ++j) sums[j] = sums[j] + load_words(p + 64 * (i + j));
    for (; i < lines; ++i) sums[0] = sums[0] + load_words(p + 64 * i);
    // Lane by lane and unsigned, for this sum is meant to wrap.
    float lanes[16];
    store(lanes, bits_to_f32((sums[0] + sums[1]) + (sums[2] + sums[3])));
    uint32_t words[16], sum = 0;
    memcpy(words, lanes, sizeof words);
    for (const uint32_t word : words) sum += word;
    return sum;
}

}  // namespace llama_ext::cpu::LLAMA_EXT_LEVEL

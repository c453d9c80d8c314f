#include "core/counters.h"

#include <algorithm>
#include <bit>

namespace vgpu {

Wavefronts wavefronts(const uint64_t* address, uint32_t mask, uint32_t unit) {
    constexpr uint32_t kBanks = 32;
    const uint32_t lanes_a_pass = unit <= 4 ? 32 : std::max<uint32_t>(128 / unit, 1);
    Wavefronts w{0, 0};
    for (uint32_t from = 0; from < 32; from += lanes_a_pass) {
        const uint32_t part = lanes_a_pass == 32 ? mask : mask & (((uint32_t{1} << lanes_a_pass) - 1) << from);
        if (!part) continue;
        // Distinct words of each bank.
        uint64_t words[32 * 8];
        uint32_t n = 0;
        for (uint32_t rest = part; rest; rest &= rest - 1) {
            const uint64_t at = address[std::countr_zero(rest)];
            for (uint64_t word = at / 4; word <= (at + unit - 1) / 4; ++word) words[n++] = word;
        }
        std::sort(words, words + n);
        n = static_cast<uint32_t>(std::unique(words, words + n) - words);
        uint32_t in_bank[kBanks] = {};
        uint32_t most = 0;
        for (uint32_t i = 0; i < n; ++i) most = std::max(most, ++in_bank[words[i] % kBanks]);
        w.taken += most;
        w.ideal += (n + kBanks - 1) / kBanks;
    }
    return w;
}

Sectors sectors(const uint64_t* address, uint32_t mask, uint32_t unit) {
    uint64_t begins[32], touched[32 * 2];
    uint32_t n = 0, s = 0;
    for (uint32_t rest = mask; rest; rest &= rest - 1) begins[n++] = address[std::countr_zero(rest)];
    std::sort(begins, begins + n);
    n = static_cast<uint32_t>(std::unique(begins, begins + n) - begins);
    for (uint32_t i = 0; i < n; ++i)
        for (uint64_t x = begins[i] / 32; x <= (begins[i] + unit - 1) / 32; ++x)
            if (s == 0 || touched[s - 1] != x) touched[s++] = x;
    return {s, static_cast<uint32_t>((uint64_t{n} * unit + 31) / 32)};
}

}  // namespace vgpu

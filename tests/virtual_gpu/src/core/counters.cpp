#include "core/counters.h"

#include <algorithm>
#include <bit>

namespace vgpu {

Wavefronts wavefronts(const uint64_t* address, uint32_t mask, uint32_t unit) {
    // Accesses are aligned to their size, so wider ones than a word take whole groups of banks: 32 of 4 bytes, 16 of 8, 8 of 16.
    // Narrower ones share words.
    const uint32_t width = std::clamp<uint32_t>(std::bit_ceil(unit), 4, 128);
    const uint32_t lanes_a_pass = 128 / width;
    Wavefronts w{0, 0};
    for (uint32_t from = 0; from < 32; from += lanes_a_pass) {
        uint64_t of_bank[32][32];  // distinct words (or groups of them) of each bank (or group)
        uint32_t n[32] = {};
        uint32_t distinct = 0, most = 0;
        for (uint32_t lane = from; lane < from + lanes_a_pass; ++lane) {
            if (!(mask >> lane & 1)) continue;
            const uint64_t word = address[lane] / width;
            const uint64_t bank = word % lanes_a_pass;
            bool known = false;
            for (uint32_t i = 0; i < n[bank] && !known; ++i) known = of_bank[bank][i] == word;
            if (known) continue;
            of_bank[bank][n[bank]++] = word;
            ++distinct;
            most = std::max(most, n[bank]);
        }
        w.taken += most;
        w.ideal += (distinct + lanes_a_pass - 1) / lanes_a_pass;
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

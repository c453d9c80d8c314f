// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as
// easy as 1, 2, 3" (SC 2011). Being a pure function of (key, counter) it needs no state: every backend draws
// the same bits.
#pragma once

#include <cstdint>

#ifndef LLAMA_EXT_HD
#ifdef __CUDACC__
#define LLAMA_EXT_HD __host__ __device__
#else
#define LLAMA_EXT_HD
#endif
#endif

namespace llama_ext {

struct Philox4 {
    uint32_t word[4];
};

// The key is the seed; the counter is (position, draw), low words first.
LLAMA_EXT_HD inline Philox4 philox(uint64_t seed, uint64_t position, uint64_t draw) {
    uint32_t c0 = static_cast<uint32_t>(position), c1 = static_cast<uint32_t>(position >> 32);
    uint32_t c2 = static_cast<uint32_t>(draw), c3 = static_cast<uint32_t>(draw >> 32);
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = uint64_t{0xD2511F53u} * c0;
        const uint64_t p1 = uint64_t{0xCD9E8D57u} * c2;
        c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
        c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
        c1 = static_cast<uint32_t>(p1);
        c3 = static_cast<uint32_t>(p0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

}  // namespace llama_ext

// The keys and values of one session, and how far it has come. Address space for every slot is reserved at once; memory follows
// as slots are written, at addresses that never change.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/attention.h"
#include "cpu/memory.h"
#include "program/sequence.h"

namespace llama_ext::cpu {

class Cache : public Sequence {
public:
    // poison: fill every slot that holds no position with NaN, so that reading one shows (for tests; touches all memory)
    Cache(const Program& program, bool poison, int64_t start = 0);

    // Forgets the last n positions (Sequence::take_back).
    void rollback(int64_t n);
    void reset();

    const CacheView& layer(int index) const { return views_[static_cast<size_t>(index)]; }
    size_t bytes_reserved() const;

private:
    void poison_slots(const CacheView& view, int64_t first, int64_t last) const;

    const bool poison_;
    std::vector<Pages> pages_;
    std::vector<CacheView> views_;
};

}  // namespace llama_ext::cpu

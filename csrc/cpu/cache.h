// The keys and values of one session, and how far it has come. Address space for every slot is reserved at once; memory follows
// as slots are written, at addresses that never change.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

#include "cpu/attention.h"
#include "cpu/memory.h"
#include "program/program.h"

namespace llama_ext::cpu {

class Cache {
public:
    // poison: fill every slot that holds no position with NaN, so that reading one shows (for tests; touches all memory)
    // start: the position of the first token. There is nothing before it: a query sees its mask's keys from `start` on. Throws
    // std::invalid_argument unless it is from 0 to the program's max_context.
    Cache(const Program& program, bool poison, int64_t start = 0);

    const Program& program() const { return program_; }
    int64_t start() const { return start_; }
    int64_t position() const { return position_; }

    // An executor holds this during a step; rollback and reset, perhaps from another thread, wait for it.
    std::unique_lock<std::mutex> lock() { return std::unique_lock(mutex_); }
    void advance(int64_t rows) {
        position_ += rows;
        if (position_ > highest_) highest_ = position();
    }

    // Forgets the last n positions. Throws std::invalid_argument when n is negative, more than there are, or more than the
    // rings of chunked and sliding layers can take back.
    void rollback(int64_t n);
    int64_t max_rollback() const { return std::min(position_ - start_, program_.max_rollback(position_, highest_)); }
    void reset();

    const CacheView& layer(int index) const { return views_[static_cast<size_t>(index)]; }
    // Bytes of the slots that hold positions now.
    size_t bytes_used() const;
    size_t bytes_reserved() const;

private:
    void poison_slots(const CacheView& view, int64_t first, int64_t last) const;

    const Program& program_;
    const bool poison_;
    const int64_t start_;
    std::mutex mutex_;
    std::atomic<int64_t> position_ = 0;
    std::atomic<int64_t> highest_ = 0;  // the furthest position since the rings were empty: what it overwrote is gone
    std::vector<Pages> pages_;
    std::vector<CacheView> views_;
};

}  // namespace llama_ext::cpu

// Who knows what: vector clocks over threads. An access happens before another if the second's thread knows of it through a
// chain of barriers, fences and atomics; if neither knows of the other, they race.
//
// Every warp counts `now`, which rises whenever one of its lanes publishes something. A thread's knowledge of another thread u is
// a number: of all accesses that u made while its warp's `now` was smaller. Knowledge is immutable and shared: after a barrier
// all threads of a block hold the same object.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

namespace vgpu {

struct alignas(64) LaneClocks {
    std::array<uint32_t, 32> lane{};
};

// Knowledge of the threads of one block: [warps]
using BlockClocks = std::vector<LaneClocks>;

struct Clock {
    std::shared_ptr<const BlockClocks> own;                                                // the block's own warps; null: nothing
    std::shared_ptr<const std::map<uint32_t, std::shared_ptr<const BlockClocks>>> others;  // by block, by its first warp's serial
    bool predecessors = false;                                                             // has come past griddepcontrol.wait
};
using ClockPtr = std::shared_ptr<const Clock>;

// The least knowledge that includes both; either may be null. One of the two is returned if it includes the other by sight.
ClockPtr join(const ClockPtr& a, const ClockPtr& b);

// What a thread of the block `of` knows, as a thread of `to` would hold it: the block's own warps become one of `others`.
// Blocks by the serial of their first warp; 0 is none.
ClockPtr seen_from(const ClockPtr& clock, uint32_t of, uint32_t to);

// What threads have published at one address, in order. Joined when somebody asks: of the many blocks that count themselves in,
// as a rule only the last looks.
class PublishedLog {
public:
    void add(uint32_t block, ClockPtr clock) { entries_.emplace_back(block, std::move(clock)); }
    size_t size() const { return entries_.size(); }
    // The first n, as a thread of `block` holds them.
    ClockPtr first(size_t n, uint32_t block);

private:
    std::vector<std::pair<uint32_t, ClockPtr>> entries_;
    ClockPtr joined_;  // the first joined_size_, as seen from no block
    size_t joined_size_ = 0;
};

}  // namespace vgpu

#include "core/clock.h"

#include <algorithm>

namespace vgpu {
namespace {

using BlockPtr = std::shared_ptr<const BlockClocks>;
using Others = std::map<uint32_t, BlockPtr>;

bool includes(const BlockClocks& a, const BlockClocks& b) {
    bool all = true;
    for (size_t w = 0; w < b.size() && all; ++w)
        for (size_t l = 0; l < 32; ++l) all &= a[w].lane[l] >= b[w].lane[l];
    return all;
}

BlockPtr join(const BlockPtr& a, const BlockPtr& b) {
    if (!a || a == b) return b;
    if (!b) return a;
    if (includes(*a, *b)) return a;
    auto both = std::make_shared<BlockClocks>(*a);
    for (size_t w = 0; w < b->size(); ++w)
        for (size_t l = 0; l < 32; ++l) (*both)[w].lane[l] = std::max((*both)[w].lane[l], (*b)[w].lane[l]);
    return both;
}

std::shared_ptr<const Others> join(const std::shared_ptr<const Others>& a, const std::shared_ptr<const Others>& b) {
    if (!a || a == b) return b;
    if (!b) return a;
    std::shared_ptr<Others> both;  // made when the first difference shows
    for (const auto& [block, clocks] : *b) {
        const auto found = a->find(block);
        const BlockPtr joined = found == a->end() ? clocks : join(found->second, clocks);
        if (found != a->end() && joined == found->second) continue;
        if (!both) both = std::make_shared<Others>(*a);
        (*both)[block] = joined;
    }
    return both ? both : a;
}

}  // namespace

ClockPtr join(const ClockPtr& a, const ClockPtr& b) {
    if (!a || a == b) return b;
    if (!b) return a;
    const auto own = join(a->own, b->own);
    const auto others = join(a->others, b->others);
    const bool predecessors = a->predecessors || b->predecessors;
    if (own == a->own && others == a->others && predecessors == a->predecessors) return a;
    return std::make_shared<Clock>(Clock{own, others, predecessors});
}

ClockPtr seen_from(const ClockPtr& clock, uint32_t of, uint32_t to) {
    if (!clock || of == to) return clock;
    auto others = clock->others ? std::make_shared<Others>(*clock->others) : std::make_shared<Others>();
    Clock seen{nullptr, nullptr, clock->predecessors};
    if (const auto found = others->find(to); found != others->end()) {
        seen.own = found->second;
        others->erase(found);
    }
    if (clock->own) {
        BlockPtr& entry = (*others)[of];
        entry = join(entry, clock->own);
    }
    seen.others = std::move(others);
    return std::make_shared<Clock>(std::move(seen));
}

ClockPtr PublishedLog::first(size_t n, uint32_t block) {
    if (n == 0) return nullptr;
    if (n != joined_size_) {
        const bool on = joined_ && joined_size_ < n;
        auto others = on && joined_->others ? std::make_shared<Others>(*joined_->others) : std::make_shared<Others>();
        bool predecessors = on && joined_->predecessors;
        const auto add = [&others](uint32_t from, const BlockPtr& clocks) {
            BlockPtr& entry = (*others)[from];
            entry = join(entry, clocks);
        };
        for (size_t i = on ? joined_size_ : 0; i < n; ++i) {
            const auto& [from, clock] = entries_[i];
            if (clock->own) add(from, clock->own);
            if (clock->others)
                for (const auto& [of, clocks] : *clock->others) add(of, clocks);
            predecessors |= clock->predecessors;
        }
        joined_ = std::make_shared<Clock>(Clock{nullptr, std::move(others), predecessors});
        joined_size_ = n;
    }
    return seen_from(joined_, 0, block);
}

}  // namespace vgpu

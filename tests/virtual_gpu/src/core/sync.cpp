// What makes one thread's accesses known to another: barriers, fences, strong operations, mbarriers.
#include <algorithm>
#include <bit>

#include "core/machine.h"

namespace vgpu {
namespace {

uint32_t lowest(uint32_t mask) { return static_cast<uint32_t>(std::countr_zero(mask)); }

ClockPtr with_own_row(const ClockPtr& known, size_t warps, uint32_t warp, const LaneClocks& row) {
    auto own = known && known->own ? std::make_shared<BlockClocks>(*known->own) : std::make_shared<BlockClocks>(warps);
    for (size_t j = 0; j < 32; ++j) (*own)[warp].lane[j] = std::max((*own)[warp].lane[j], row.lane[j]);
    return std::make_shared<Clock>(Clock{own, known ? known->others : nullptr, known && known->predecessors});
}

}  // namespace

ClockPtr Warp::snapshot(uint32_t lane) {
    LaneClocks row;
    for (size_t j = 0; j < 32; ++j) row.lane[j] = pairs ? std::max(synced, (*pairs)[lane].lane[j]) : synced;
    row.lane[lane] = ++now;
    return with_own_row(extra_mask >> lane & 1 ? join(base, extra[lane]) : base, block->warp_count, index, row);
}

// What the lane's last fence made ready.
ClockPtr Warp::publishable(uint32_t lane, int scope) const {
    const auto s = static_cast<size_t>(scope);
    ClockPtr all = released_base[s];
    if (released_mask[s] >> lane & 1) {
        const FenceRecord& r = *released[s][lane];
        if (r.whole) return join(all, r.whole);
        LaneClocks row;
        for (size_t j = 0; j < 32; ++j) row.lane[j] = r.pairs ? std::max(r.synced, (*r.pairs)[lane].lane[j]) : r.synced;
        row.lane[lane] = r.now;
        all = join(all,
                   with_own_row(r.extra_mask >> lane & 1 ? join(r.base, r.extra[lane]) : r.base, block->warp_count, index, row));
    }
    return all;
}

void Warp::learn(uint32_t lane, const ClockPtr& clock) {
    if (!clock) return;
    if (clock->own) {
        const LaneClocks& row = (*clock->own)[index];
        bool more = false;
        for (size_t j = 0; j < 32; ++j) more |= row.lane[j] > synced;
        if (more) {
            if (!pairs) pairs = std::make_shared<std::array<LaneClocks, 32>>();
            for (size_t j = 0; j < 32; ++j) (*pairs)[lane].lane[j] = std::max((*pairs)[lane].lane[j], row.lane[j]);
        }
    }
    const ClockPtr known = join(base, clock);
    if (known == base) return;
    extra[lane] = extra_mask >> lane & 1 ? join(extra[lane], clock) : clock;
    extra_mask |= uint32_t{1} << lane;
}

void Warp::see(uint32_t lanes, const ClockPtr& of_block) {
    for (uint32_t rest = lanes; rest; rest &= rest - 1) {
        ClockPtr& known = pending[lowest(rest)];
        known = join(pending_mask & rest & -rest ? known : nullptr, of_block);
    }
    pending_mask |= lanes;
}

void Warp::see(uint32_t lanes, const std::shared_ptr<PublishedLog>& log, size_t size) {
    for (Seen& seen : pending_device)
        if (seen.log == log && (seen.lanes == lanes || seen.size == size)) {
            seen.size = std::max(seen.size, size);
            seen.lanes |= lanes;
            return;
        }
    pending_device.push_back({lanes, log, size});
}

// bar.warp.sync: each of the lanes knows what the others know.
void Machine::warp_synced(Warp& warp, uint32_t mask) {
    ClockPtr all;
    for (uint32_t rest = mask & warp.extra_mask; rest; rest &= rest - 1) all = join(all, warp.extra[lowest(rest)]);
    for (size_t s = 0; s < 2; ++s) {
        if (!(warp.released_mask[s] & mask)) continue;
        ClockPtr published = warp.released_base[s];
        for (uint32_t rest = warp.released_mask[s] & mask; rest; rest &= rest - 1)
            published = join(published, warp.publishable(lowest(rest), static_cast<int>(s)));
        if ((warp.live & ~mask) == 0) {
            warp.released_base[s] = published;
            warp.released_mask[s] = 0;
        } else {
            auto record = std::make_shared<FenceRecord>();
            record->whole = published;
            for (uint32_t rest = mask; rest; rest &= rest - 1) warp.released[s][lowest(rest)] = record;
            warp.released_mask[s] |= mask;
        }
    }
    if (warp.pending_mask & mask) {
        ClockPtr seen;
        for (uint32_t rest = warp.pending_mask & mask; rest; rest &= rest - 1) seen = join(seen, warp.pending[lowest(rest)]);
        warp.see(mask, seen);
    }
    for (Warp::Seen& seen : warp.pending_device)
        if (seen.lanes & mask) seen.lanes |= mask;
    ++warp.now;
    if (mask == ~uint32_t{0}) {
        warp.synced = warp.now;
        warp.pairs = nullptr;
        if (all) warp.base = join(warp.base, all);
        warp.extra_mask = 0;
        warp.extra.fill(nullptr);
        return;
    }
    if (!warp.pairs) warp.pairs = std::make_shared<std::array<LaneClocks, 32>>();
    LaneClocks row;
    for (uint32_t rest = mask; rest; rest &= rest - 1)
        for (size_t j = 0; j < 32; ++j) row.lane[j] = std::max(row.lane[j], (*warp.pairs)[lowest(rest)].lane[j]);
    for (uint32_t rest = mask; rest; rest &= rest - 1) row.lane[lowest(rest)] = warp.now;
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        (*warp.pairs)[lowest(rest)] = row;
        warp.learn(lowest(rest), all);
    }
}

bool Machine::barrier(Warp& warp, Split& split, const Instruction& in, uint32_t mask) {
    Block& block = *warp.block;
    const uint32_t pc = split.pc;
    const bool aligned = in.small != 0;
    if (aligned && !gather(warp, split, kNone, in, &mask)) return false;
    const uint32_t lane = lowest(mask);
    const auto refuse = [&](const char* kind, std::string message) {
        Fault f;
        f.kind = kind;
        f.message = std::move(message);
        stop(warp, pc, lane, std::move(f), Outcome::failed);
    };
    const uint32_t which = u32(warp.registers, in.a)[lane];
    if (which >= block.barriers.size()) refuse("invalid", "barrier " + std::to_string(which) + ", but there are 16");
    HardwareBarrier& b = block.barriers[which];
    const uint32_t* const size = block.grid->launch->block;
    const uint32_t threads = size[0] * size[1] * size[2];
    const uint32_t count = in.b == kNone ? 0 : u32(warp.registers, in.b)[lane];
    if (count % 32 != 0 || count > 32 * block.warp_count)
        refuse("invalid", "a barrier for " + std::to_string(count) + " threads: it takes a multiple of 32, at most the block's");
    const bool whole = count == 0;  // a count that happens to be the block's asks for nobody in particular
    const uint32_t expected = whole ? threads : count;
    if (b.expected == 0) {
        b.expected = expected;
        b.whole = whole;
    } else if (b.expected != expected) {
        refuse("invalid", "barrier " + std::to_string(which) + " for " + std::to_string(expected) +
                              " threads, where others wait at it for " + std::to_string(b.expected));
    }
    if (whole && block.left_early) {
        Fault f;
        f.kind = "barrier_divergence";
        f.message = "a barrier of the whole block, some of whose threads have exited";
        f.has_other = true;
        f.other = place(block.left);
        f.other_access = "exit";
        stop(warp, pc, lane, std::move(f), Outcome::failed);
    }
    b.arrived += whole || !aligned ? static_cast<uint32_t>(std::popcount(mask)) : 32;
    if (b.arrived > b.expected)
        refuse("invalid", "more threads at barrier " + std::to_string(which) + " than it was announced for");
    if (in.type >= 2) {
        uint32_t p = predicate(warp.registers, in.c);
        if (in.immediate) p = ~p;
        b.count += static_cast<uint32_t>(std::popcount(p & mask));
        b.all += static_cast<uint32_t>(std::popcount(mask));
    }
    ++progress;
    if (in.type == 1) {
        for (uint32_t rest = mask; rest; rest &= rest - 1) b.knowledge = join(b.knowledge, warp.snapshot(lowest(rest)));
        split.pc = pc + 1;
        if (b.arrived == b.expected) {
            complete(block, which);
            return false;
        }
        return true;
    }
    const uint32_t past = split.mask & ~mask;
    split.waits = Waits::barrier;
    split.barrier = static_cast<uint8_t>(which);
    if (past) {
        Split rest = split;
        rest.mask = past;
        rest.waits = Waits::nothing;
        rest.pc = pc + 1;
        split.mask = mask;
        warp.splits.push_back(std::move(rest));
    }
    if (b.arrived == b.expected) complete(block, which);
    return false;
}

void Machine::complete(Block& block, uint32_t which) {
    HardwareBarrier& b = block.barriers[which];
    Grid& grid = *block.grid;
    const Kernel& kernel = *grid.kernel;
    ++grid.counters.barriers;
    auto own = std::make_shared<BlockClocks>(block.warp_count);
    ClockPtr known = b.knowledge, published[2], seen_in_block;
    std::vector<Warp::Seen> seen_on_device;
    const auto each = [&](auto&& body) {
        for (uint32_t w = 0; w < block.warp_count; ++w)
            for (Split& s : block.warps[w].splits)
                if (s.waits == Waits::barrier && s.barrier == which) body(block.warps[w], s);
    };
    each([&](Warp& warp, Split& s) {
        if (!b.whole) {
            for (uint32_t rest = s.mask; rest; rest &= rest - 1)
                known = join(known, warp.extra_mask >> lowest(rest) & 1 ? join(warp.base, warp.extra[lowest(rest)]) : warp.base);
        } else if (known != warp.base || warp.extra_mask) {
            known = join(known, warp.base);
            for (uint32_t rest = s.mask & warp.extra_mask; rest; rest &= rest - 1) known = join(known, warp.extra[lowest(rest)]);
        }
        for (size_t k = 0; k < 2; ++k) {
            if (warp.released_base[k]) published[k] = join(published[k], warp.released_base[k]);
            for (uint32_t rest = s.mask & warp.released_mask[k]; rest; rest &= rest - 1)
                published[k] = join(published[k], warp.publishable(lowest(rest), static_cast<int>(k)));
        }
        for (uint32_t rest = s.mask & warp.pending_mask; rest; rest &= rest - 1)
            seen_in_block = join(seen_in_block, warp.pending[lowest(rest)]);
        for (const Warp::Seen& seen : warp.pending_device)
            if (seen.lanes & s.mask) seen_on_device.push_back(seen);
    });
    if (known && known->own)
        for (size_t w = 0; w < own->size(); ++w) (*own)[w] = (*known->own)[w];
    each([&](Warp& warp, Split& s) {
        LaneClocks& row = (*own)[warp.index];
        for (uint32_t rest = s.mask; rest; rest &= rest - 1) {
            const uint32_t lane = lowest(rest);
            row.lane[lane] = std::max(row.lane[lane], warp.now + 1);
            if (warp.pairs && !b.whole)
                for (size_t j = 0; j < 32; ++j) row.lane[j] = std::max(row.lane[j], (*warp.pairs)[lane].lane[j]);
        }
        for (size_t j = 0; j < 32; ++j) row.lane[j] = std::max(row.lane[j], warp.synced);
    });
    const auto joint = std::make_shared<Clock>(Clock{own, known ? known->others : nullptr, known && known->predecessors});
    const uint32_t count = b.count, all = b.all;
    each([&](Warp& warp, Split& s) {
        const Instruction& in = kernel.code[s.pc];
        if (in.type == 2) {
            uint32_t* d = u32(warp.registers, in.d);
            for (uint32_t rest = in.d == kNone ? 0 : s.mask; rest; rest &= rest - 1) d[lowest(rest)] = count;
        } else if (in.type > 2 && in.d != kNone) {
            const bool value = in.type == 3 ? count == all : count != 0;
            uint32_t& d = predicate(warp.registers, in.d);
            d = value ? d | s.mask : d & ~s.mask;
        }
        const bool everyone = b.whole && s.mask == warp.live;
        ++warp.now;
        if (everyone || s.mask == ~uint32_t{0}) {
            warp.base = b.whole ? ClockPtr(joint) : join(warp.base, joint);
            warp.synced = warp.now;
            warp.pairs = nullptr;
            warp.extra_mask = 0;
            warp.extra.fill(nullptr);
            for (size_t k = 0; k < 2; ++k) {
                warp.released_base[k] = published[k];
                warp.released_mask[k] = 0;
            }
        } else {
            for (uint32_t rest = s.mask; rest; rest &= rest - 1) warp.learn(lowest(rest), joint);
            for (size_t k = 0; k < 2; ++k) warp.released_base[k] = join(warp.released_base[k], published[k]);
        }
        if (seen_in_block) warp.see(s.mask, seen_in_block);
        for (const Warp::Seen& seen : seen_on_device) warp.see(s.mask, seen.log, seen.size);
        s.waits = Waits::nothing;
        ++s.pc;
    });
    if (b.whole) ++block.full_barriers;
    b = HardwareBarrier{};
    ++progress;
}

void Machine::fence(Warp& warp, uint32_t mask, Scope scope) {
    const size_t scopes = scope == Scope::cta ? 1 : 2;
    for (uint32_t rest = mask & warp.pending_mask; rest; rest &= rest - 1) {
        warp.learn(lowest(rest), warp.pending[lowest(rest)]);
        warp.pending[lowest(rest)] = nullptr;
    }
    warp.pending_mask &= ~mask;
    if (scopes == 2)
        std::erase_if(warp.pending_device, [&](Warp::Seen& seen) {
            if (!(mask & seen.lanes)) return false;
            const ClockPtr known = seen.log->first(seen.size, warp.block->first_serial);
            for (uint32_t rest = mask & seen.lanes; rest; rest &= rest - 1) warp.learn(lowest(rest), known);
            seen.lanes &= ~mask;
            return seen.lanes == 0;
        });
    auto record = std::make_shared<FenceRecord>();
    record->base = warp.base;
    record->extra_mask = warp.extra_mask;
    if (warp.extra_mask) record->extra = warp.extra;
    record->now = ++warp.now;
    record->synced = warp.synced;
    if (warp.pairs) record->pairs = std::make_shared<std::array<LaneClocks, 32>>(*warp.pairs);
    for (size_t s = 0; s < scopes; ++s) {
        for (uint32_t rest = mask; rest; rest &= rest - 1) warp.released[s][lowest(rest)] = record;
        warp.released_mask[s] |= mask;
    }
}

uint64_t Machine::key(const Warp& warp, Where space, uint64_t address) const {
    const uint64_t cell = address;
    return space == Where::shared ? uint64_t{1} << 63 | uint64_t{warp.block->first_serial} << 24 | cell : cell;
}

// A strong write by a lane: who reads the value from here and fences, or acquires, knows what the lane has released.
void Machine::publish(Warp& warp, uint32_t lane, uint64_t at, const Access& access, bool read_modify_write) {
    const uint32_t block = warp.block->first_serial;
    const bool wide = access.scope != Scope::cta;
    ClockPtr to_block, to_device;
    if (access.order & kRelease) {
        to_block = warp.snapshot(lane);
        if (wide) to_device = to_block;
    } else {
        to_block = warp.publishable(lane, 0);
        if (wide) to_device = warp.publishable(lane, 1);
    }
    const auto found = published.find(at);
    if (found == published.end() && !to_block && !to_device) return;
    Published& p = found == published.end() ? published[at] : found->second;
    if (!read_modify_write) p = Published{};
    if (to_block) {
        ClockPtr& entry = p.blocks[block];
        entry = join(entry, to_block);
    }
    if (to_device) {
        if (!p.device) p.device = std::make_shared<PublishedLog>();
        p.device->add(block, to_device);
    }
}

// A strong read by a lane.
void Machine::observe(Warp& warp, uint32_t lane, uint64_t at, const Access& access) {
    const auto found = published.find(at);
    if (found == published.end()) return;
    Published& p = found->second;
    const uint32_t block = warp.block->first_serial;
    ClockPtr from_block;
    if (const auto entry = p.blocks.find(block); entry != p.blocks.end()) from_block = entry->second;
    const bool wide = access.scope != Scope::cta && p.device;
    if (access.order & kAcquire) {
        warp.learn(lane, from_block);
        if (wide) warp.learn(lane, p.device->first(p.device->size(), block));
        return;
    }
    if (from_block) warp.see(uint32_t{1} << lane, from_block);
    if (wide) warp.see(uint32_t{1} << lane, p.device, p.device->size());
}

MBarrier& Machine::find_mbarrier(Warp& warp, uint32_t pc, uint32_t lane, uint32_t address) {
    const auto found = warp.block->mbarriers.find(address);
    if (found != warp.block->mbarriers.end()) return found->second;
    Fault f;
    f.kind = "invalid";
    f.message = "an mbarrier that was not initialised";
    f.has_address = true;
    f.address = address;
    f.space = "shared";
    stop(warp, pc, lane, std::move(f), Outcome::failed);
}

void Machine::advance(MBarrier& b) {
    while (b.pending == 0 && b.transactions == 0 && b.expected != 0) {
        b.completed[b.phase & 1] = b.arriving;
        b.arriving = nullptr;
        b.pending = b.expected;
        ++b.phase;
        ++progress;
    }
}

void Machine::arrive(Warp& warp, uint32_t pc, uint32_t lane, MBarrier& b, uint32_t count, bool drop, const ClockPtr& clock) {
    if (count > b.pending) {
        Fault f;
        f.kind = "invalid";
        f.message = "more arrivals on an mbarrier than its phase has left";
        stop(warp, pc, lane, std::move(f), Outcome::failed);
    }
    b.arriving = join(b.arriving, clock);
    b.pending -= count;
    if (drop) b.expected -= count;
    ++progress;
    advance(b);
}

void Machine::mbarrier(Warp& warp, const Instruction& in, uint32_t mask, uint32_t pc) {
    Access access = warp.block->grid->kernel->accesses[in.small];
    const bool begins = access.what == kMbarInit;
    access.strong = !begins && access.what != kMbarInvalidate;
    Target t;
    resolve(warp, access, mask, pc, begins ? Use::write : Use::read, t);
    if (t.space != Where::shared) {
        Fault f;
        f.kind = "invalid";
        f.message = "an mbarrier that is not in shared memory";
        stop(warp, pc, lowest(mask), std::move(f), Outcome::failed);
    }
    count(warp, t, mask, 8, pc, begins);
    Block& block = *warp.block;
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const uint32_t lane = lowest(rest), at = static_cast<uint32_t>(t.address[lane]);
        const uint32_t value = access.second == kNone ? 1 : u32(warp.registers, access.second)[lane];
        switch (access.what) {
            case kMbarInit:
                if (value == 0 || value >= 1u << 20) {
                    Fault f;
                    f.kind = "invalid";
                    f.message = "an mbarrier for " + std::to_string(value) + " arrivals";
                    stop(warp, pc, lane, std::move(f), Outcome::failed);
                }
                block.mbarriers[at] = MBarrier{value, value, 0, 0, nullptr, {nullptr, nullptr}};
                ++progress;
                continue;
            case kMbarInvalidate:
                find_mbarrier(warp, pc, lane, at);
                block.mbarriers.erase(at);
                continue;
            case kMbarExpectTx:
            case kMbarCompleteTx: {
                MBarrier& b = find_mbarrier(warp, pc, lane, at);
                b.transactions += access.what == kMbarExpectTx ? int64_t{value} : -int64_t{value};
                advance(b);
                continue;
            }
            case kMbarArrive:
            case kMbarArriveDrop: {
                MBarrier& b = find_mbarrier(warp, pc, lane, at);
                if (access.registers[0] != kNone) u64(warp.registers, access.registers[0])[lane] = b.phase;
                if (access.size != kNone) b.transactions += u32(warp.registers, access.size)[lane];
                arrive(warp, pc, lane, b, value, access.what == kMbarArriveDrop,
                       access.order & kRelease ? warp.snapshot(lane) : nullptr);
                continue;
            }
            default: {
                settle(block, at);
                MBarrier& b = find_mbarrier(warp, pc, lane, at);
                const bool done = access.what == kMbarTestState ? b.phase > u64(warp.registers, access.second)[lane]
                                                                : (b.phase & 1) != (value & 1);
                if (in.d != kNone) {
                    uint32_t& d = predicate(warp.registers, in.d);
                    d = done ? d | uint32_t{1} << lane : d & ~(uint32_t{1} << lane);
                }
                if (done && b.phase > 0 && access.order & kAcquire) warp.learn(lane, b.completed[(b.phase - 1) & 1]);
                if (!done) {
                    warp.polls = true;
                    warp.polls_progress = progress;
                    if (polls_left > 1) polls_left -= 1;
                }
                continue;
            }
        }
    }
    if (access.what >= kMbarTestState && polls_left) --polls_left;
}

}  // namespace vgpu

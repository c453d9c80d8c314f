// cp.async: the source is read when the copy is issued; the destination changes at the last moment that is allowed, when its
// group is waited for. Until then whoever touches it is reported.
#include <algorithm>
#include <bit>
#include <cstring>

#include "core/machine.h"

namespace vgpu {
namespace {

uint32_t lowest(uint32_t mask) { return static_cast<uint32_t>(std::countr_zero(mask)); }

}  // namespace

void Machine::copy_async(Warp& warp, const Instruction& in, uint32_t mask, uint32_t pc) {
    const Access& access = warp.block->grid->kernel->accesses[in.small];
    Target to;
    resolve(warp, access, mask, pc, Use::write, to);
    Access source;
    source.space = access.second_space;
    source.bytes = access.bytes;
    source.address = access.second;
    source.wide = access.second_wide;
    source.offset = access.second_offset;
    uint32_t bytes[32];
    uint32_t whole = 0;
    for (uint32_t lane = 0; lane < 32; ++lane) {
        bytes[lane] =
            access.size == kNone ? access.bytes : std::min<uint32_t>(u32(warp.registers, access.size)[lane], access.bytes);
        if (bytes[lane] == access.bytes) whole |= uint32_t{1} << lane;
    }
    Target from;
    if (mask & whole) {
        resolve(warp, source, mask & whole, pc, Use::read, from);
        count(warp, from, mask & whole, access.bytes, pc, false);
    }
    addresses(warp, source.address, source.wide, source.offset, from.address);
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const uint32_t lane = lowest(rest);
        AsyncCopy copy{static_cast<uint8_t>(lane),
                       access.bytes,
                       static_cast<uint32_t>(to.address[lane]),
                       from.address[lane],
                       bytes[lane],
                       warp.group[lane],
                       pc,
                       {}};
        if (bytes[lane] && !(whole >> lane & 1)) {  // less than the whole: its bytes one by one
            Access part = source;
            part.bytes = 1;
            Target one;
            for (uint32_t i = 0; i < bytes[lane]; ++i) {
                part.offset = source.offset + i;
                resolve(warp, part, uint32_t{1} << lane, pc, Use::read, one);
                copy.data[i] = *one.host[lane];
            }
        } else if (bytes[lane]) {
            std::memcpy(copy.data.data(), from.host[lane], access.bytes);
        }
        std::memset(warp.block->shadow.data() + copy.to, kAddressable | kPending, copy.bytes);
        warp.copies.push_back(copy);
        ++pending_sources;
    }
}

void Machine::land(Warp& warp, const AsyncCopy& copy, uint32_t clock) {
    Block& block = *warp.block;
    std::memcpy(block.shared.data() + copy.to, copy.data.data(), copy.bytes);
    std::memset(block.shadow.data() + copy.to, kReady, copy.bytes);
    const uint32_t shift = block.grid->kernel->shared_grain_shift;
    for (uint32_t c = copy.to >> shift; c <= (copy.to + copy.bytes - 1) >> shift; ++c)
        block.races.writes[c] = {warp.serial, clock, copy.pc, copy.lane, true, false, Scope::none};
    block.races.write_epoch[copy.to / SharedRaces::kGranuleBytes] = block.full_barriers;
    --pending_sources;
}

// As late as can be told from the lane's knowledge: a copy that an arrival on an mbarrier is tied to was over by that arrival.
uint32_t Machine::landing_clock(const Warp& warp, const AsyncCopy& copy) const {
    for (const AsyncArrival& arrival : warp.arrivals)
        if (arrival.lane == copy.lane && copy.group < arrival.group) return arrival.clock;
    return warp.now;
}

void Machine::copy_wait(Warp& warp, uint32_t mask, uint32_t keep) {
    const bool all = keep == UINT32_MAX;
    std::erase_if(warp.copies, [&](const AsyncCopy& copy) {
        const uint32_t open = warp.group[copy.lane];
        if (!(mask >> copy.lane & 1) || (!all && (open < keep || copy.group >= open - keep))) return false;
        land(warp, copy, landing_clock(warp, copy));
        return true;
    });
}

void Machine::copy_arrive(Warp& warp, const Instruction& in, uint32_t mask, uint32_t pc) {
    Access access = warp.block->grid->kernel->accesses[in.small];
    access.bytes = 8;
    access.strong = true;
    access.scope = Scope::cta;
    Target t;
    resolve(warp, access, mask, pc, Use::read, t);
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const uint32_t lane = lowest(rest), at = static_cast<uint32_t>(t.address[lane]);
        MBarrier& b = find_mbarrier(warp, pc, lane, at);
        if (!access.what) ++b.pending;  // without .noinc the arrival brings its own count
        const uint32_t clock = warp.now;
        warp.arrivals.push_back({at, lane, ++warp.group[lane], clock, warp.snapshot(lane)});
    }
}

void Machine::settle(Block& block, uint32_t address) {
    for (uint32_t w = 0; w < block.warp_count; ++w) {
        Warp& warp = block.warps[w];
        for (size_t i = 0; i < warp.arrivals.size();) {
            if (warp.arrivals[i].address != address) {
                ++i;
                continue;
            }
            const AsyncArrival arrival = warp.arrivals[i];
            warp.arrivals.erase(warp.arrivals.begin() + static_cast<std::ptrdiff_t>(i));
            std::erase_if(warp.copies, [&](const AsyncCopy& copy) {
                if (copy.lane != arrival.lane || copy.group >= arrival.group) return false;
                land(warp, copy, arrival.clock);
                return true;
            });
            MBarrier& b = find_mbarrier(warp, 0, arrival.lane, address);
            arrive(warp, 0, arrival.lane, b, 1, false, arrival.knowledge);
        }
    }
}

// A store to what a copy in flight has still to read.
void Machine::write_pending(Warp& warp, uint32_t lane, uint64_t address, uint32_t unit, uint32_t pc) {
    for (const Grid* grid : active)
        for (const auto& block : grid->resident)
            for (uint32_t w = 0; w < block->warp_count; ++w)
                for (const AsyncCopy& copy : block->warps[w].copies) {
                    if (address >= copy.from + copy.from_bytes || copy.from >= address + unit) continue;
                    Fault f;
                    f.kind = "async_pending";
                    f.message = "a write to memory that a cp.async not yet waited for is reading";
                    f.has_address = true;
                    f.address = address;
                    f.space = "global";
                    f.access = "write of " + std::to_string(unit) + " bytes";
                    f.allocation = describe(warp, Where::global, address, unit);
                    f.has_other = true;
                    f.other = place(block->warps[w], copy.pc, copy.lane);
                    f.other_access = "cp.async";
                    fault(warp, pc, lane, std::move(f));
                    return;
                }
}

}  // namespace vgpu

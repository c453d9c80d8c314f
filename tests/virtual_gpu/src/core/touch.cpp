// An access against the records of race.h: is everything that it conflicts with known to its thread? Then it is recorded itself.
#include <algorithm>
#include <bit>
#include <cstring>
#include <set>
#include <tuple>
#include <vector>

#include "core/machine.h"

namespace vgpu {
namespace {

uint32_t lowest(uint32_t mask) { return static_cast<uint32_t>(std::countr_zero(mask)); }

// Strong accesses of scopes that include each other's threads are synchronisation, no race.
bool morally_strong(const Event& a, const Event& b, bool same_block) {
    if (!a.strong || !b.strong) return false;
    return same_block || (a.scope != Scope::cta && b.scope != Scope::cta);
}

// 32 lanes read kEach cells each, one lane after the other: their entries in a warp's row. What the row holds from `bound` on is
// still of interest, and joined.
template <uint32_t kEach>
void record_reads(uint64_t* row, uint64_t now, uint64_t bound) {
    static constexpr auto kBit = [] {
        std::array<uint64_t, 32 * kEach> bit{};
        for (uint64_t i = 0; i < bit.size(); ++i) bit[i] = uint64_t{1} << i / kEach;
        return bit;
    }();
    for (uint64_t i = 0; i < 32 * kEach; ++i) {
        // Without a branch, so that it becomes vector code.
        const uint64_t old = row[i], clock = old >> 32 & ~uint64_t{SharedRaces::kStrong};
        const uint64_t kept = uint64_t{0xffffffff} & -static_cast<uint64_t>(clock >= bound);
        row[i] = now << 32 | (old & kept) | kBit[i];
    }
}

void record_reads(uint64_t* row, uint32_t each, uint32_t now, uint32_t bound) {
    switch (each) {
        case 1:
            return record_reads<1>(row, now, bound);
        case 2:
            return record_reads<2>(row, now, bound);
        case 4:
            return record_reads<4>(row, now, bound);
        case 8:
            return record_reads<8>(row, now, bound);
        case 16:
            return record_reads<16>(row, now, bound);
        default:
            return record_reads<32>(row, now, bound);
    }
}

// Calls body(event) for what lies underneath a strong write and may conflict with an access; false: body has said enough.
template <class Body>
bool each_underneath(const UnderneathMap& map, uint32_t cell, bool strong_access, Body&& body) {
    const auto found = map.find(cell);
    if (found == map.end()) return true;
    if (found->second.plain.serial && !body(found->second.plain)) return false;
    if (!strong_access)
        for (const Event& e : found->second.strong)
            if (!body(e)) return false;
    return true;
}

// A write goes over `before`, the cell's last.
void put(UnderneathMap& map, uint32_t cell, const Event& before, bool before_counts, const Event& now, bool modifies) {
    if (!now.strong) {
        if (!map.empty()) map.erase(cell);
        return;
    }
    Underneath& u = map[cell];
    if (before_counts && !before.strong) u = Underneath{before, {}};
    std::vector<Event>& strong = u.strong;
    if (modifies) strong.clear();  // it has seen them: what comes after it comes after them
    std::erase_if(strong, [&now](const Event& e) { return e.serial == now.serial && e.lane == now.lane; });
    if (strong.size() >= Underneath::kMost) strong.erase(strong.begin());
    strong.push_back(now);
}

// Remembers the last event that was found to be known, for runs of cells with one history.
struct Memo {
    Event event;
    uint32_t lane = 32;
    bool hit(const Event& e, uint32_t l) const {
        return lane == l && e.serial == event.serial && e.clock == event.clock && e.lane == event.lane;
    }
};

}  // namespace

bool Warp::knows(uint32_t l, const Event& e) const {
    const Grid& grid = *block->grid;
    if (e.serial == serial) return e.lane == l || e.clock < synced || (pairs && e.clock < (*pairs)[l].lane[e.lane]);
    if (e.serial < grid.first_serial || e.serial > grid.last_serial) {
        if (e.serial < grid.floor) return true;
        const auto within = [&e](const std::vector<std::pair<uint32_t, uint32_t>>& ranges) {
            for (const auto& [first, last] : ranges)
                if (e.serial >= first && e.serial <= last) return true;
            return false;
        };
        if (within(grid.concurrent)) return false;
        for (size_t k = grid.predecessors.size(); k-- > 0;) {
            const Grid& before = *grid.predecessors[k];
            if (e.serial >= before.first_serial && e.serial <= before.last_serial)
                return (base && base->predecessors) || (extra_mask >> l & 1 && extra[l]->predecessors);
            if (!before.waited && e.serial < before.first_serial) return false;  // it may be over before its own predecessor is
        }
        return e.serial < grid.first_serial;  // of an earlier launch that this one comes after; a later one races
    }
    const uint32_t of = (e.serial - grid.first_serial) / grid.warps_per_block;
    const uint32_t first = grid.first_serial + of * grid.warps_per_block;
    const uint32_t w = e.serial - first;
    const auto in = [&](const ClockPtr& clock) {
        if (!clock) return false;
        if (first == block->first_serial) return clock->own && (*clock->own)[w].lane[e.lane] > e.clock;
        if (!clock->others) return false;
        const auto found = clock->others->find(first);
        return found != clock->others->end() && (*found->second)[w].lane[e.lane] > e.clock;
    };
    return in(base) || (extra_mask >> l & 1 && in(extra[l]));
}

void Machine::touch_shared(Warp& warp, const Target& t, uint32_t mask, uint32_t unit, uint32_t pc, bool write,
                           const Access& access, bool contiguous) {
    Block& block = *warp.block;
    SharedRaces& r = block.races;
    const uint32_t shift = block.grid->kernel->shared_grain_shift;
    const uint64_t epoch = block.full_barriers;
    const bool modifies = access.modifies;
    // Cells that one lane touches; a row's begin.
    const uint32_t each = std::max<uint32_t>(unit >> shift, 1);
    uint64_t* const row = r.reads.data() + size_t{warp.index} * r.cells;
    const uint32_t strong_bit = access.strong ? SharedRaces::kStrong : 0;
    const uint32_t bound = std::max(warp.start, warp.synced);
    const auto granules = [&](uint64_t begin, uint64_t bytes, auto&& body) {
        for (uint64_t g = begin / SharedRaces::kGranuleBytes; g <= (begin + bytes - 1) / SharedRaces::kGranuleBytes; ++g) body(g);
    };
    Memo memo;
    // after_writes, after_reads: is there anything since the last full barrier?
    const auto check = [&](uint32_t lane, uint64_t address, bool after_writes, bool after_reads) {
        const Event self{warp.serial, warp.now, pc, static_cast<uint8_t>(lane), write, access.strong, access.scope};
        const uint32_t first = static_cast<uint32_t>(address >> shift);
        for (uint32_t c = first; c < first + each; ++c) {
            const Event& w = r.writes[c];
            if (after_writes && w.serial - block.first_serial < block.warp_count && !memo.hit(w, lane)) {
                if (morally_strong(w, self, true) || warp.knows(lane, w)) {
                    memo.event = w;
                    memo.lane = lane;
                } else {
                    race(warp, pc, lane, w, Where::shared, address, unit, write);
                    return;
                }
            }
            if (w.strong && after_writes && !r.underneath.empty() &&
                !each_underneath(r.underneath, c, access.strong, [&](const Event& e) {
                    if (e.serial - block.first_serial >= block.warp_count || warp.knows(lane, e)) return true;
                    race(warp, pc, lane, e, Where::shared, address, unit, write);
                    return false;
                }))
                return;
            if (!after_reads) continue;
            for (uint32_t other = 0; other < block.warp_count; ++other) {
                const uint64_t entry = r.reads[size_t{other} * r.cells + c];
                const uint32_t high = static_cast<uint32_t>(entry >> 32), clock = high & ~SharedRaces::kStrong;
                uint32_t lanes = static_cast<uint32_t>(entry);
                if (clock < warp.start || !lanes) continue;
                if (other == warp.index) lanes &= ~(uint32_t{1} << lane);
                if ((high & SharedRaces::kStrong) && access.strong) continue;
                for (; lanes; lanes &= lanes - 1) {
                    const Event e{
                        block.first_serial + other,         clock,      r.read_pc[c], static_cast<uint8_t>(lowest(lanes)), false,
                        (high & SharedRaces::kStrong) != 0, Scope::none};
                    if (warp.knows(lane, e)) continue;
                    race(warp, pc, lane, e, Where::shared, address, unit, write);
                    return;
                }
            }
        }
    };
    const auto record_read = [&](uint32_t lane, uint64_t address) {
        const uint32_t first = static_cast<uint32_t>(address >> shift);
        for (uint32_t c = first; c < first + each; ++c) {
            const uint64_t old = row[c];
            const uint32_t high = static_cast<uint32_t>(old >> 32), clock = high & ~SharedRaces::kStrong;
            const uint32_t kept = clock >= bound ? static_cast<uint32_t>(old) : 0;
            const uint32_t strong = kept ? strong_bit & high : strong_bit;
            row[c] = (uint64_t{warp.now | strong} << 32) | kept | uint32_t{1} << lane;
            r.read_pc[c] = pc;
        }
    };
    const auto record_write = [&](uint32_t lane, uint64_t address) {
        const Event self{warp.serial, warp.now, pc, static_cast<uint8_t>(lane), true, access.strong, access.scope};
        const uint32_t first = static_cast<uint32_t>(address >> shift);
        for (uint32_t c = first; c < first + each; ++c) {
            if (self.strong || !r.underneath.empty())
                put(r.underneath, c, r.writes[c], r.writes[c].serial - block.first_serial < block.warp_count, self, modifies);
            r.writes[c] = self;
        }
    };
    if (contiguous && (unit >> shift) >= 1) {
        bool after_writes = false, after_reads = false;
        granules(t.address[0], uint64_t{32} * unit, [&](uint64_t g) {
            after_writes |= r.write_epoch[g] >= epoch;
            after_reads |= write && r.read_epoch[g] >= epoch;
            (write ? r.write_epoch : r.read_epoch)[g] = epoch;
        });
        if (after_writes || after_reads)
            for (uint32_t lane = 0; lane < 32; ++lane) check(lane, t.address[lane], after_writes, after_reads);
        const uint32_t first = static_cast<uint32_t>(t.address[0] >> shift), cells = 32 * each;
        if (write) {
            for (uint32_t lane = 0; lane < 32; ++lane) record_write(lane, t.address[lane]);
        } else {
            if (!strong_bit) {
                record_reads(row + first, each, warp.now, bound);
                std::fill_n(r.read_pc.data() + first, cells, pc);
            } else {
                for (uint32_t lane = 0; lane < 32; ++lane) record_read(lane, t.address[lane]);
            }
        }
        return;
    }
    // Lane by lane. Each is recorded before the next is checked, so lanes of one instruction can race.
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const uint32_t lane = lowest(rest);
        const uint64_t at = t.address[lane];
        bool after_writes = false, after_reads = false;
        granules(at, unit, [&](uint64_t g) {
            after_writes |= r.write_epoch[g] >= epoch;
            after_reads |= write && r.read_epoch[g] >= epoch;
        });
        if (after_writes || after_reads) check(lane, at, after_writes, after_reads);
        if (write)
            record_write(lane, at);
        else
            record_read(lane, at);
        granules(at, unit, [&](uint64_t g) { (write ? r.write_epoch : r.read_epoch)[g] = epoch; });
    }
}

// Of the reads that launches of this chain have left, which are over, one stands for all of a launch that touched the same bytes
// in the same way: who waits for the launch knows them all. Without it a chain's reads of a page that is written in pieces, as a
// residual stream is, would add up from launch to launch.
void Machine::thin_out(PageRecord& p, const Grid& current) const {
    using Kind = std::tuple<uint64_t, uint16_t, uint16_t, uint16_t, uint32_t, bool, Scope>;
    std::set<Kind> seen;
    std::erase_if(p.reads, [&](const PageRecord::Read& e) {
        for (const Grid* grid : active) {
            if (e.serial < grid->first_serial || e.serial > grid->last_serial) continue;
            if (grid == &current || !grid->finished()) return false;
            return !seen.insert({grid->number, e.first, e.bytes, e.unit, e.lanes, e.strong, e.scope}).second;
        }
        return false;
    });
    p.crowded = std::max<size_t>(256, 2 * p.reads.size());
}

void Machine::touch_global(Warp& warp, const Target& t, uint32_t mask, uint32_t unit, uint32_t pc, bool write,
                           const Access& access, bool contiguous) {
    const Grid& grid = *warp.block->grid;
    const auto same_block = [&](const Event& e) { return e.serial - warp.block->first_serial < warp.block->warp_count; };
    const auto renew = [&](PageRecord& p) {
        if (p.launch == grid.number) return;
        p.launch = grid.number;
        if (p.newest < grid.floor) {
            p.reads.clear();
            p.underneath.clear();
            p.written = false;
        } else if (p.reads.size() >= p.crowded) {
            thin_out(p, grid);
        }
    };
    const auto scope = [&](const Event& e, uint32_t lane) {
        const Event self{warp.serial, warp.now, pc, static_cast<uint8_t>(lane), write, access.strong, access.scope};
        return morally_strong(e, self, same_block(e));
    };
    const uint8_t needed = unit >= 4 ? 2 : unit >= 2 ? 1 : 0;
    const bool modifies = access.modifies;
    // Lanes [lane, lane + lanes) read or write [begin, begin + bytes) of one page, `step` bytes each; step 0: all the same.
    const auto touch = [&](uint64_t begin, uint32_t bytes, uint32_t lanes_mask, uint32_t step) {
        PageRecord& p = races.page(memory.page(begin));
        renew(p);
        const uint32_t first = static_cast<uint32_t>((begin - windows.global) % kPageBytes);
        const uint32_t first_lane = lowest(lanes_mask);
        const auto lane_at = [&](uint32_t offset) { return step ? first_lane + (offset - first) / step : first_lane; };
        const auto refine = [&] {
            // Finer cells, each with the history of the one that it was a part of.
            auto finer = std::make_unique<Event[]>(kPageBytes >> needed);
            for (uint32_t c = 0; c < kPageBytes >> needed; ++c) finer[c] = p.cells[c >> (p.shift - needed)];
            UnderneathMap underneath;
            for (const auto& [cell, u] : p.underneath)
                for (uint32_t k = 0; k < uint32_t{1} << (p.shift - needed); ++k) underneath[(cell << (p.shift - needed)) + k] = u;
            p.underneath = std::move(underneath);
            p.cells = std::move(finer);
            p.shift = needed;
        };
        if (write && p.written && p.shift > needed) refine();
        if (!write && p.written && step && step < 1u << p.shift) {  // several lanes a cell: each has its own knowledge
            refine();
        }
        if (p.written) {
            Memo memo;
            const uint32_t cells_end = (first + bytes - 1) >> p.shift;
            for (uint32_t c = first >> p.shift; c <= cells_end; ++c) {
                const Event& w = p.cells[c];
                if (w.serial < grid.floor) continue;
                const uint32_t offset = std::max(first, c << p.shift), lane = lane_at(offset);
                const uint64_t address = begin - first + (step ? first + (offset - first) / step * step : first);
                if (access.non_coherent && w.serial >= grid.first_serial && w.serial <= grid.last_serial) {
                    race(warp, pc, lane, w, Where::global, address, unit, write,
                         "a non-coherent load (ld.global.nc) of what the same launch writes");
                    return;
                }
                if (w.strong && !p.underneath.empty() && !each_underneath(p.underneath, c, access.strong, [&](const Event& e) {
                        if (e.serial < grid.floor || scope(e, lane) || warp.knows(lane, e)) return true;
                        race(warp, pc, lane, e, Where::global, address, unit, write);
                        return false;
                    }))
                    return;
                if (memo.hit(w, lane)) continue;
                if (scope(w, lane) || warp.knows(lane, w)) {
                    memo.event = w;
                    memo.lane = lane;
                    continue;
                }
                race(warp, pc, lane, w, Where::global, address, unit, write);
                return;
            }
        }
        if (!write) {
            if (!p.reads.empty()) {  // the same again, as when polling
                for (size_t k = 0; k < std::min<size_t>(p.reads.size(), access.strong ? 64 : 1); ++k) {
                    PageRecord::Read& e = p.reads[p.reads.size() - 1 - k];
                    if (e.serial == warp.serial && e.first == first && e.bytes == bytes && e.unit == step &&
                        e.lanes == lanes_mask && e.strong == access.strong) {
                        e.clock = warp.now;
                        e.pc = pc;
                        return;
                    }
                }
            }
            p.reads.push_back({warp.serial, warp.now, pc, lanes_mask, static_cast<uint16_t>(first), static_cast<uint16_t>(bytes),
                               static_cast<uint16_t>(step), access.strong, access.scope});
            p.newest = std::max(p.newest, warp.serial);
            return;
        }
        // Readers that this write has to come after; those that it covers and follows are done with.
        for (size_t k = 0; k < p.reads.size();) {
            const PageRecord::Read& e = p.reads[k];
            if (e.first >= first + bytes || first >= uint32_t{e.first} + e.bytes) {
                ++k;
                continue;
            }
            bool ordered = true;
            uint32_t at = e.first;
            for (uint32_t lanes = e.lanes; lanes; lanes &= lanes - 1, at += e.unit) {
                const uint32_t width = e.unit ? e.unit : e.bytes;
                const uint32_t from = std::max(at, first), to = std::min(at + width, first + bytes);
                if (from >= to) continue;
                const Event event{e.serial, e.clock, e.pc, static_cast<uint8_t>(lowest(lanes)), false, e.strong, e.scope};
                for (uint32_t offset = from; offset < to; offset += step ? step - (offset - first) % step : to - from) {
                    const uint32_t lane = lane_at(offset);
                    if (scope(event, lane)) {
                        ordered = false;  // stays on record
                        continue;
                    }
                    if (warp.knows(lane, event)) continue;
                    race(warp, pc, lane, event, Where::global, begin - first + offset, unit, write);
                    return;
                }
            }
            if (ordered && (!access.strong || e.strong) && e.first >= first && uint32_t{e.first} + e.bytes <= first + bytes) {
                p.reads[k] = p.reads.back();
                p.reads.pop_back();
            } else {
                ++k;
            }
        }
        if (!p.written) {
            if (!p.cells || p.shift != needed)
                p.cells = std::make_unique<Event[]>(kPageBytes >> needed);
            else
                std::fill_n(p.cells.get(), kPageBytes >> needed, Event{});
            p.shift = needed;
            p.written = true;
        }
        for (uint32_t c = first >> p.shift; c <= (first + bytes - 1) >> p.shift; ++c) {
            const Event now{warp.serial, warp.now,      pc,          static_cast<uint8_t>(lane_at(std::max(first, c << p.shift))),
                            true,        access.strong, access.scope};
            if (now.strong || !p.underneath.empty())
                put(p.underneath, c, p.cells[c], p.cells[c].serial >= grid.floor, now, modifies);
            p.cells[c] = now;
        }
        p.newest = std::max(p.newest, warp.serial);
    };
    if (contiguous) {
        const uint64_t begin = t.address[0], bytes = uint64_t{32} * unit;
        const uint64_t in_page = kPageBytes - (begin - windows.global) % kPageBytes;
        if (in_page >= bytes) {
            touch(begin, static_cast<uint32_t>(bytes), ~uint32_t{0}, unit);
        } else {
            const uint32_t lanes = static_cast<uint32_t>(in_page / unit);
            touch(begin, lanes * unit, (uint32_t{1} << lanes) - 1, unit);
            touch(begin + uint64_t{lanes} * unit, (32 - lanes) * unit, ~uint32_t{0} << lanes, unit);
        }
        return;
    }
    for (uint32_t rest = mask; rest;) {
        const uint32_t lane = lowest(rest);
        const uint64_t at = t.address[lane];
        uint32_t group = uint32_t{1} << lane;
        if (!write)
            for (uint32_t r = rest & (rest - 1); r && t.address[lowest(r)] == at; r &= r - 1) group |= r & -r;
        touch(at, unit, group, 0);
        rest &= ~group;
    }
}

void Machine::count(Warp& warp, const Target& t, uint32_t mask, uint32_t unit, uint32_t pc, bool write) {
    AccessCount& c = warp.block->grid->counters.accesses[pc];
    ++c.requests;
    c.bytes += static_cast<uint64_t>(std::popcount(mask)) * unit;
    c.space = static_cast<uint8_t>(t.space);
    if (t.space == Where::shared) {
        if (t.contiguous && unit >= 4) {
            const uint32_t passes = unit / 4;
            c.wavefronts += passes;
            c.wavefronts_ideal += passes;
        } else {
            const Wavefronts w = wavefronts(t.address, mask, unit);
            c.wavefronts += w.taken;
            c.wavefronts_ideal += w.ideal;
        }
    } else if (t.space == Where::global) {
        const auto mark = [&](uint64_t sector) {  // of the device's range
            PageRecord& p = races.page(sector / (kPageBytes / 32));
            if (p.sectors_launch != warp.block->grid->number) {
                p.sectors_launch = warp.block->grid->number;
                p.sectors[0] = p.sectors[1] = 0;
            }
            const uint64_t in_page = sector % (kPageBytes / 32), bit = uint64_t{1} << (in_page & 63);
            uint64_t& word = p.sectors[in_page >> 6];
            c.unique += !(word & bit);
            word |= bit;
        };
        if (t.contiguous) {
            const uint64_t first = (t.address[0] - windows.global) / 32, last = (t.address[31] + unit - 1 - windows.global) / 32;
            c.sectors += last - first + 1;
            c.sectors_ideal += (uint64_t{32} * unit + 31) / 32;
            if (!write)
                for (uint64_t s = first; s <= last; ++s) mark(s);
        } else {
            const Sectors s = sectors(t.address, mask, unit);
            c.sectors += s.touched;
            c.sectors_ideal += s.ideal;
            if (!write)
                for (uint32_t rest = mask; rest; rest &= rest - 1)
                    for (uint64_t x = (t.address[lowest(rest)] - windows.global) / 32;
                         x <= (t.address[lowest(rest)] + unit - 1 - windows.global) / 32; ++x)
                        mark(x);
        }
    }
}

}  // namespace vgpu

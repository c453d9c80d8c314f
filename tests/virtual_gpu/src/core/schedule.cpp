// Launches: blocks come and go, warps take turns. One warp, chosen at random, runs as far as it can; how many blocks are resident
// and in what order they come is random too, from the seed.
#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>

#include "core/machine.h"

namespace vgpu {
namespace {

// A warp's turn, unless it waits or polls before.
constexpr uint64_t kQuantum = 1 << 20;
// Instructions without any progress after which warps that all poll are called a livelock, a warp each; and any at all.
constexpr uint64_t kPatience = 200'000;
constexpr uint64_t kRunaway = uint64_t{1} << 30;

constexpr size_t kPast = 256;

// Priorities: of a warp that has not polled a random one from here up, of one that has a smaller one each time.
constexpr uint64_t kUpperHalf = uint64_t{1} << 63;

__extension__ typedef unsigned __int128 Wide;  // a grid may have 2^63 blocks, and a stride as large

}  // namespace

void Machine::begin(Grid& grid) {
    const Launch& launch = *grid.launch;
    grid.kernel = launch.kernel;
    grid.number = ++launches;
    grid.blocks = uint64_t{launch.grid[0]} * launch.grid[1] * launch.grid[2];
    const uint32_t threads = launch.block[0] * launch.block[1] * launch.block[2];
    grid.warps_per_block = (threads + 31) / 32;
    const uint64_t warps = grid.blocks * grid.warps_per_block;
    if (warps > UINT32_MAX - next_serial) throw std::runtime_error("the virtual GPU has run out of serial numbers for warps");
    grid.first_serial = next_serial;
    next_serial += static_cast<uint32_t>(warps);
    grid.last_serial = next_serial - 1;
    grid.counters.reset(grid.kernel->code.size());
    if (launch.cooperative) {
        grid.resident_limit = static_cast<uint32_t>(grid.blocks);
    } else {
        grid.resident_limit = 1 + static_cast<uint32_t>(random_below(4));
    }
    // Block order: a stride that visits each once.
    if (random_below(4) != 0 && grid.blocks > 1) {
        do {
            grid.stride = 1 + random_below(grid.blocks - 1);
        } while (std::gcd(grid.stride, grid.blocks) != 1);
        grid.offset = random_below(grid.blocks);
    }
    const uint64_t own = ++stream_counts[launch.stream];
    grid.floor = grid.first_serial;
    for (const Past& p : past) {
        const bool ordered = p.stream == launch.stream || (p.stream < launch.after.size() && launch.after[p.stream] >= p.number);
        if (ordered) continue;
        grid.concurrent.emplace_back(p.first, p.last);
        grid.floor = std::min(grid.floor, p.first);
    }
    past.push_back({grid.first_serial, grid.last_serial, launch.stream, own});
    if (past.size() > kPast) past.erase(past.begin(), past.begin() + kPast / 2);
}

void Machine::start_warp(Block& block, uint32_t index) {
    Warp& warp = block.warps[index];
    const Kernel& kernel = *block.grid->kernel;
    const Launch& launch = *block.grid->launch;
    const uint32_t threads = launch.block[0] * launch.block[1] * launch.block[2];
    const uint32_t first = index * 32, n = std::min<uint32_t>(32, threads - first);
    const uint32_t start = warp.start, now = warp.now;
    std::vector<std::byte> storage = std::move(warp.storage);
    std::vector<uint8_t> frame = std::move(warp.frame), frame_shadow = std::move(warp.frame_shadow);
    warp = Warp{};
    warp.storage = std::move(storage);
    warp.frame = std::move(frame);
    warp.frame_shadow = std::move(frame_shadow);
    warp.start = start;
    warp.now = now;
    warp.synced = start;
    warp.block = &block;
    warp.index = index;
    warp.serial = block.first_serial + index;
    warp.live = n == 32 ? ~uint32_t{0} : (uint32_t{1} << n) - 1;
    warp.priority = random() | kUpperHalf;
    warp.splits.emplace_back();
    warp.splits.back().mask = warp.live;
    if (warp.storage.size() < kernel.register_bytes + 64) warp.storage.resize(kernel.register_bytes + 64);
    const auto address = reinterpret_cast<uintptr_t>(warp.storage.data());
    warp.registers = warp.storage.data() + ((64 - address % 64) & 63);
    if (!kernel.constants.empty())
        std::memcpy(warp.registers + kernel.constants_begin, kernel.constants.data(), kernel.constants.size());
    for (const Kernel::SpecialRegister& s : kernel.specials) {
        for (uint32_t lane = 0; lane < 32; ++lane) {
            const uint32_t thread = std::min(first + lane, threads - 1);
            uint64_t value = 0;
            switch (s.which) {
                case Special::tid_x:
                    value = thread % launch.block[0];
                    break;
                case Special::tid_y:
                    value = thread / launch.block[0] % launch.block[1];
                    break;
                case Special::tid_z:
                    value = thread / launch.block[0] / launch.block[1];
                    break;
                case Special::ntid_x:
                case Special::ntid_y:
                case Special::ntid_z:
                    value = launch.block[static_cast<size_t>(s.which) - static_cast<size_t>(Special::ntid_x)];
                    break;
                case Special::ctaid_x:
                case Special::ctaid_y:
                case Special::ctaid_z:
                    value = block.id[static_cast<size_t>(s.which) - static_cast<size_t>(Special::ctaid_x)];
                    break;
                case Special::nctaid_x:
                case Special::nctaid_y:
                case Special::nctaid_z:
                    value = launch.grid[static_cast<size_t>(s.which) - static_cast<size_t>(Special::nctaid_x)];
                    break;
                case Special::laneid:
                    value = lane;
                    break;
                case Special::warpid:
                    value = index;
                    break;
                case Special::nwarpid:
                    value = static_cast<uint64_t>(profile.max_threads_per_multiprocessor) / 32;
                    break;
                case Special::smid:
                    value = block.index % static_cast<uint64_t>(profile.multiprocessors);
                    break;
                case Special::nsmid:
                    value = static_cast<uint64_t>(profile.multiprocessors);
                    break;
                case Special::gridid:
                    value = block.grid->number;
                    break;
                case Special::lanemask_eq:
                    value = uint64_t{1} << lane;
                    break;
                case Special::lanemask_le:
                    value = (uint64_t{2} << lane) - 1;
                    break;
                case Special::lanemask_lt:
                    value = (uint64_t{1} << lane) - 1;
                    break;
                case Special::lanemask_ge:
                    value = 0xffffffffu & ~((uint64_t{1} << lane) - 1);
                    break;
                case Special::lanemask_gt:
                    value = 0xffffffffu & ~((uint64_t{2} << lane) - 1);
                    break;
                case Special::dynamic_smem_size:
                    value = launch.dynamic_shared;
                    break;
                case Special::total_smem_size:
                case Special::aggr_smem_size:
                    value = (uint64_t{kernel.info.static_shared} + launch.dynamic_shared + 127) / 128 * 128;
                    break;
                case Special::one:
                    value = 1;
                    break;
                default:
                    break;
            }
            if (s.wide)
                u64(warp.registers, s.at)[lane] = value;
            else
                u32(warp.registers, s.at)[lane] = static_cast<uint32_t>(value);
        }
    }
    if (kernel.frame_bytes) {
        warp.frame.resize(size_t{32} * kernel.frame_bytes);
        warp.frame_shadow.assign(size_t{32} * kernel.frame_bytes, 0);
        for (const Variable& v : kernel.frame)
            for (uint32_t lane = 0; lane < 32; ++lane)
                std::memset(warp.frame_shadow.data() + size_t{lane} * kernel.frame_bytes + v.begin,
                            v.checked ? kAddressable : kReady, v.bytes);
    }
}

void Machine::start_block(Grid& grid, uint64_t index) {
    std::unique_ptr<Block> block;
    if (slots.empty()) {
        block = std::make_unique<Block>();
    } else {
        block = std::move(slots.back());
        slots.pop_back();
    }
    const Launch& launch = *grid.launch;
    const Kernel& kernel = *grid.kernel;
    block->grid = &grid;
    block->index = index;
    block->id[0] = static_cast<uint32_t>(index % launch.grid[0]);
    block->id[1] = static_cast<uint32_t>(index / launch.grid[0] % launch.grid[1]);
    block->id[2] = static_cast<uint32_t>(index / launch.grid[0] / launch.grid[1]);
    block->first_serial = grid.first_serial + static_cast<uint32_t>(index) * grid.warps_per_block;
    block->warp_count = block->live_warps = grid.warps_per_block;
    block->shared_bytes = kernel.dynamic_begin + launch.dynamic_shared;
    if (block->shared.size() < block->shared_bytes + 64) block->shared.resize(block->shared_bytes + 64);
    block->shadow.assign(block->shared_bytes, 0);
    for (const Variable& v : kernel.shared) std::memset(block->shadow.data() + v.begin, kAddressable, v.bytes);
    if (launch.dynamic_shared) std::memset(block->shadow.data() + kernel.dynamic_begin, kAddressable, launch.dynamic_shared);
    block->barriers.fill(HardwareBarrier{});
    block->mbarriers.clear();
    block->left_early = false;
    ++block->full_barriers;
    // Clocks go on where the slot's last block ended: what is older in its records is of another block.
    uint32_t start = 1;
    for (const Warp& w : block->warps) start = std::max(start, w.now + 1);
    if (start > uint32_t{1} << 30) {
        block->races = SharedRaces{};
        start = 1;
    }
    block->races.underneath.clear();
    block->races.prepare(block->shared_bytes, kernel.shared_grain_shift, block->warp_count);
    if (block->warps.size() < block->warp_count) block->warps.resize(block->warp_count);
    for (Warp& w : block->warps) w.start = w.now = start;
    for (uint32_t w = 0; w < block->warp_count; ++w) start_warp(*block, w);
    grid.resident.push_back(std::move(block));
}

void Machine::finish_block(Grid& grid, size_t slot) {
    std::unique_ptr<Block> block = std::move(grid.resident[slot]);
    grid.resident.erase(grid.resident.begin() + static_cast<std::ptrdiff_t>(slot));
    trigger(*block);
    ++grid.done_blocks;
    ++progress;
    slots.push_back(std::move(block));
}

void Machine::admit(Grid& grid) {
    const uint32_t wanted = std::max<uint32_t>(grid.resident_limit, 1);
    while (grid.next_block < grid.blocks && grid.resident.size() < wanted) {
        const uint64_t i = grid.next_block++;
        start_block(grid, static_cast<uint64_t>((static_cast<Wide>(i) * grid.stride + grid.offset) % grid.blocks));
    }
}

void Machine::leave(Warp& warp, uint32_t lanes, uint32_t pc) {
    Block& block = *warp.block;
    warp.live &= ~lanes;
    ++progress;
    if (!block.left_early) {
        block.left_early = true;
        block.left = {warp.serial, warp.now, pc, static_cast<uint8_t>(std::countr_zero(lanes)), false, false, Scope::none};
    }
    for (uint32_t which = 0; which < block.barriers.size(); ++which) {
        const HardwareBarrier& b = block.barriers[which];
        if (b.expected == 0 || !b.whole) continue;
        for (uint32_t w = 0; w < block.warp_count; ++w)
            for (const Split& s : block.warps[w].splits)
                if (s.waits == Waits::barrier && s.barrier == which) {
                    Fault f;
                    f.kind = "barrier_divergence";
                    f.message = "a barrier of the whole block, of which a thread exits without having come to it";
                    f.has_other = true;
                    f.other = place(block.left);
                    f.other_access = "exit";
                    stop(block.warps[w], s.pc, static_cast<uint32_t>(std::countr_zero(s.mask)), std::move(f), Outcome::failed);
                }
    }
    if (warp.live) return;
    for (const AsyncCopy& copy : warp.copies) land(warp, copy, landing_clock(warp, copy));
    warp.copies.clear();
    --block.live_warps;
}

void Machine::trigger(Block& block) {
    Grid& grid = *block.grid;
    if (grid.triggered.empty()) grid.triggered.resize(grid.blocks);
    if (grid.triggered[block.index]) return;
    grid.triggered[block.index] = true;
    ++grid.triggered_blocks;
    ++progress;
}

bool Machine::predecessors_done(const Grid& grid) const {
    for (const Grid* other : active) {
        if (other == &grid) return true;
        if (!other->finished()) return false;
    }
    return true;
}

void Machine::meet_predecessors(Warp& warp, uint32_t mask) {
    static const ClockPtr met = std::make_shared<Clock>(Clock{nullptr, nullptr, true});
    warp.block->grid->waited = true;
    if (mask == warp.live) {
        warp.base = join(warp.base, met);
        return;
    }
    for (uint32_t rest = mask; rest; rest &= rest - 1) warp.learn(static_cast<uint32_t>(std::countr_zero(rest)), met);
}

// No warp can run. Says who waits for what.
void Machine::stuck() {
    for (Grid* grid : active)
        for (const auto& block : grid->resident)
            for (uint32_t w = 0; w < block->warp_count; ++w) {
                Warp& warp = block->warps[w];
                for (const Split& s : warp.splits) {
                    Fault f;
                    const Op op = static_cast<Op>(grid->kernel->code[s.pc].opcode);
                    f.kind = "deadlock";
                    if (s.waits == Waits::collective && op == Op::barrier) {
                        f.kind = "barrier_divergence";
                        f.message = "an aligned barrier that only some lanes of the warp have come to";
                    } else if (s.waits == Waits::collective) {
                        f.message = "lanes that the instruction names never come to it";
                    } else if (s.waits == Waits::barrier) {
                        const HardwareBarrier& b = block->barriers[s.barrier];
                        f.message = "barrier " + std::to_string(s.barrier) + " waits for " + std::to_string(b.expected) +
                                    " threads and only " + std::to_string(b.arrived) + " can come";
                    } else {
                        f.message = "waits for ever";
                    }
                    stop(warp, s.pc, static_cast<uint32_t>(std::countr_zero(s.mask)), std::move(f), Outcome::timeout);
                }
            }
    throw std::runtime_error("the virtual GPU has a grid that can neither run nor wait");
}

Outcome Machine::run(std::span<const Launch> chain) {
    std::vector<std::unique_ptr<Grid>> grids;
    raced = false;
    last_priority = kUpperHalf;
    Outcome outcome = Outcome::success;
    try {
        for (const Launch& launch : chain) {
            auto grid = std::make_unique<Grid>();
            grid->launch = &launch;
            begin(*grid);
            if (!grids.empty() && launch.programmatic) {
                // Its predecessors in the chain are known from griddepcontrol.wait on.
                for (const auto& before : grids) {
                    grid->predecessors.push_back(before.get());
                    grid->floor = std::min(grid->floor, before->first_serial);
                }
            }
            grids.push_back(std::move(grid));
        }
        for (const auto& grid : grids) active.push_back(grid.get());
        for (size_t first = 0; first < grids.size();) {
            if (grids[first]->finished()) {
                ++first;
                continue;
            }
            Warp* chosen = nullptr;
            uint64_t all_poll = 0;
            bool polling = true;
            for (size_t g = first; g < grids.size(); ++g) {
                Grid& grid = *grids[g];
                // A dependent may begin once every block before it has called launch_dependents or is done.
                if (g > first && (!grid.launch->programmatic || grids[g - 1]->triggered_blocks < grids[g - 1]->blocks)) break;
                admit(grid);
                for (const auto& block : grid.resident)
                    for (uint32_t w = 0; w < block->warp_count; ++w) {
                        Warp& warp = block->warps[w];
                        const bool woken = g == first || predecessors_done(grid);
                        if (woken)
                            for (Split& s : warp.splits)
                                if (s.waits == Waits::predecessors) s.waits = Waits::nothing;
                        if (!warp.runnable()) continue;
                        ++all_poll;
                        polling &= warp.polls && warp.polls_progress == progress;
                        if (!chosen || warp.priority > chosen->priority) chosen = &warp;
                    }
            }
            if (!chosen) stuck();
            if (idle > (polling ? kPatience * all_poll : kRunaway)) {
                Fault f;
                f.kind = "livelock";
                f.message = "every resident warp polls and none makes progress";
                const Split& s = chosen->splits[chosen->current < chosen->splits.size() ? chosen->current : 0];
                stop(*chosen, s.pc, static_cast<uint32_t>(std::countr_zero(s.mask)), std::move(f), Outcome::timeout);
            }
            Block& block = *chosen->block;
            run_warp(*chosen, kQuantum);
            if (chosen->polls) {
                // Whoever polls goes to the end of the queue, behind all that have not had their turn.
                chosen->polls_progress = progress;
                chosen->priority = --last_priority;
            } else {
                chosen->priority = random() | kUpperHalf;
            }
            if (block.live_warps == 0) {
                Grid& grid = *block.grid;
                for (size_t slot = 0; slot < grid.resident.size(); ++slot)
                    if (grid.resident[slot].get() == &block) {
                        finish_block(grid, slot);
                        break;
                    }
            }
        }
    } catch (const Stop& s) {
        outcome = s.outcome;
    }
    for (const auto& grid : grids) write_report(*grid);
    for (const auto& grid : grids)
        for (auto& block : grid->resident) {
            for (Warp& warp : block->warps) warp.copies.clear();
            slots.push_back(std::move(block));
        }
    pending_sources = 0;
    active.clear();
    published.clear();
    idle = 0;
    return outcome == Outcome::success && raced ? Outcome::failed : outcome;
}

}  // namespace vgpu

// The interpreter's loop. Lanes of a warp that are at the same instruction form a split; the split that is furthest behind runs,
// so that they come together again where the compiler meant them to.
#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>
#include <utility>

#include "core/machine.h"

namespace vgpu {
namespace {

// A split that loops while others of its warp wait for their turn gives way after so many instructions.
constexpr uint64_t kSplitQuantum = 4096;
constexpr uint32_t kPollsARun = 32;

// Joins splits that have met, and picks one. False: all of them wait.
bool select(Warp& warp, bool rotate) {
    std::vector<Split>& splits = warp.splits;
    const auto free = [](const Split& s) { return s.waits == Waits::nothing || s.waits == Waits::collective; };
    for (size_t i = 0; i < splits.size(); ++i) {
        for (size_t j = splits.size() - 1; j > i; --j) {
            if (splits[i].pc != splits[j].pc || !free(splits[i]) || !free(splits[j]) || splits[i].returns != splits[j].returns)
                continue;
            splits[i].mask |= splits[j].mask;
            splits[i].waits = Waits::nothing;
            splits.erase(splits.begin() + static_cast<std::ptrdiff_t>(j));
            if (warp.current >= splits.size()) warp.current = 0;
        }
    }
    if (rotate) {
        for (size_t k = 1; k <= splits.size(); ++k) {
            const size_t i = (warp.current + k) % splits.size();
            if (splits[i].waits == Waits::nothing) {
                warp.current = i;
                return true;
            }
        }
        return false;
    }
    size_t best = splits.size();
    for (size_t i = 0; i < splits.size(); ++i) {
        if (splits[i].waits != Waits::nothing) continue;
        if (best == splits.size() || splits[i].returns.size() > splits[best].returns.size() ||
            (splits[i].returns.size() == splits[best].returns.size() && splits[i].pc < splits[best].pc))
            best = i;
    }
    warp.current = best;
    return best < splits.size();
}

// Where the current split may meet another.
uint32_t meeting(const Warp& warp) {
    uint32_t limit = UINT32_MAX;
    const Split& mine = warp.splits[warp.current];
    for (size_t i = 0; i < warp.splits.size(); ++i) {
        const Split& s = warp.splits[i];
        if (i != warp.current && s.pc > mine.pc && (s.waits == Waits::nothing || s.waits == Waits::collective))
            limit = std::min(limit, s.pc);
    }
    return limit;
}

}  // namespace

bool Warp::runnable() const {
    for (const Split& s : splits)
        if (s.waits == Waits::nothing) return true;
    return false;
}

// Executes until the warp waits, exits, or has polled or run for long enough.
void Machine::run_warp(Warp& warp, uint64_t quantum) {
    Grid& grid = *warp.block->grid;
    const Instruction* const code = grid.kernel->code.data();
    uint64_t* const executed = grid.counters.executed.data();
    uint64_t* const lanes = grid.counters.lanes.data();
    std::byte* const regs = warp.registers;
    const uint64_t progress_before = progress;
    uint64_t spent = 0;
    polls_left = kPollsARun;
    warp.polls = false;
    bool rotate = std::exchange(warp.gives_way, false), over = false;
    while (!over && select(warp, rotate)) {
        rotate = false;
        const bool alone = warp.splits.size() == 1;
        const uint32_t limit = alone ? UINT32_MAX : meeting(warp);
        const uint64_t until = alone ? UINT64_MAX : spent + kSplitQuantum;
        uint32_t pc = warp.splits[warp.current].pc;
        const uint32_t mask = warp.splits[warp.current].mask;
        while (true) {
            const Instruction& in = code[pc];
            uint32_t active = mask;
            if (in.guard != kNone) {
                const uint32_t p = predicate(regs, in.guard);
                active &= in.flags & kGuardNegated ? ~p : p;
            }
            ++executed[pc];
            lanes[pc] += static_cast<uint32_t>(std::popcount(active));
            ++spent;
            if (!(in.flags & kEndsRun)) {
                if (active) in.run(in, regs, active);
                ++pc;
            } else {
                Split& split = warp.splits[warp.current];
                split.pc = pc;
                if (!slow(warp, split, in, active)) break;
                pc = warp.splits[warp.current].pc;
                if (spent > quantum || polls_left == 0) {
                    over = true;
                    warp.gives_way = polls_left == 0 && warp.splits.size() > 1;  // the next turn is another split's
                    break;
                }
                if (spent > until) {
                    rotate = true;
                    break;
                }
            }
            if (pc == limit) {
                warp.splits[warp.current].pc = pc;
                break;
            }
        }
    }
    instructions += spent;
    idle = progress == progress_before ? idle + spent : 0;
}

// Lanes that a collective names have to be here together. True: they are, `mask` is them; else those that are here wait.
bool Machine::gather(Warp& warp, Split& split, uint32_t member_register, const Instruction& in, uint32_t* mask) {
    const uint32_t pc = split.pc;
    if (member_register == kNone) {
        const uint32_t missing = warp.live & ~*mask;
        if (!missing) return true;
        // Lanes of this split that the guard holds back do not wait.
        const uint32_t past = split.mask & ~*mask;
        split.mask = *mask;
        split.waits = Waits::collective;
        split.member = warp.live;
        if (past) {
            Split rest = split;
            rest.mask = past;
            rest.waits = Waits::nothing;
            rest.pc = pc + 1;
            warp.splits.push_back(std::move(rest));
        }
        return false;
    }
    const uint32_t* members = u32(warp.registers, member_register);
    for (uint32_t rest = *mask; rest; rest &= rest - 1) {
        const uint32_t lane = static_cast<uint32_t>(std::countr_zero(rest));
        if (!(members[lane] >> lane & 1)) {
            Fault f;
            f.kind = "invalid";
            f.message = "the executing thread is not in its own membermask";
            stop(warp, pc, lane, std::move(f), Outcome::failed);
        }
    }
    const uint32_t first = members[std::countr_zero(*mask)] & warp.live;
    if (*mask == first) {
        bool same = true;
        for (uint32_t rest = *mask; rest; rest &= rest - 1) same &= (members[std::countr_zero(rest)] & warp.live) == first;
        if (same) return true;
    }
    // Groups with masks of their own: those that are complete execute, each for itself.
    uint32_t waiting = 0, complete = 0;
    for (uint32_t rest = *mask; rest;) {
        const uint32_t member = members[std::countr_zero(rest)];
        uint32_t group = 0;
        for (uint32_t r = rest; r; r &= r - 1)
            if (members[std::countr_zero(r)] == member) group |= r & -r;
        rest &= ~group;
        if ((member & warp.live & ~group) == 0) {
            complete |= group;
            if (in.run) in.run(in, warp.registers, group);
            if (in.opcode == static_cast<uint16_t>(Op::warp_barrier)) warp_synced(warp, group);
        } else {
            waiting |= group;
        }
    }
    const uint32_t past = (split.mask & ~*mask) | complete;
    Split rest = split;
    if (waiting) {
        split.mask = waiting;
        split.waits = Waits::collective;
        split.member = members[std::countr_zero(waiting)];
        if (past) {
            rest.mask = past;
            rest.waits = Waits::nothing;
            rest.pc = pc + 1;
            warp.splits.push_back(std::move(rest));
        }
    } else {
        split.pc = pc + 1;
    }
    return false;
}

// Everything that is not plain arithmetic. True: the same split goes on at split.pc.
bool Machine::slow(Warp& warp, Split& split, const Instruction& in, uint32_t active) {
    const uint32_t pc = split.pc;
    Block& block = *warp.block;
    const Kernel& kernel = *block.grid->kernel;
    const Op op = static_cast<Op>(in.opcode);
    if (active && (in.flags & kCollective)) {
        if (!gather(warp, split, in.member, in, &active)) return false;
    }
    switch (op) {
        case Op::alu:
            if (active) in.run(in, warp.registers, active);
            break;
        case Op::clock:
            clock_ticks += 1 + random_below(8);
            for (const Kernel::SpecialRegister& s : kernel.specials) {
                if (s.which < Special::clock || s.which > Special::globaltimer_hi) continue;
                const bool high = s.which == Special::clock_hi || s.which == Special::globaltimer_hi;
                const uint64_t value = high ? clock_ticks >> 32 : clock_ticks;
                for (int lane = 0; lane < kLanes; ++lane) {
                    if (s.wide)
                        u64(warp.registers, s.at)[lane] = value;
                    else
                        u32(warp.registers, s.at)[lane] = static_cast<uint32_t>(value);
                }
            }
            if (active) in.run(in, warp.registers, active);
            if (polls_left) --polls_left;  // whoever looks at the clock may be waiting for something
            break;
        case Op::branch:
            if (active == split.mask) {
                split.pc = static_cast<uint32_t>(in.immediate);
                return true;
            }
            if (active) {
                Split taken = split;
                taken.pc = static_cast<uint32_t>(in.immediate);
                taken.mask = active;
                split.mask &= ~active;
                split.pc = pc + 1;
                warp.splits.push_back(std::move(taken));
                return false;
            }
            break;
        case Op::branch_table: {
            const std::vector<uint32_t>& table = kernel.tables[in.small];
            const uint32_t* index = u32(warp.registers, in.a);
            const uint32_t stays = split.mask & ~active;
            const Split model = split;
            bool used = false;
            const auto go = [&](uint32_t lanes, uint32_t to) {
                Split s = model;
                s.mask = lanes;
                s.pc = to;
                if (used)
                    warp.splits.push_back(std::move(s));
                else
                    split = std::move(s);
                used = true;
            };
            // go() may move `splits`, and `split` with them: the first use is its last.
            std::vector<std::pair<uint32_t, uint32_t>> ways;
            for (uint32_t rest = active; rest;) {
                const uint32_t lane = static_cast<uint32_t>(std::countr_zero(rest)), value = index[lane];
                uint32_t group = 0;
                for (uint32_t r = rest; r; r &= r - 1)
                    if (index[std::countr_zero(r)] == value) group |= r & -r;
                rest &= ~group;
                if (value >= table.size()) {
                    Fault f;
                    f.kind = "invalid";
                    f.message = "brx.idx by " + std::to_string(value) + " in a list of " + std::to_string(table.size());
                    stop(warp, pc, lane, std::move(f), Outcome::illegal_instruction);
                }
                ways.emplace_back(group, table[value]);
            }
            if (stays) ways.emplace_back(stays, pc + 1);
            for (const auto& [group, to] : ways) go(group, to);
            return ways.size() == 1;
        }
        case Op::call: {
            if (!active) break;
            const CallSite& site = kernel.calls[in.small];
            for (uint32_t rest = active; rest; rest &= rest - 1) {
                uint8_t* frame = warp.frame.data() + static_cast<size_t>(std::countr_zero(rest)) * kernel.frame_bytes;
                for (const CallSite::Copy& c : site.in) std::memmove(frame + c.to, frame + c.from, c.bytes);
            }
            const bool whole = active == split.mask;
            Split inside = split;
            inside.mask = active;
            inside.pc = site.target;
            inside.returns.push_back(pc);
            if (whole) {
                split = std::move(inside);
                return true;
            }
            split.mask &= ~active;
            split.pc = pc + 1;
            warp.splits.push_back(std::move(inside));
            return false;
        }
        case Op::ret: {
            if (!active) break;
            const uint32_t from = split.returns.back();
            const CallSite& site = kernel.calls[kernel.code[from].small];
            for (uint32_t rest = active; rest; rest &= rest - 1) {
                uint8_t* frame = warp.frame.data() + static_cast<size_t>(std::countr_zero(rest)) * kernel.frame_bytes;
                for (const CallSite::Copy& c : site.out) std::memmove(frame + c.to, frame + c.from, c.bytes);
            }
            Split back = split;
            back.mask = active;
            back.pc = from + 1;
            back.returns.pop_back();
            if (active == split.mask) {
                split = std::move(back);
            } else {
                split.mask &= ~active;
                split.pc = pc + 1;
                warp.splits.push_back(std::move(back));
            }
            return false;
        }
        case Op::print:
            for (uint32_t rest = active; rest; rest &= rest - 1) print(warp, in, static_cast<uint32_t>(std::countr_zero(rest)));
            break;
        case Op::assert_fail:
        case Op::trap:
            if (active) {
                const uint32_t lane = static_cast<uint32_t>(std::countr_zero(active));
                Fault f;
                f.kind = op == Op::trap ? "trap" : "assert";
                f.message = op == Op::trap ? "trap" : "an assertion failed: " + assertion(warp, in, lane);
                stop(warp, pc, lane, std::move(f), op == Op::trap ? Outcome::illegal_instruction : Outcome::assertion);
            }
            break;
        case Op::exit: {
            if (!active) break;
            leave(warp, active, pc);
            split.mask &= ~active;
            split.pc = pc + 1;
            if (split.mask == 0) {
                warp.splits.erase(warp.splits.begin() + static_cast<std::ptrdiff_t>(warp.current));
                warp.current = 0;
            }
            // Whoever waited for the whole warp may go on without these.
            for (Split& s : warp.splits)
                if (s.waits == Waits::collective) s.waits = Waits::nothing;
            return false;
        }
        case Op::barrier:
            if (active) return barrier(warp, split, in, active);
            break;
        case Op::warp_barrier:
            if (active) {
                if (!gather(warp, split, in.member, in, &active)) return false;
                warp_synced(warp, active);
            }
            break;
        case Op::fence:
            if (active) fence(warp, active, static_cast<Scope>(in.small));
            break;
        case Op::load:
            for (uint32_t rest = active; rest;) {
                const uint32_t group = same_space(warp, kernel.accesses[in.small], rest);
                load(warp, in, group, pc);
                rest &= ~group;
            }
            break;
        case Op::store:
            for (uint32_t rest = active; rest;) {
                const uint32_t group = same_space(warp, kernel.accesses[in.small], rest);
                store(warp, in, group, pc);
                rest &= ~group;
            }
            break;
        case Op::atomic:
            for (uint32_t rest = active; rest;) {
                const uint32_t group = same_space(warp, kernel.accesses[in.small], rest);
                atomic(warp, in, group, pc);
                rest &= ~group;
            }
            break;
        case Op::load_matrix:
            if (active) load_matrix(warp, in, active, pc);
            break;
        case Op::store_matrix:
            if (active) store_matrix(warp, in, active, pc);
            break;
        case Op::copy_async:
            if (active) copy_async(warp, in, active, pc);
            break;
        case Op::copy_commit:
            for (uint32_t rest = active; rest; rest &= rest - 1) ++warp.group[static_cast<size_t>(std::countr_zero(rest))];
            break;
        case Op::copy_wait:
            if (active) copy_wait(warp, active, static_cast<uint32_t>(std::min<uint64_t>(in.immediate, UINT32_MAX)));
            break;
        case Op::copy_arrive:
            if (active) copy_arrive(warp, in, active, pc);
            break;
        case Op::mbarrier:
            if (active) mbarrier(warp, in, active, pc);
            break;
        case Op::wait_predecessors:
            if (active && !predecessors_done(*block.grid)) {
                const uint32_t past = split.mask & ~active;
                if (past) {
                    Split rest = split;
                    rest.mask = past;
                    rest.pc = pc + 1;
                    split.mask = active;
                    split.waits = Waits::predecessors;
                    warp.splits.push_back(std::move(rest));
                } else {
                    split.waits = Waits::predecessors;
                }
                return false;
            }
            if (active) meet_predecessors(warp, active);
            break;
        case Op::launch_dependents:
            if (active) trigger(block);
            break;
        case Op::nothing:
            break;
    }
    split.pc = pc + 1;
    return true;
}

}  // namespace vgpu

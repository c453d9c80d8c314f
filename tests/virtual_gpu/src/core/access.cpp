// Loads and stores: addresses, bounds, alignment, initialisation; then the data.
#include <algorithm>
#include <bit>
#include <cstring>

#include "core/machine.h"

namespace vgpu {
namespace {

constexpr uint32_t kAll = ~uint32_t{0};

uint32_t lowest(uint32_t mask) { return static_cast<uint32_t>(std::countr_zero(mask)); }

// True if lane i's address is that of lane 0 plus i * unit, in all 32.
bool in_a_row(const uint64_t* address, uint32_t unit) {
    uint64_t off = 0;
    for (uint64_t lane = 0; lane < 32; ++lane) off |= address[lane] ^ (address[0] + lane * unit);
    return off == 0;
}

// count elements of 4 bytes a lane, from memory to registers, and back
template <uint32_t kCount>
void words_in(const uint8_t* from, std::byte* regs, const uint32_t* at) {
    uint32_t* rows[kCount];
    for (uint32_t e = 0; e < kCount; ++e) rows[e] = u32(regs, at[e]);
    const uint32_t* words = reinterpret_cast<const uint32_t*>(from);
    for (uint32_t e = 0; e < kCount; ++e) {
        uint32_t* row = rows[e];
        for (uint32_t lane = 0; lane < 32; ++lane) row[lane] = words[lane * kCount + e];
    }
}

template <uint32_t kCount>
void words_out(uint8_t* to, std::byte* regs, const uint32_t* at) {
    uint32_t* words = reinterpret_cast<uint32_t*>(to);
    for (uint32_t e = 0; e < kCount; ++e) {
        const uint32_t* row = u32(regs, at[e]);
        for (uint32_t lane = 0; lane < 32; ++lane) words[lane * kCount + e] = row[lane];
    }
}

// One element of a register row from each lane's memory: kBytes of it, with the sign if kSign.
template <uint32_t kBytes, bool kSign, class Row>
void elements(uint8_t* const* host, uint32_t skip, Row* row, uint32_t mask, uint64_t keep) {
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const uint32_t lane = lowest(rest);
        uint64_t value = 0;
        std::memcpy(&value, host[lane] + skip, kBytes);
        if constexpr (kSign && kBytes < 8) {
            constexpr int kShift = 64 - 8 * static_cast<int>(kBytes);
            value = static_cast<uint64_t>(static_cast<int64_t>(value << kShift) >> kShift);
        }
        row[lane] = static_cast<Row>(value & keep);
    }
}

template <class Row>
void elements(const Access& access, uint8_t* const* host, uint32_t skip, Row* row, uint32_t mask, uint64_t keep) {
    const auto with = [&]<uint32_t kBytes>() {
        if (access.sign)
            elements<kBytes, true>(host, skip, row, mask, keep);
        else
            elements<kBytes, false>(host, skip, row, mask, keep);
    };
    switch (access.bytes) {
        case 1:
            return with.template operator()<1>();
        case 2:
            return with.template operator()<2>();
        case 4:
            return with.template operator()<4>();
        default:
            return with.template operator()<8>();
    }
}

// The other way. True if a strong store (one that others may poll for) has changed anything.
template <uint32_t kBytes, class Row>
bool scatter(uint8_t* const* host, uint32_t skip, const Row* row, uint32_t mask, bool strong) {
    bool changed = false;
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const uint32_t lane = lowest(rest);
        if (strong) changed |= std::memcmp(host[lane] + skip, row + lane, kBytes) != 0;
        std::memcpy(host[lane] + skip, row + lane, kBytes);
    }
    return changed;
}

template <class Row>
bool scatter(const Access& access, uint8_t* const* host, uint32_t skip, const Row* row, uint32_t mask) {
    switch (access.bytes) {
        case 1:
            return scatter<1>(host, skip, row, mask, access.strong);
        case 2:
            return scatter<2>(host, skip, row, mask, access.strong);
        case 4:
            return scatter<4>(host, skip, row, mask, access.strong);
        default:
            if constexpr (sizeof(Row) == 8) return scatter<8>(host, skip, row, mask, access.strong);
            return false;
    }
}

// The host's pointers of the lanes, from their addresses.
void point(Machine::Target& t, uint32_t mask, uint64_t base) {
    if (mask == kAll)
        for (uint32_t lane = 0; lane < 32; ++lane) t.host[lane] = reinterpret_cast<uint8_t*>(base + t.address[lane]);
    else
        for (; mask; mask &= mask - 1) t.host[lowest(mask)] = reinterpret_cast<uint8_t*>(base + t.address[lowest(mask)]);
}

}  // namespace

void Machine::addresses(const Warp& warp, uint32_t reg, bool wide, int64_t offset, uint64_t* out) const {
    if (reg == kNone) {
        for (int lane = 0; lane < kLanes; ++lane) out[lane] = static_cast<uint64_t>(offset);
    } else if (wide) {
        const uint64_t* row = u64(warp.registers, reg);
        for (int lane = 0; lane < kLanes; ++lane) out[lane] = row[lane] + static_cast<uint64_t>(offset);
    } else {
        const uint32_t* row = u32(warp.registers, reg);
        for (int lane = 0; lane < kLanes; ++lane) out[lane] = static_cast<uint32_t>(row[lane] + static_cast<uint32_t>(offset));
    }
}

void Machine::bad_address(Warp& warp, uint32_t pc, uint32_t lane, Where space, uint64_t address, uint32_t unit, bool write,
                          const char* kind) {
    Fault f;
    f.kind = kind;
    static const std::unordered_map<std::string_view, const char*> sentences = {
        {"out_of_bounds", "outside every allocation"},
        {"misaligned", "an address that its size does not divide"},
        {"use_after_free", "memory that has been freed"},
        {"read_only", "a write to read-only memory"},
    };
    f.message = sentences.at(kind);
    f.has_address = true;
    f.address = address;
    static const char* const spaces[] = {"generic", "global", "shared", "local", "param", "const", "param"};
    f.space = spaces[static_cast<size_t>(space)];
    f.access = std::string(write ? "write" : "read") + " of " + std::to_string(unit) + " bytes";
    f.allocation = describe(warp, space, address, unit);
    stop(warp, pc, lane, std::move(f), f.kind == "misaligned" ? Outcome::misaligned_address : Outcome::illegal_address);
}

uint32_t Machine::same_space(const Warp& warp, const Access& access, uint32_t mask) const {
    if (access.space != Where::generic) return mask;
    uint64_t at[32];
    addresses(warp, access.address, access.wide, access.offset, at);
    const auto window = [this](uint64_t a) {
        return a - windows.shared < Windows::kBytes  ? 1
               : a - windows.local < Windows::kBytes ? 2
               : a - windows.param < Windows::kBytes ? 3
                                                     : 0;
    };
    uint32_t group = 0;
    for (uint32_t rest = mask; rest; rest &= rest - 1)
        if (window(at[lowest(rest)]) == window(at[lowest(mask)])) group |= rest & -rest;
    return group;
}

void Machine::resolve(Warp& warp, const Access& access, uint32_t mask, uint32_t pc, Use use, Target& t) {
    addresses(warp, access.address, access.wide, access.offset, t.address);
    if (access.space != Where::generic) {
        resolve_as(warp, access, access.space, mask, pc, use, t, access.unit());
        return;
    }
    const auto window = [this](uint64_t address, uint64_t* base) {
        *base = 0;
        for (const auto& [begin, space] : {std::pair{windows.shared, Where::shared}, std::pair{windows.local, Where::local},
                                           std::pair{windows.param, Where::param}})
            if (address - begin < Windows::kBytes) {
                *base = begin;
                return space;
            }
        return Where::global;
    };
    for (uint32_t rest = mask; rest;) {
        uint64_t base, other;
        const Where space = window(t.address[lowest(rest)], &base);
        uint32_t group = 0;
        for (uint32_t r = rest; r; r &= r - 1)
            if (window(t.address[lowest(r)], &other) == space) group |= r & -r;
        for (uint32_t r = group; base && r; r &= r - 1) t.address[lowest(r)] -= base;
        resolve_as(warp, access, space, group, pc, use, t, access.unit());
        rest &= ~group;
        if (group != mask) t.contiguous = false;
    }
}

void Machine::resolve_as(Warp& warp, const Access& access, Where space, uint32_t mask, uint32_t pc, Use use, Target& t,
                         uint32_t unit) {
    const bool write = use != Use::read;
    t.space = space;
    t.contiguous = mask == kAll && in_a_row(t.address, unit);
    Block& block = *warp.block;
    const Kernel& kernel = *block.grid->kernel;
    const uint64_t align = std::bit_ceil(unit) - 1;
    for (uint32_t rest = t.contiguous ? 1 : mask; rest; rest &= rest - 1)
        if (t.address[lowest(rest)] & align)
            bad_address(warp, pc, lowest(rest), space, t.address[lowest(rest)], unit, write, "misaligned");
    const auto dubious = [&](uint32_t lane, const uint8_t* shadow, uint64_t bytes, uint64_t shown) {
        // Not clean: says in what way. Reading what was never written goes on with the poison.
        bool addressable = true, pending = false, read_only = false;
        for (uint64_t i = 0; i < bytes; ++i) {
            addressable &= (shadow[i] & kAddressable) != 0;
            pending |= (shadow[i] & kPending) != 0;
            read_only |= (shadow[i] & kReadOnly) != 0;
        }
        if (!addressable) {
            const Allocation* near = space == Where::global || space == Where::constant ? memory.nearest(shown) : nullptr;
            const bool freed = near && !near->live && shown - near->begin < near->bytes;
            bad_address(warp, pc, lane, space, shown, unit, write, freed ? "use_after_free" : "out_of_bounds");
        }
        if (write && read_only) bad_address(warp, pc, lane, space, shown, unit, write, "read_only");
        Fault f;
        f.kind = pending ? "async_pending" : "uninitialised";
        f.message = pending ? "memory that a cp.async not yet waited for is filling" : "memory that was never written";
        f.has_address = true;
        f.address = shown;
        f.space = space == Where::shared ? "shared" : space == Where::local ? "local" : "global";
        f.access = std::string(write ? "write" : "read") + " of " + std::to_string(unit) + " bytes";
        f.allocation = describe(warp, space, shown, unit);
        fault(warp, pc, lane, std::move(f));
    };
    const uint8_t needed = use == Use::write ? kAddressable : kReady;
    const auto clean = [needed, write](const uint8_t* shadow, uint64_t bytes) {
        uint8_t all = needed, any = 0;
        for (uint64_t i = 0; i < bytes; ++i) {
            all &= shadow[i];
            any |= shadow[i];
        }
        return (all & needed) == needed && !(any & (write ? kPending | kReadOnly : kPending));
    };
    switch (space) {
        case Where::shared: {
            const uint64_t end = block.shared_bytes;
            if (t.contiguous && t.address[0] < end && uint64_t{32} * unit <= end - t.address[0] &&
                clean(block.shadow.data() + t.address[0], uint64_t{32} * unit)) {
                if (write) std::memset(block.shadow.data() + t.address[0], kReady, size_t{32} * unit);
            } else {
                for (uint32_t rest = mask; rest; rest &= rest - 1) {
                    const uint32_t lane = lowest(rest);
                    const uint64_t at = t.address[lane];
                    if (at >= end || unit > end - at) bad_address(warp, pc, lane, space, at, unit, write, "out_of_bounds");
                    uint8_t* shadow = block.shadow.data() + at;
                    if (!clean(shadow, unit)) dubious(lane, shadow, unit, at);
                }
                for (uint32_t rest = write ? mask : 0; rest; rest &= rest - 1)
                    std::memset(block.shadow.data() + t.address[lowest(rest)], kReady, unit);
            }
            point(t, mask, reinterpret_cast<uint64_t>(block.shared.data()));
            touch_shared(warp, t, mask, unit, pc, write, access, t.contiguous);
            break;
        }
        case Where::global:
        case Where::constant: {
            if (t.contiguous && memory.inside(t.address[0], uint64_t{32} * unit) &&
                (write ? clean(memory.shadow(t.address[0]), uint64_t{32} * unit)
                       : memory.ready(t.address[0], uint64_t{32} * unit))) {
                if (write) memory.mark_written(t.address[0], uint64_t{32} * unit);
            } else {
                uint64_t last = UINT64_MAX;
                for (uint32_t rest = mask; rest; rest &= rest - 1) {
                    const uint32_t lane = lowest(rest);
                    const uint64_t at = t.address[lane];
                    if (at == last) continue;
                    last = at;
                    if (!memory.inside(at, unit)) bad_address(warp, pc, lane, space, at, unit, write, "out_of_bounds");
                    if (write ? !clean(memory.shadow(at), unit) : !memory.ready(at, unit))
                        dubious(lane, memory.shadow(at), unit, at);
                }
                for (uint32_t rest = write ? mask : 0; rest; rest &= rest - 1) memory.mark_written(t.address[lowest(rest)], unit);
            }
            point(t, mask, 0);
            if (write && pending_sources)
                for (uint32_t rest = mask; rest; rest &= rest - 1)
                    write_pending(warp, lowest(rest), t.address[lowest(rest)], unit, pc);
            if (space == Where::global) touch_global(warp, t, mask, unit, pc, write, access, t.contiguous);
            break;
        }
        case Where::local:
        case Where::call_param:
            t.contiguous = false;
            for (uint32_t rest = mask; rest; rest &= rest - 1) {
                const uint32_t lane = lowest(rest);
                const uint64_t at = t.address[lane];
                if (at >= kernel.frame_bytes || unit > kernel.frame_bytes - at)
                    bad_address(warp, pc, lane, space, at, unit, write, "out_of_bounds");
                const size_t in_warp = size_t{lane} * kernel.frame_bytes + at;
                uint8_t* shadow = warp.frame_shadow.data() + in_warp;
                if (space == Where::local) {
                    if (!clean(shadow, unit)) dubious(lane, shadow, unit, at);
                }
                if (write) std::memset(shadow, kReady, unit);
                t.host[lane] = warp.frame.data() + in_warp;
            }
            break;
        case Where::param: {
            t.contiguous = false;
            const std::vector<std::byte>& parameters = block.grid->launch->parameters;
            for (uint32_t rest = mask; rest; rest &= rest - 1) {
                const uint32_t lane = lowest(rest);
                const uint64_t at = t.address[lane];
                if (write) bad_address(warp, pc, lane, space, at, unit, write, "read_only");
                if (at >= parameters.size() || unit > parameters.size() - at)
                    bad_address(warp, pc, lane, space, at, unit, write, "out_of_bounds");
                t.host[lane] = const_cast<uint8_t*>(reinterpret_cast<const uint8_t*>(parameters.data()) + at);
            }
            break;
        }
        case Where::generic:
            break;
    }
}

void Machine::load(Warp& warp, const Instruction& in, uint32_t mask, uint32_t pc) {
    const Access& access = warp.block->grid->kernel->accesses[in.small];
    std::byte* regs = warp.registers;
    if (access.space == Where::param && access.address == kNone && access.count == 1 && access.bytes >= 4 && access.bytes <= 8 &&
        access.widths[0] == 8 * access.bytes) {  // a kernel's parameter, the same for all
        const std::vector<std::byte>& parameters = warp.block->grid->launch->parameters;
        const auto at = static_cast<uint64_t>(access.offset);
        if (at % access.bytes == 0 && at + access.bytes <= parameters.size()) {
            uint64_t value = 0;
            std::memcpy(&value, parameters.data() + at, access.bytes);
            for (uint32_t lane = 0; lane < 32; ++lane) {
                if (!(mask >> lane & 1)) continue;
                if (access.bytes == 4)
                    u32(regs, access.registers[0])[lane] = static_cast<uint32_t>(value);
                else
                    u64(regs, access.registers[0])[lane] = value;
            }
            return;
        }
    }
    Target t;
    resolve(warp, access, mask, pc, Use::read, t);
    count(warp, t, mask, access.unit(), pc, false);
    if (access.strong) {
        if (polls_left) --polls_left;
        warp.polls = true;
    }
    bool narrow = t.contiguous && access.bytes == 4;
    for (uint32_t e = 0; e < access.count; ++e) narrow &= access.registers[e] != kNone && access.widths[e] == 32;
    if (narrow && access.count == 1) {
        words_in<1>(t.host[0], regs, access.registers.data());
    } else if (narrow && access.count == 2) {
        words_in<2>(t.host[0], regs, access.registers.data());
    } else if (narrow && access.count == 4) {
        words_in<4>(t.host[0], regs, access.registers.data());
    } else if (narrow && access.count == 8) {
        words_in<8>(t.host[0], regs, access.registers.data());
    } else {
        for (uint32_t e = 0; e < access.count; ++e) {
            if (access.registers[e] == kNone) continue;
            const uint32_t skip = e * access.bytes;
            const uint32_t at = access.registers[e];
            if (access.widths[e] <= 32) {
                elements(access, t.host, skip, u32(regs, at), mask, access.widths[e] == 16 ? 0xffff : 0xffffffff);
            } else {
                elements(access, t.host, skip, u64(regs, at), mask, UINT64_MAX);
                if (access.bytes == 16) elements(access, t.host, skip + 8, u64(regs, at) + 32, mask, UINT64_MAX);
            }
        }
    }
    if (access.strong && t.space != Where::local)
        for (uint32_t rest = mask; rest; rest &= rest - 1)
            observe(warp, lowest(rest), key(warp, t.space, t.address[lowest(rest)]), access);
}

void Machine::store(Warp& warp, const Instruction& in, uint32_t mask, uint32_t pc) {
    const Access& access = warp.block->grid->kernel->accesses[in.small];
    Target t;
    if (access.strong)  // what is released is released before the value can be seen
        addresses(warp, access.address, access.wide, access.offset, t.address);
    resolve(warp, access, mask, pc, Use::write, t);
    count(warp, t, mask, access.unit(), pc, true);
    std::byte* regs = warp.registers;
    bool narrow = t.contiguous && access.bytes == 4, changed = !access.strong;
    for (uint32_t e = 0; e < access.count; ++e) narrow &= access.widths[e] == 32;
    if (narrow && access.count == 1 && !access.strong) {
        words_out<1>(t.host[0], regs, access.registers.data());
    } else if (narrow && access.count == 2 && !access.strong) {
        words_out<2>(t.host[0], regs, access.registers.data());
    } else if (narrow && access.count == 4 && !access.strong) {
        words_out<4>(t.host[0], regs, access.registers.data());
    } else {
        for (uint32_t e = 0; e < access.count; ++e) {
            const uint32_t skip = e * access.bytes, at = access.registers[e];
            if (access.widths[e] <= 32) {
                changed |= scatter(access, t.host, skip, u32(regs, at), mask);
            } else {
                changed |= scatter(access, t.host, skip, u64(regs, at), mask);
                if (access.bytes == 16) changed |= scatter(access, t.host, skip + 8, u64(regs, at) + 32, mask);
            }
        }
    }
    if (changed && t.space != Where::local && t.space != Where::call_param) ++progress;
    if (access.strong && t.space != Where::local) {
        warp.polls = true;
        for (uint32_t rest = mask; rest; rest &= rest - 1)
            publish(warp, lowest(rest), key(warp, t.space, t.address[lowest(rest)]), access, false);
    }
}

// ldmatrix: lane 8 m + r gives the address of row r (16 bytes) of matrix m; lane l receives elements 2 (l % 4) and the next of
// row l / 4 (transposed: of column l / 4), the first in the lower half.
void Machine::load_matrix(Warp& warp, const Instruction& in, uint32_t mask, uint32_t pc) {
    Access access = warp.block->grid->kernel->accesses[in.small];
    const uint32_t matrices = access.count;
    const uint32_t rows = matrices == 4 ? kAll : (uint32_t{1} << 8 * matrices) - 1;
    access.count = 4;
    Target t;
    resolve(warp, access, mask & rows, pc, Use::read, t);
    count(warp, t, mask & rows, 16, pc, false);
    uint32_t result[4][32];
    for (uint32_t m = 0; m < matrices; ++m)
        for (uint32_t lane = 0; lane < 32; ++lane) {
            const uint32_t major = lane / 4, minor = lane % 4 * 2;
            uint16_t pair[2];
            for (uint32_t k = 0; k < 2; ++k) {
                const uint32_t row = access.what ? minor + k : major, column = access.what ? major : minor + k;
                std::memcpy(&pair[k], t.host[8 * m + row] + 2 * column, 2);
            }
            result[m][lane] = pair[0] | uint32_t{pair[1]} << 16;
        }
    for (uint32_t m = 0; m < matrices; ++m)
        if (access.registers[m] != kNone) std::memcpy(warp.registers + access.registers[m], result[m], sizeof result[m]);
}

void Machine::store_matrix(Warp& warp, const Instruction& in, uint32_t mask, uint32_t pc) {
    Access access = warp.block->grid->kernel->accesses[in.small];
    const uint32_t matrices = access.count;
    const uint32_t rows = matrices == 4 ? kAll : (uint32_t{1} << 8 * matrices) - 1;
    access.count = 4;
    Target t;
    resolve(warp, access, mask & rows, pc, Use::write, t);
    count(warp, t, mask & rows, 16, pc, true);
    for (uint32_t m = 0; m < matrices; ++m)
        for (uint32_t lane = 0; lane < 32; ++lane) {
            const uint32_t value = u32(warp.registers, access.registers[m])[lane];
            const uint32_t major = lane / 4, minor = lane % 4 * 2;
            for (uint32_t k = 0; k < 2; ++k) {
                const uint32_t row = access.what ? minor + k : major, column = access.what ? major : minor + k;
                const uint16_t half = static_cast<uint16_t>(value >> 16 * k);
                std::memcpy(t.host[8 * m + row] + 2 * column, &half, 2);
            }
        }
    ++progress;
}

}  // namespace vgpu

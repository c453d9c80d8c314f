// atom and red: read, modify, write, lane after lane.
#include <bit>
#include <cmath>
#include <cstring>

#include "alu/formats.h"
#include "core/machine.h"

namespace vgpu {
namespace {

uint32_t lowest(uint32_t mask) { return static_cast<uint32_t>(std::countr_zero(mask)); }

struct Wide {
    uint64_t low = 0, high = 0;
    bool operator==(const Wide&) const = default;
};

template <class T>
uint64_t integer(AtomicOp op, uint64_t old_bits, uint64_t b_bits, uint64_t c_bits) {
    using U = std::make_unsigned_t<T>;
    const T old = static_cast<T>(old_bits), b = static_cast<T>(b_bits);
    const U uo = static_cast<U>(old), ub = static_cast<U>(b);
    switch (op) {
        case AtomicOp::add:
            return static_cast<U>(uo + ub);
        case AtomicOp::min:
            return static_cast<U>(old < b ? old : b);
        case AtomicOp::max:
            return static_cast<U>(old > b ? old : b);
        case AtomicOp::inc:
            return uo >= ub ? U{0} : static_cast<U>(uo + 1);
        case AtomicOp::dec:
            return uo == 0 || uo > ub ? ub : static_cast<U>(uo - 1);
        case AtomicOp::exch:
            return ub;
        case AtomicOp::cas:
            return uo == ub ? static_cast<U>(c_bits) : uo;
        case AtomicOp::logic_and:
            return uo & ub;
        case AtomicOp::logic_or:
            return uo | ub;
        case AtomicOp::logic_xor:
            return uo ^ ub;
    }
    return uo;
}

// 16-bit floats: the sum of two of them is exact in double, and rounds once. min and max: a number wins over NaN, -0 < +0.
template <class F>
uint32_t half(AtomicOp op, uint32_t old, uint32_t b) {
    const double x = formats::decode<F>(old), y = formats::decode<F>(b);
    if (op == AtomicOp::exch) return b;
    if (op == AtomicOp::add) {
        const double sum = x + y;
        if (std::isnan(sum)) return static_cast<uint32_t>(F::kNan);
        return static_cast<uint32_t>(formats::encode<F>(sum, formats::Round::nearest));
    }
    if (std::isnan(x) || std::isnan(y))
        return std::isnan(x) && std::isnan(y) ? static_cast<uint32_t>(F::kNan) : std::isnan(x) ? b : old;
    const bool less = x < y || (x == y && std::signbit(x) && !std::signbit(y));
    return (op == AtomicOp::min) == less ? old : b;
}

// Additions on float atomics of global memory flush denormals (.ftz) for f32 in hardware; the ISA says so of atom.add.f32 on
// global memory. Here as there; shared memory keeps them.
float add_f32(float a, float b, bool flush) {
    if (flush) {
        a = formats::flush(a);
        b = formats::flush(b);
    }
    float sum = a + b;
    if (flush) sum = formats::flush(sum);
    return std::isnan(sum) ? std::bit_cast<float>(uint32_t{0x7fffffff}) : sum;
}

Wide modify(const Access& access, const Wide& old, const Wide& b, const Wide& c, bool global) {
    Wide result;
    const AtomicOp op = access.op;
    switch (access.number) {
        case Number::b128:
            if (op == AtomicOp::cas) return old == b ? c : old;
            return b;
        case Number::f32:
            if (op == AtomicOp::exch) return b;
            result.low = std::bit_cast<uint32_t>(add_f32(std::bit_cast<float>(static_cast<uint32_t>(old.low)),
                                                         std::bit_cast<float>(static_cast<uint32_t>(b.low)), global));
            break;
        case Number::f64:
            result.low = std::bit_cast<uint64_t>(std::bit_cast<double>(old.low) + std::bit_cast<double>(b.low));
            break;
        case Number::f16:
            result.low = half<formats::F16>(op, old.low & 0xffff, b.low & 0xffff);
            break;
        case Number::bf16:
            result.low = half<formats::BF16>(op, old.low & 0xffff, b.low & 0xffff);
            break;
        case Number::f16x2:
            result.low = half<formats::F16>(op, old.low & 0xffff, b.low & 0xffff) |
                         uint64_t{half<formats::F16>(op, old.low >> 16 & 0xffff, b.low >> 16 & 0xffff)} << 16;
            break;
        case Number::bf16x2:
            result.low = half<formats::BF16>(op, old.low & 0xffff, b.low & 0xffff) |
                         uint64_t{half<formats::BF16>(op, old.low >> 16 & 0xffff, b.low >> 16 & 0xffff)} << 16;
            break;
        case Number::s32:
            result.low = integer<int32_t>(op, old.low, b.low, c.low);
            break;
        case Number::s64:
            result.low = integer<int64_t>(op, old.low, b.low, c.low);
            break;
        case Number::u64:
        case Number::b64:
            result.low = integer<uint64_t>(op, old.low, b.low, c.low);
            break;
        case Number::b16:
            result.low = integer<uint16_t>(op, old.low, b.low, c.low);
            break;
        case Number::u32:
        case Number::b32:
            result.low = integer<uint32_t>(op, old.low, b.low, c.low);
            break;
    }
    return result;
}

Wide from_register(std::byte* regs, uint32_t at, uint32_t lane, uint32_t bytes) {
    if (at == kNone) return {};
    if (bytes <= 4) return {u32(regs, at)[lane], 0};
    return {u64(regs, at)[lane], bytes == 16 ? u64(regs, at)[32 + lane] : 0};
}

}  // namespace

void Machine::atomic(Warp& warp, const Instruction& in, uint32_t mask, uint32_t pc) {
    const Access& access = warp.block->grid->kernel->accesses[in.small];
    Target t;
    resolve(warp, access, mask, pc, Use::modify, t);
    count(warp, t, mask, access.unit(), pc, true);
    std::byte* regs = warp.registers;
    bool changed = false;
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const uint32_t lane = lowest(rest);
        const uint64_t at = key(warp, t.space, t.address[lane]);
        for (uint32_t e = 0; e < access.count; ++e) {
            uint8_t* place = t.host[lane] + e * access.bytes;
            Wide old;
            std::memcpy(&old, place, access.bytes);
            const Wide result = modify(access, old, from_register(regs, access.more[e], lane, access.bytes),
                                       from_register(regs, access.c, lane, access.bytes), t.space == Where::global);
            changed |= std::memcmp(place, &result, access.bytes) != 0;
            std::memcpy(place, &result, access.bytes);
            if (access.registers[e] == kNone) continue;
            if (access.bytes <= 4) {
                u32(regs, access.registers[e])[lane] = static_cast<uint32_t>(old.low);
            } else {
                u64(regs, access.registers[e])[lane] = old.low;
                if (access.bytes == 16) u64(regs, access.registers[e])[32 + lane] = old.high;
            }
        }
        observe(warp, lane, at, access);
        publish(warp, lane, at, access, true);
    }
    if (changed) ++progress;
    warp.polls = true;
    if (polls_left) --polls_left;
}

}  // namespace vgpu

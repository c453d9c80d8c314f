// cvt and cvt.pack. PTX ISA 9.0, 9.7.9.21 and 9.7.9.22; which modifiers go with which types is what ptxas accepts. Values are
// rounded once, from the exact source. Where the ISA leaves a NaN's bits open, they are those seen on hardware: narrow formats
// and f32 get the canonical one, f64 on either side keeps sign and payload.
#include <algorithm>
#include <bit>
#include <cmath>
#include <concepts>
#include <iterator>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "alu/alu.h"
#include "alu/families.h"
#include "alu/form.h"
#include "alu/formats.h"

namespace vgpu {
namespace {

using namespace formats;

// Instruction::small: the rounding in the low bits, then
enum : uint32_t {
    kRound = 7,
    kFtz = 1 << 3,
    kSat = 1 << 4,
    kRelu = 1 << 5,
    kFinite = 1 << 6,
    kToInteger = 1 << 7,  // .rni and its kin
    kNarrow = 1 << 8,     // the destination is a register of 16 bits: the row's upper halves stay zero
    kSourceShift = 9,     // a Kind
};

enum class Kind : uint8_t { u8, s8, u16, s16, u32, s32, u64, s64, f16, bf16, f32, f64 };
constexpr std::string_view kNames[] = {"u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64", "f16", "bf16", "f32", "f64"};
constexpr int kKinds = std::size(kNames);

constexpr bool is_float(Kind k) { return k >= Kind::f16; }
constexpr bool is_signed(Kind k) { return !is_float(k) && (static_cast<int>(k) & 1); }
constexpr int bits_of(Kind k) {
    constexpr int kBits[] = {8, 8, 16, 16, 32, 32, 64, 64, 16, 16, 32, 64};
    return kBits[static_cast<int>(k)];
}

// Calls f with a value whose type stands for the kind: a C++ integer, or a format.
template <class F>
Alu for_integer(Kind k, F f) {
    switch (k) {
        case Kind::u8:
            return f(uint8_t{});
        case Kind::s8:
            return f(int8_t{});
        case Kind::u16:
            return f(uint16_t{});
        case Kind::s16:
            return f(int16_t{});
        case Kind::u32:
            return f(uint32_t{});
        case Kind::s32:
            return f(int32_t{});
        case Kind::u64:
            return f(uint64_t{});
        default:
            return f(int64_t{});
    }
}
template <class F>
Alu for_float(Kind k, F f) {
    switch (k) {
        case Kind::f16:
            return f(F16{});
        case Kind::bf16:
            return f(BF16{});
        case Kind::f32:
            return f(F32{});
        default:
            return f(F64{});
    }
}

template <class T>
constexpr int width() {
    if constexpr (std::integral<T>) {
        return 8 * sizeof(T);
    } else {
        return T::kBits;
    }
}
template <class T>
using Row = std::conditional_t<width<T>() == 64, uint64_t, uint32_t>;

template <class R>
R* row(std::byte* regs, uint32_t at) {
    return reinterpret_cast<R*>(regs + at);
}

// d = f(lane) in the lanes of mask, for an f that vectorises. (lanes::write selects in the same loop, which keeps float
// conversions from it.)
template <class R, class F>
void each(R* d, uint32_t mask, F f) {
    if (mask == UINT32_MAX) {
#pragma GCC ivdep
        for (int i = 0; i < kLanes; ++i) d[i] = f(i);
        return;
    }
    R result[kLanes];
    for (int i = 0; i < kLanes; ++i) result[i] = f(i);
    for (int i = 0; i < kLanes; ++i) d[i] = mask >> i & 1 ? result[i] : d[i];
}

// The same for an f that does not.
template <class R, class F>
void some(R* d, uint32_t mask, F f) {
    for (; mask; mask &= mask - 1) {
        const int i = std::countr_zero(mask);
        d[i] = static_cast<R>(f(i));
    }
}

Round rounding(const Instruction& in) { return static_cast<Round>(in.small & kRound); }
Kind source_kind(const Instruction& in) { return static_cast<Kind>(in.small >> kSourceShift); }

double to_integral(double x, Round round) {
    switch (round) {
        case Round::zero:
            return std::trunc(x);
        case Round::down:
            return std::floor(x);
        case Round::up:
            return std::ceil(x);
        default:
            return std::rint(x);
    }
}

// Integers.

template <class D, class S, bool saturate>
void integer_to_integer(const Instruction& in, std::byte* regs, uint32_t mask) {
    const Row<S>* a = row<Row<S>>(regs, in.a);
    const Row<D> keep = static_cast<Row<D>>(in.small & kNarrow ? 0xffff : -1);
    constexpr D kMin = std::numeric_limits<D>::min(), kMax = std::numeric_limits<D>::max();
    each(row<Row<D>>(regs, in.d), mask, [=](int i) {
        const S x = static_cast<S>(a[i]);
        D y = static_cast<D>(x);
        if constexpr (saturate) y = std::cmp_less(x, kMin) ? kMin : std::cmp_greater(x, kMax) ? kMax : y;
        return static_cast<Row<D>>(y) & keep;
    });
}

// Rows of any float type, as double; .ftz where it is f32.
void load(const Instruction& in, std::byte* regs, double (&x)[kLanes]) {
    const uint32_t* a = row<uint32_t>(regs, in.a);
    const uint64_t* a64 = row<uint64_t>(regs, in.a);
    switch (source_kind(in)) {
        case Kind::f16:
            for (int i = 0; i < kLanes; ++i) x[i] = f16_to_f32(a[i]);
            break;
        case Kind::bf16:
            for (int i = 0; i < kLanes; ++i) x[i] = bf16_to_f32(a[i]);
            break;
        case Kind::f32:
            if (in.small & kFtz) {
                for (int i = 0; i < kLanes; ++i) x[i] = flush(as_float(a[i]));
            } else {
                for (int i = 0; i < kLanes; ++i) x[i] = as_float(a[i]);
            }
            break;
        default:
            for (int i = 0; i < kLanes; ++i) x[i] = as_double(a64[i]);
    }
}

// Out of range: the nearest end, with and without .sat. In steps, which the compiler needs to vectorise them.
template <class D>
void float_to_integer(const Instruction& in, std::byte* regs, uint32_t mask) {
    using Cast = std::conditional_t<sizeof(D) < 4, int32_t, D>;
    constexpr D kMin = std::numeric_limits<D>::min(), kMax = std::numeric_limits<D>::max();
    constexpr bool kLong = sizeof(D) == 8;
    // The largest 64-bit integers are no doubles: kHigh is the one below them, and kBeyond where they are meant.
    constexpr double kBeyond = kLong ? 2.0 * static_cast<double>(kMax / 2 + 1) : HUGE_VAL;
    constexpr double kLow = static_cast<double>(kMin), kHigh = kLong ? kBeyond * (1 - 0x1p-53) : static_cast<double>(kMax);
    constexpr double kTop = std::signed_integral<D> ? kLow : static_cast<double>(kMax / 2 + 1);
    const double nan = kLong || source_kind(in) == Kind::f64 ? kTop : 0;
    const Row<D> keep = static_cast<Row<D>>(in.small & kNarrow ? 0xffff : -1);
    double x[kLanes], inside[kLanes];
    load(in, regs, x);
    switch (rounding(in)) {
        case Round::zero:
            for (double& v : x) v = std::trunc(v);
            break;
        case Round::down:
            for (double& v : x) v = std::floor(v);
            break;
        case Round::up:
            for (double& v : x) v = std::ceil(v);
            break;
        default:
            for (double& v : x) v = std::rint(v);
    }
    for (double& v : x) v = v != v ? nan : v;
    for (int i = 0; i < kLanes; ++i) {
        const double least = x[i] < kLow ? kLow : x[i];
        inside[i] = least > kHigh ? kHigh : least;
    }
    Cast y[kLanes];
    for (int i = 0; i < kLanes; ++i) y[i] = static_cast<Cast>(inside[i]);
    if constexpr (kLong)
        for (int i = 0; i < kLanes; ++i) y[i] = x[i] >= kBeyond ? kMax : y[i];
    each(row<Row<D>>(regs, in.d), mask, [=, &y](int i) { return static_cast<Row<D>>(static_cast<D>(y[i])) & keep; });
}

// To f32 and f64, .rn: the processor rounds in the same way.
template <class D, class S>
void integer_to_float_nearest(const Instruction& in, std::byte* regs, uint32_t mask) {
    using Value = std::conditional_t<width<D>() == 64, double, float>;
    const Row<S>* a = row<Row<S>>(regs, in.a);
    each(row<Row<D>>(regs, in.d), mask, [=](int i) { return std::bit_cast<Row<D>>(static_cast<Value>(static_cast<S>(a[i]))); });
}

// .sat: to [0, 1], NaN to 0. Negative numbers, their zero too, become 0.
template <class F>
uint64_t saturated(uint64_t bits) {
    constexpr uint64_t kOne = static_cast<uint64_t>(F::kBias) << F::kMantissa;
    return bits > F::kInfinity ? 0 : std::min(bits, kOne);
}

template <class D>
void integer_to_float(const Instruction& in, std::byte* regs, uint32_t mask) {
    const Kind kind = source_kind(in);
    const int unused = 64 - bits_of(kind);
    some(row<Row<D>>(regs, in.d), mask, [&](int i) {
        const uint64_t raw = bits_of(kind) == 64 ? row<uint64_t>(regs, in.a)[i] : row<uint32_t>(regs, in.a)[i];
        const uint64_t x = raw << unused;
        const bool negative = is_signed(kind) && x >> 63;
        const uint64_t y = encode<D>(negative, (negative ? -x : x) >> unused, 0, rounding(in));
        return in.small & kSat ? saturated<D>(y) : y;
    });
}

// Floats.

template <class F>
double widen(uint64_t x) {
    if constexpr (F::kBits == 64) {
        return as_double(x);
    } else {
        return decode<F>(static_cast<uint32_t>(x));
    }
}

template <class F>
bool is_nan(uint64_t x) {
    return (x & (F::kSign - 1)) > F::kInfinity;
}

// A NaN's sign and upper payload in another format, quiet.
template <class D, class S>
uint64_t move_nan(uint64_t x) {
    constexpr int kShift = D::kMantissa - S::kMantissa;
    const uint64_t payload = x & ((uint64_t{1} << S::kMantissa) - 1);
    const uint64_t moved = kShift >= 0 ? payload << std::max(kShift, 0) : payload >> std::max(-kShift, 0);
    return (x & S::kSign ? D::kSign : 0) | D::kInfinity | moved | uint64_t{1} << (D::kMantissa - 1);
}

template <class D, class S>
uint64_t convert(uint64_t x, uint32_t mode) {
    x &= S::kSign | (S::kSign - 1);
    uint64_t y;
    if (is_nan<S>(x)) {
        const bool unchanged = std::same_as<D, S> && !(mode & (kFtz | kToInteger));
        y = unchanged ? x : D::kBits == 64 || S::kBits == 64 ? move_nan<D, S>(x) : D::kNan;
    } else {
        double value = widen<S>(x);
        if (S::kBits == 32 && mode & kFtz) value = flush(static_cast<float>(value));
        const Round round = static_cast<Round>(mode & kRound);
        if (mode & kToInteger) value = to_integral(value, round);
        y = encode<D>(value, round, mode & kFinite);
        if (D::kBits == 32 && mode & kFtz) {
            // Tiny is what, rounded as if the exponent had no end, lies below the smallest normal number. Twice the value has
            // room for that exponent.
            const uint64_t doubled = encode<F32>(2 * value, round) & 0x7fffffff;
            if (doubled < uint64_t{2} << 23) y &= D::kSign;
        }
        if (mode & kRelu && y & D::kSign) y = 0;
    }
    return mode & kSat ? saturated<D>(y) : y;
}

template <class D, class S>
void float_to_float(const Instruction& in, std::byte* regs, uint32_t mask) {
    some(row<Row<D>>(regs, in.d), mask, [&](int i) { return convert<D, S>(row<Row<S>>(regs, in.a)[i], in.small); });
}

// The common ones, .rn or exact.
template <class D, class S, bool ftz>
void float_to_float_nearest(const Instruction& in, std::byte* regs, uint32_t mask) {
    const Row<S>* a = row<Row<S>>(regs, in.a);
    each(row<Row<D>>(regs, in.d), mask, [=](int i) -> Row<D> {
        if constexpr (S::kBits == 64) {  // to f32
            return formats::bits_of(static_cast<float>(as_double(a[i])));
        } else {
            float x = decode<S>(a[i]);
            if constexpr (ftz) x = flush(x);
            if constexpr (D::kBits == 64) {
                return formats::bits_of(static_cast<double>(x));
            } else if constexpr (D::kBits == 32) {
                return formats::bits_of(x);
            } else if constexpr (std::same_as<D, F16>) {
                return f32_to_f16(x);
            } else {
                return f32_to_bf16(x);
            }
        }
    });
}

Alu nearest(Kind d, Kind a, bool ftz) {
    const auto pair = [](Kind x, Kind y) { return static_cast<int>(x) * kKinds + static_cast<int>(y); };
    const int key = pair(d, a);
    if (key == pair(Kind::f32, Kind::f16)) return &float_to_float_nearest<F32, F16, false>;  // no f16 is a subnormal f32
    if (key == pair(Kind::f32, Kind::bf16) && !ftz) return &float_to_float_nearest<F32, BF16, false>;
    if (key == pair(Kind::f16, Kind::f32))
        return ftz ? &float_to_float_nearest<F16, F32, true> : &float_to_float_nearest<F16, F32, false>;
    if (key == pair(Kind::bf16, Kind::f32))
        return ftz ? &float_to_float_nearest<BF16, F32, true> : &float_to_float_nearest<BF16, F32, false>;
    if (key == pair(Kind::f64, Kind::f32))
        return ftz ? &float_to_float_nearest<F64, F32, true> : &float_to_float_nearest<F64, F32, false>;
    if (key == pair(Kind::f32, Kind::f64) && !ftz) return &float_to_float_nearest<F32, F64, false>;
    return nullptr;
}

// tf32: the float with its low 13 bits zero. A NaN becomes the canonical one: .rna would carry it to infinity.
void to_tf32(const Instruction& in, std::byte* regs, uint32_t mask) {
    const uint32_t* a = row<uint32_t>(regs, in.a);
    some(row<uint32_t>(regs, in.d), mask, [&](int i) {
        const uint32_t x = a[i], sign = x & 0x80000000, magnitude = x ^ sign;
        if (rounding(in) == Round::away) {
            if (magnitude > 0x7f800000) return 0x7fffe000u;
            uint32_t y = (magnitude + 0x1000) & 0xffffe000;
            if (in.small & kFinite && y == 0x7f800000) y -= 0x2000;
            return sign | y;
        }
        const auto y = static_cast<uint32_t>(encode<TF32>(as_float(x), rounding(in), in.small & kFinite)) << 13;
        return in.small & kRelu && y >> 31 ? 0 : y;
    });
}

// Packed formats.

struct UE8M0 {};

template <class D>
uint32_t narrow(float x, uint32_t mode) {
    if constexpr (std::same_as<D, UE8M0>) {
        // The sign is ignored. What lies below 2^-127 becomes that.
        const uint32_t magnitude = formats::bits_of(x) & 0x7fffffff;
        if (magnitude > 0x7f800000) return 0xff;
        const bool up = static_cast<Round>(mode & kRound) == Round::up && magnitude & 0x7fffff && magnitude > 0x00400000;
        const uint32_t exponent = (magnitude >> 23) + up;
        return mode & kFinite ? std::min(exponent, 0xfeu) : exponent;
    } else {
        const auto y = static_cast<uint32_t>(encode<D>(x, static_cast<Round>(mode & kRound), mode & kFinite));
        return mode & kRelu && y & D::kSign ? 0 : y;
    }
}

// Bits from one element of a pair to the next.
template <class F>
constexpr int stride() {
    if constexpr (std::same_as<F, UE8M0>) {
        return 8;
    } else {
        return F::kBits == 6 ? 8 : F::kBits;
    }
}

// d = {a, b}: a in the upper part.
template <class D>
void pack(const Instruction& in, std::byte* regs, uint32_t mask) {
    const uint32_t *a = row<uint32_t>(regs, in.a), *b = row<uint32_t>(regs, in.b);
    some(row<uint32_t>(regs, in.d), mask,
         [&](int i) { return narrow<D>(as_float(a[i]), in.small) << stride<D>() | narrow<D>(as_float(b[i]), in.small); });
}

template <class D>
void pack_nearest(const Instruction& in, std::byte* regs, uint32_t mask) {
    const uint32_t *a = row<uint32_t>(regs, in.a), *b = row<uint32_t>(regs, in.b);
    each(row<uint32_t>(regs, in.d), mask, [=](int i) {
        if constexpr (std::same_as<D, F16>) {
            return f32_to_f16(as_float(a[i])) << 16 | f32_to_f16(as_float(b[i]));
        } else {
            return f32_to_bf16(as_float(a[i])) << 16 | f32_to_bf16(as_float(b[i]));
        }
    });
}

template <class D, class S>
void repack(const Instruction& in, std::byte* regs, uint32_t mask) {
    const uint32_t* a = row<uint32_t>(regs, in.a);
    some(row<uint32_t>(regs, in.d), mask,
         [&](int i) { return narrow<D>(decode<S>(a[i] >> 16), in.small) << stride<D>() | narrow<D>(decode<S>(a[i]), in.small); });
}

// To f16x2: exact.
template <class S>
void unpack(const Instruction& in, std::byte* regs, uint32_t mask) {
    const uint32_t* a = row<uint32_t>(regs, in.a);
    const uint32_t kept = in.small & kRelu ? 0 : 0x8000;
    each(row<uint32_t>(regs, in.d), mask, [=](int i) {
        const auto half = [=](uint32_t x) {
            const uint32_t y = f32_to_f16(decode<S>(x));
            return (y & 0x8000) > kept ? 0 : y;
        };
        return half(a[i] >> stride<S>()) << 16 | half(a[i]);
    });
}

void unpack_scales(const Instruction& in, std::byte* regs, uint32_t mask) {
    const uint32_t* a = row<uint32_t>(regs, in.a);
    each(row<uint32_t>(regs, in.d), mask, [=](int i) {
        return (formats::bits_of(ue8m0_to_f32(a[i] >> 8)) & 0xffff0000) | formats::bits_of(ue8m0_to_f32(a[i])) >> 16;
    });
}

// cvt.pack: small holds the bits of one element; type: signed.
void pack_integers(const Instruction& in, std::byte* regs, uint32_t mask) {
    const int bits = static_cast<int>(in.small);
    const int32_t low = in.type ? -(1 << (bits - 1)) : 0, high = in.type ? (1 << (bits - 1)) - 1 : (1 << bits) - 1;
    const uint32_t *a = row<uint32_t>(regs, in.a), *b = row<uint32_t>(regs, in.b);
    const uint32_t* c = in.c == kNone ? nullptr : row<uint32_t>(regs, in.c);
    some(row<uint32_t>(regs, in.d), mask, [&](int i) {
        const auto element = [&](uint32_t x) {
            return static_cast<uint32_t>(std::clamp(static_cast<int32_t>(x), low, high)) & ((1u << bits) - 1);
        };
        return element(a[i]) << bits | element(b[i]) | (c ? c[i] << 2 * bits : 0);
    });
}

// Registers of 64 bits where the type has fewer: works on narrow copies. Instruction::type: which operands are like that, which
// have 64 bits by their type, and whether the result is extended by its sign; immediate: what to run.
enum : uint8_t { kWideD = 1, kWideA = 2, kWideB = 4, kLongD = 8, kLongA = 16, kExtendSign = 32 };

void wide(const Instruction& in, std::byte* regs, uint32_t mask) {
    constexpr uint32_t kBytes = sizeof(uint64_t) * kLanes;
    alignas(64) std::byte copies[3 * kBytes];
    const auto copy = [&](uint32_t slot, uint32_t from, bool is_wide, bool is_long) {
        for (int i = 0; i < kLanes; ++i) {
            if (is_long) {
                u64(copies, slot)[i] = u64(regs, from)[i];
            } else {
                u32(copies, slot)[i] = is_wide ? static_cast<uint32_t>(u64(regs, from)[i]) : u32(regs, from)[i];
            }
        }
    };
    Instruction inner = in;
    inner.d = 0;
    inner.a = kBytes;
    copy(inner.a, in.a, in.type & kWideA, in.type & kLongA);
    if (in.b != kNone) {
        inner.b = 2 * kBytes;
        copy(inner.b, in.b, in.type & kWideB, false);
    }
    reinterpret_cast<Alu>(static_cast<uintptr_t>(in.immediate))(inner, copies, mask);
    for (; mask; mask &= mask - 1) {
        const int i = std::countr_zero(mask);
        const uint32_t low = u32(copies, 0)[i];
        if (in.type & kLongD) {
            u64(regs, in.d)[i] = u64(copies, 0)[i];
        } else if (in.type & kWideD) {
            u64(regs, in.d)[i] = in.type & kExtendSign ? static_cast<uint64_t>(static_cast<int32_t>(low)) : low;
        } else {
            u32(regs, in.d)[i] = low;
        }
    }
}

// Decoding.

struct Decoder {
    const ptx::Statement& statement;
    Operands& operands;
    Instruction& out;

    [[noreturn]] void refuse() const { Form(statement, operands, out).unknown(); }
    void require(bool known) const {
        if (!known) refuse();
    }

    bool is_wide(const ptx::Operand& operand, int bits) const {
        return operand.kind == ptx::Operand::Kind::name && bits < 64 && operands.width(operand) == 64;
    }

    // A register of these bits and no more; those of 8 bits count as 16.
    void require_exact(const ptx::Operand& operand, int bits) const {
        require(operand.kind != ptx::Operand::Kind::name || operands.width(operand) == std::max(bits, 16));
    }

    // Fills in the operands: d of d_bits, then `sources` of a_bits each.
    void finish(Alu run, int d_bits, int a_bits, size_t sources, bool extend_sign = false) {
        require(statement.operands.size() == 1 + sources);
        const ptx::Operand& d = statement.operands[0];
        out.run = run;
        uint8_t type = 0;
        out.d = operands.destination(d, d_bits);
        require(out.d != kNone);
        if (is_wide(d, d_bits)) type |= kWideD;
        uint32_t* const slots[] = {&out.a, &out.b, &out.c};
        for (size_t i = 0; i < sources; ++i) {
            const ptx::Operand& source = statement.operands[1 + i];
            *slots[i] = operands.source(source, a_bits);
            if (is_wide(source, a_bits)) {
                require(i < 2);
                type |= i ? kWideB : kWideA;
            }
        }
        if (d_bits < 32 && d.kind == ptx::Operand::Kind::name && operands.width(d) == 16) out.small |= kNarrow;
        if (type) {
            if (d_bits == 64) type |= kLongD;
            if (a_bits == 64) type |= kLongA;
            if (extend_sign) type |= kExtendSign;
            out.type = type;
            out.immediate = reinterpret_cast<uintptr_t>(run);
            out.run = &wide;
        }
    }

    void decode_integers(size_t next) {  // cvt.pack.sat.to.s32{.b32}
        const std::vector<std::string>& m = statement.modifiers;
        require(m.size() >= next + 3 && m[next] == "sat" && m[next + 2] == "s32");
        static constexpr std::string_view kTypes[] = {"u2", "s2", "u4", "s4", "u8", "s8", "u16", "s16"};
        const size_t type =
            static_cast<size_t>(std::find(std::begin(kTypes), std::end(kTypes), m[next + 1]) - std::begin(kTypes));
        require(type < std::size(kTypes));
        const bool whole = type >= 6;
        require(whole ? m.size() == next + 3 : m.size() == next + 4 && m[next + 3] == "b32");
        finish(&pack_integers, 32, 32, whole ? 2 : 3);
        require(out.run == &pack_integers);
        out.small = 2u << type / 2;
        out.type = type & 1;
    }

    void decode_scalar(Kind d, Kind a, std::string_view round, uint32_t flags) {
        const bool to_float = is_float(d), from_float = is_float(a), integral = round.size() == 3 && round != "rna";
        const bool bf16 = d == Kind::bf16 || a == Kind::bf16, f32 = d == Kind::f32 || a == Kind::f32;
        const bool relu = flags & (kRelu | kFinite), rounded = !round.empty();
        require(round != "rna");
        if (!(to_float && from_float)) {
            require(rounded == (to_float || from_float) && integral == from_float);
            require(!bf16 || (bits_of(d) > 8 && bits_of(a) > 8));
        } else if (d == a) {
            require(!rounded || integral);
        } else {
            require(!integral);
            // ptxas takes a rounding for some conversions that need none.
            require(bf16 && d != Kind::bf16             ? true
                    : d == Kind::bf16 && a == Kind::f16 ? true
                                                        : rounded == (bits_of(d) < bits_of(a)));
        }
        if (bf16 && !(f32 && to_float && from_float)) require(operands.target() >= 90);
        if (flags & kFtz) require(f32 && !relu && (!(a == Kind::bf16) || operands.target() >= 90));
        if (flags & kSat) {
            require(!bf16 && !relu);
            if (!to_float && !from_float) {
                // Illegal where every value fits.
                const int from = bits_of(a) - is_signed(a), to = bits_of(d) - is_signed(d);
                require(to < from || (is_signed(a) && !is_signed(d)));
            }
        }
        if (relu) require(a == Kind::f32 && bits_of(d) == 16 && to_float && (round == "rn" || round == "rz"));

        const bool plain = !(flags & kSat) && !relu && (!rounded || round == "rn");
        Alu run = nullptr;
        if (!to_float && !from_float) {
            const bool saturate = flags & kSat;
            run = for_integer(d, [&](auto x) {
                return for_integer(a, [&](auto y) -> Alu {
                    using D = decltype(x);
                    using S = decltype(y);
                    return saturate ? &integer_to_integer<D, S, true> : &integer_to_integer<D, S, false>;
                });
            });
        } else if (!to_float) {
            run = for_integer(d, [](auto x) -> Alu { return &float_to_integer<decltype(x)>; });
        } else if (!from_float) {
            if (plain && bits_of(d) >= 32) {
                run = for_integer(a, [&](auto y) -> Alu {
                    using S = decltype(y);
                    return d == Kind::f32 ? &integer_to_float_nearest<F32, S> : &integer_to_float_nearest<F64, S>;
                });
            } else {
                run = for_float(d, [](auto x) -> Alu { return &integer_to_float<decltype(x)>; });
            }
        } else {
            if (plain) run = nearest(d, a, flags & kFtz);
            if (!run) {
                run = for_float(d, [&](auto x) {
                    return for_float(a, [&](auto y) -> Alu { return &float_to_float<decltype(x), decltype(y)>; });
                });
            }
        }
        out.small = flags | static_cast<uint32_t>(a) << kSourceShift | (integral ? kToInteger : 0u);
        finish(run, bits_of(d), bits_of(a), 1, is_signed(d));
        if (d == Kind::bf16) require_exact(statement.operands[0], 16);
        if (a == Kind::bf16) require_exact(statement.operands[1], 16);
    }

    // One operand or two make a pair, or a pair becomes another.
    void decode_pair(std::string_view d, std::string_view a, std::string_view round, uint32_t flags) {
        const bool narrow_round = round == "rn" || round == "rz", finite = flags & kFinite, relu = flags & kRelu;
        require(!(flags & (kFtz | kSat)));
        out.small = flags;
        require(statement.operands.size() >= 2);
        if (d == "tf32") {
            require(a == "f32" && (narrow_round || (round == "rna" && !relu)));
            require(operands.target() >= (round == "rna" ? 80 : finite ? 100 : 90));
            return finish(&to_tf32, 32, 32, 1);
        }
        if (a == "f32" && (d == "f16x2" || d == "bf16x2")) {
            require(narrow_round);
            const bool plain = round == "rn" && !finite && !relu;
            return finish(d == "f16x2" ? plain ? &pack_nearest<F16> : &pack<F16>
                          : plain      ? &pack_nearest<BF16>
                                       : &pack<BF16>,
                          32, 32, 2);
        }
        struct Narrow {
            std::string_view name;
            int target, bits;  // of a register
            Alu pack, repack, unpack;
        };
        static constexpr Narrow kNarrowTypes[] = {
            {"e4m3x2", 89, 16, &pack<E4M3>, &repack<E4M3, F16>, &unpack<E4M3>},
            {"e5m2x2", 89, 16, &pack<E5M2>, &repack<E5M2, F16>, &unpack<E5M2>},
            {"e2m3x2", 100, 16, &pack<E2M3>, nullptr, &unpack<E2M3>},
            {"e3m2x2", 100, 16, &pack<E3M2>, nullptr, &unpack<E3M2>},
            {"e2m1x2", 100, 8, &pack<E2M1>, &repack<E2M1, F16>, &unpack<E2M1>},
            {"ue8m0x2", 100, 16, &pack<UE8M0>, &repack<UE8M0, BF16>, &unpack_scales},
        };
        for (const Narrow& type : kNarrowTypes) {
            const bool scale = type.name == "ue8m0x2";
            if (type.name != d && type.name != a) continue;
            require(operands.target() >= type.target);
            if (type.name == a) {
                require(d == (scale ? "bf16x2" : "f16x2") && round == "rn" && !finite && !(scale && relu));
                require_exact(statement.operands[1], type.bits);
                return finish(type.unpack, 32, type.bits, 1);
            }
            require(scale ? (round == "rz" || round == "rp") && !relu : round == "rn" && finite);
            require_exact(statement.operands[0], type.bits);
            if (a == "f32") return finish(type.pack, type.bits, 32, 2);
            require(a == (scale ? "bf16x2" : "f16x2") && type.repack);
            require_exact(statement.operands[1], 32);
            return finish(type.repack, type.bits, 32, 1);
        }
        refuse();
    }

    void decode() {
        const std::vector<std::string>& m = statement.modifiers;
        require(m.size() >= 2);
        if (m[0] == "pack") return decode_integers(1);
        size_t next = 0;
        struct Rounding {
            std::string_view name;
            Round round;
        };
        static constexpr Rounding kRoundings[] = {
            {"rn", Round::nearest},  {"rz", Round::zero},  {"rm", Round::down},  {"rp", Round::up},  {"rna", Round::away},
            {"rni", Round::nearest}, {"rzi", Round::zero}, {"rmi", Round::down}, {"rpi", Round::up},
        };
        std::string_view round;
        uint32_t mode = 0;
        for (const Rounding& r : kRoundings) {
            if (m[0] != r.name) continue;
            round = r.name;
            mode = static_cast<uint32_t>(r.round);
            next = 1;
        }
        static constexpr std::pair<std::string_view, uint32_t> kFlags[] = {
            {"ftz", kFtz}, {"sat", kSat}, {"relu", kRelu}, {"satfinite", kFinite}};
        for (; next + 2 < m.size(); ++next) {
            bool known = false;
            for (const auto& [name, flag] : kFlags) {
                if (m[next] != name || mode & flag) continue;
                mode |= flag;
                known = true;
            }
            require(known);
        }
        require(next + 2 == m.size());
        const auto kind = [](std::string_view name) {
            return static_cast<int>(std::find(kNames, kNames + kKinds, name) - kNames);
        };
        const int d = kind(m[next]), a = kind(m[next + 1]);
        if (d < kKinds && a < kKinds) {
            decode_scalar(static_cast<Kind>(d), static_cast<Kind>(a), round, mode);
        } else {
            decode_pair(m[next], m[next + 1], round, mode);
        }
    }
};

}  // namespace

bool decode_convert(const ptx::Statement& statement, Operands& operands, Instruction& out) {
    if (statement.opcode != "cvt") return false;
    Decoder{statement, operands, out}.decode();
    return true;
}

}  // namespace vgpu

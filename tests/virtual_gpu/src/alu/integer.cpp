// Integer arithmetic.
#include <algorithm>
#include <bit>
#include <limits>
#include <unordered_map>

#include "alu/families.h"
#include "alu/form.h"
#include "alu/lanes.h"

namespace vgpu {
namespace {

using namespace lanes;

__extension__ using Int128 = __int128;
__extension__ using Unsigned128 = unsigned __int128;

// Wide enough for the arithmetic of T, which wraps: unsigned, signed values extended.
template <class T>
using Wrap = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
template <class T>
inline constexpr int kWidth = 8 * sizeof(T);

template <class T>
using Product = std::conditional_t<sizeof(T) == 8, std::conditional_t<std::is_signed_v<T>, Int128, Unsigned128>,
                                   std::conditional_t<sizeof(T) == 4, std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>,
                                                      std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>>>;

template <class T>
inline T wrap_mul(T a, T b) {
    return static_cast<T>(Wrap<T>(a) * Wrap<T>(b));
}
template <class T>
inline T wrap_add(T a, T b) {
    return static_cast<T>(Wrap<T>(a) + Wrap<T>(b));
}
template <class T>
inline T wrap_sub(T a, T b) {
    return static_cast<T>(Wrap<T>(a) - Wrap<T>(b));
}
template <class T>
inline Product<T> product(T a, T b) {
    return static_cast<Product<T>>(a) * static_cast<Product<T>>(b);
}
template <class T>
inline T high(T a, T b) {
    return static_cast<T>(product(a, b) >> kWidth<T>);
}
inline int32_t saturate(int64_t x) {
    return static_cast<int32_t>(std::clamp<int64_t>(x, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max()));
}

constexpr auto kAdd = []<class T>(T a, T b) { return wrap_add(a, b); };
constexpr auto kSub = []<class T>(T a, T b) { return wrap_sub(a, b); };
constexpr auto kAddSat = [](int32_t a, int32_t b) { return saturate(int64_t{a} + b); };
constexpr auto kSubSat = [](int32_t a, int32_t b) { return saturate(int64_t{a} - b); };
constexpr auto kMulLow = []<class T>(T a, T b) { return wrap_mul(a, b); };
constexpr auto kMulHigh = []<class T>(T a, T b) { return high(a, b); };
constexpr auto kMulWide = []<class T>(T a, T b) { return product(a, b); };
constexpr auto kMadLow = []<class T>(T a, T b, T c) { return wrap_add(wrap_mul(a, b), c); };
constexpr auto kMadHigh = []<class T>(T a, T b, T c) { return wrap_add(high(a, b), c); };
constexpr auto kMadWide = []<class T>(T a, T b, Product<T> c) { return wrap_add(product(a, b), c); };
constexpr auto kMadHighSat = [](int32_t a, int32_t b, int32_t c) { return saturate(int64_t{high(a, b)} + c); };
constexpr auto kMin = []<class T>(T a, T b) { return a < b ? a : b; };
constexpr auto kMax = []<class T>(T a, T b) { return a > b ? a : b; };
constexpr auto kMinRelu = []<class T>(T a, T b) { return std::max<T>(a < b ? a : b, 0); };
constexpr auto kMaxRelu = []<class T>(T a, T b) { return std::max<T>(a > b ? a : b, 0); };
constexpr auto kSad = []<class T>(T a, T b, T c) { return wrap_add(c, a < b ? wrap_sub(b, a) : wrap_sub(a, b)); };
constexpr auto kNeg = []<class T>(T a) { return wrap_sub(T{0}, a); };
constexpr auto kAbs = []<class T>(T a) { return a < 0 ? wrap_sub(T{0}, a) : a; };

// The result of a division by zero is unspecified: all ones here. Up to 32 bits the quotient of two doubles, rounded toward
// zero, is exact, and it can be computed for many lanes at once.
template <class T>
inline T quotient(T a, T b) {
    if constexpr (sizeof(T) == 8) {
        if (b == 0) return static_cast<T>(-1);
        if constexpr (std::is_signed_v<T>)
            if (b == -1) return wrap_sub(T{0}, a);  // the one that overflows among them
        return a / b;
    } else {
        const double divisor = b == 0 ? 1.0 : static_cast<double>(b);
        const int64_t q = static_cast<int64_t>(static_cast<double>(a) / divisor);
        return b == 0 ? static_cast<T>(-1) : static_cast<T>(q);
    }
}
constexpr auto kDiv = []<class T>(T a, T b) { return quotient(a, b); };
constexpr auto kRem = []<class T>(T a, T b) { return b == 0 ? static_cast<T>(-1) : wrap_sub(a, wrap_mul(quotient(a, b), b)); };

// Two halves of 32 bits at once.
template <auto f, class T>
constexpr auto kHalves = [](uint32_t a, uint32_t b) {
    const T low = f(static_cast<T>(a), static_cast<T>(b)), high = f(static_cast<T>(a >> 16), static_cast<T>(b >> 16));
    return static_cast<uint32_t>(static_cast<uint16_t>(low)) | static_cast<uint32_t>(static_cast<uint16_t>(high)) << 16;
};

// Products of 24-bit numbers: 48 bits.
template <class T>
inline int64_t product24(T a, T b) {
    if constexpr (std::is_signed_v<T>)
        return int64_t{static_cast<int32_t>(static_cast<uint32_t>(a) << 8) >> 8} *
               (static_cast<int32_t>(static_cast<uint32_t>(b) << 8) >> 8);
    else
        return static_cast<int64_t>(uint64_t{a & 0xffffff} * uint64_t{b & 0xffffff});
}
constexpr auto kMul24Low = []<class T>(T a, T b) { return static_cast<T>(product24(a, b)); };
constexpr auto kMul24High = []<class T>(T a, T b) { return static_cast<T>(product24(a, b) >> 16); };
constexpr auto kMad24Low = []<class T>(T a, T b, T c) { return wrap_add(static_cast<T>(product24(a, b)), c); };
constexpr auto kMad24High = []<class T>(T a, T b, T c) { return wrap_add(static_cast<T>(product24(a, b) >> 16), c); };
constexpr auto kMad24HighSat = [](int32_t a, int32_t b, int32_t c) {
    return saturate(int64_t{static_cast<int32_t>(product24(a, b) >> 16)} + c);
};

constexpr auto kPopc = []<class T>(T a) { return static_cast<uint32_t>(std::popcount(a)); };
constexpr auto kClz = []<class T>(T a) { return static_cast<uint32_t>(std::countl_zero(a)); };
constexpr auto kBrev = []<class T>(T a) {
    constexpr T k1 = static_cast<T>(0x5555555555555555), k2 = static_cast<T>(0x3333333333333333);
    constexpr T k4 = static_cast<T>(0x0f0f0f0f0f0f0f0f);
    a = (a >> 1 & k1) | (a & k1) << 1;
    a = (a >> 2 & k2) | (a & k2) << 2;
    a = (a >> 4 & k4) | (a & k4) << 4;
    if constexpr (sizeof(T) == 8)
        return __builtin_bswap64(a);
    else
        return __builtin_bswap32(a);
};
template <bool shift_amount>
constexpr auto kBfind = []<class T>(T a) {
    const auto x = static_cast<std::make_unsigned_t<T>>(a < 0 ? ~a : a);
    const int zeros = std::countl_zero(x);
    return x == 0 ? ~uint32_t{0} : static_cast<uint32_t>(shift_amount ? zeros : kWidth<T> - 1 - zeros);
};
constexpr auto kBfe = []<class T>(T a, uint32_t position, uint32_t length) {
    constexpr uint32_t kTop = kWidth<T> - 1;
    const uint32_t pos = position & 0xff, len = length & 0xff;
    const uint32_t unused = len > kTop ? 0 : kTop + 1 - len;  // bits above the field
    if constexpr (std::is_signed_v<T>) {
        const T field = a >> std::min(pos, kTop);
        const T extended = static_cast<T>(Wrap<T>(field) << (unused & kTop)) >> (unused & kTop);
        return len == 0 ? T{0} : extended;
    } else {
        const T field = pos > kTop ? 0 : a >> (pos & kTop);
        return len == 0 ? T{0} : field & (~T{0} >> (unused & kTop));
    }
};
template <class T>
void bfi(const Instruction& in, std::byte* regs, uint32_t mask) {
    const T *a = row<T>(regs, in.a), *b = row<T>(regs, in.b);
    const uint32_t *position = u32(regs, in.c), *length = u32(regs, in.small);
    write(row<T>(regs, in.d), mask, [&](int i) {
        constexpr uint32_t kTop = kWidth<T> - 1;
        const uint32_t pos = position[i] & 0xff, len = length[i] & 0xff;
        const T field = len > kTop ? ~T{0} : (T{1} << (len & kTop)) - 1;
        const T where = pos > kTop ? 0 : field << (pos & kTop);
        return (b[i] & ~where) | (a[i] << (pos & kTop) & where);
    });
}
constexpr auto kFns = [](uint32_t bits, uint32_t base, int32_t offset) {
    if (base > 31) return ~uint32_t{0};
    if (offset == 0) return bits >> base & 1 ? base : ~uint32_t{0};
    const int step = offset > 0 ? 1 : -1;
    uint32_t count = (offset > 0 ? static_cast<uint32_t>(offset) : 0u - static_cast<uint32_t>(offset)) - 1;
    for (int at = static_cast<int>(base); at >= 0 && at < 32; at += step)
        if (bits >> at & 1 && count-- == 0) return static_cast<uint32_t>(at);
    return ~uint32_t{0};
};
template <bool clamp>
constexpr auto kBmsk = [](uint32_t a, uint32_t b) {
    const uint32_t position = a & 31, width = b & 31;
    const bool none = clamp && a >= 32;
    const bool to_top = position + width >= 32 || (clamp && b >= 32);
    const uint32_t below = none ? 0 : ~uint32_t{0} << position;
    const uint32_t above = to_top || none ? 0 : width == 0 ? ~uint32_t{0} : ~uint32_t{0} << ((position + width) & 31);
    return below & ~above;
};
template <bool clamp, bool sign>
constexpr auto kSzext = [](uint32_t a, uint32_t b) {
    const uint32_t n = b & 31;
    const uint32_t high = clamp && b >= 32 ? 0 : ~uint32_t{0} << n;
    const bool fill = sign && n != 0 && high != 0 && (a >> ((n - 1) & 31) & 1);
    return (a & ~high) | (fill ? high : 0);
};

template <class A, class B, int count, int b_from>
inline uint32_t dot(uint32_t a, uint32_t b, uint32_t c) {
    constexpr int kABits = 8 * sizeof(A);
    for (int k = 0; k < count; ++k)
        c += static_cast<uint32_t>(int32_t{static_cast<A>(a >> (kABits * k))} * static_cast<B>(b >> (8 * (b_from + k))));
    return c;
}
template <class A, class B, int count, int b_from>
constexpr auto kDot = [](uint32_t a, uint32_t b, uint32_t c) { return dot<A, B, count, b_from>(a, b, c); };

// With the carry flag, a predicate of its own (in.d2).
constexpr uint32_t kCarryIn = 1, kCarryOut = 2;
enum class Carry { add, sub, mad_low, mad_high };
template <class T, Carry operation>
void with_carry(const Instruction& in, std::byte* regs, uint32_t mask) {
    using U = std::make_unsigned_t<T>;
    using Double = Product<U>;
    uint32_t& flags = predicate(regs, in.d2);
    U* d = row<U>(regs, in.d);
    const U *a = row<U>(regs, in.a), *b = row<U>(regs, in.b), *c = in.c == kNone ? a : row<U>(regs, in.c);
    uint32_t result = flags;
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const int i = std::countr_zero(rest);
        const U carry = in.small & kCarryIn ? flags >> i & 1 : 0;
        Double x;
        if constexpr (operation == Carry::add)
            x = Double{a[i]} + b[i] + carry;
        else if constexpr (operation == Carry::sub)
            x = Double{a[i]} - b[i] - carry;
        else if constexpr (operation == Carry::mad_low)
            x = Double{wrap_mul(a[i], b[i])} + c[i] + carry;
        else
            x = Double{static_cast<U>(high(static_cast<T>(a[i]), static_cast<T>(b[i])))} + c[i] + carry;
        d[i] = static_cast<U>(x);
        const uint32_t bit = uint32_t{1} << i;
        result = (x >> kWidth<U>)&1 ? result | bit : result & ~bit;
    }
    if (in.small & kCarryOut) flags = result;
}

// An Alu for a type, from a template over it.
#define VGPU_BY_TYPE(name, expression) \
    template <auto f>                  \
    Alu name(Form& form, Type type) {  \
        switch (type) {                \
            case Type::u16: {          \
                using T = uint16_t;    \
                return expression;     \
            }                          \
            case Type::s16: {          \
                using T = int16_t;     \
                return expression;     \
            }                          \
            case Type::u32: {          \
                using T = uint32_t;    \
                return expression;     \
            }                          \
            case Type::s32: {          \
                using T = int32_t;     \
                return expression;     \
            }                          \
            case Type::u64: {          \
                using T = uint64_t;    \
                return expression;     \
            }                          \
            case Type::s64: {          \
                using T = int64_t;     \
                return expression;     \
            }                          \
            default:                   \
                form.unknown();        \
        }                              \
    }
VGPU_BY_TYPE(binary_by_type, (binary<f, T>))
VGPU_BY_TYPE(ternary_by_type, (ternary<f, T>))
#undef VGPU_BY_TYPE

template <auto f>
Alu signed_by_type(Form& form, Type type) {
    switch (type) {
        case Type::s16:
            return unary<f, int16_t>;
        case Type::s32:
            return unary<f, int32_t>;
        case Type::s64:
            return unary<f, int64_t>;
        default:
            form.unknown();
    }
}

// Where the sign makes no difference.
Type without_sign(Type t) { return t == Type::s16 ? Type::u16 : t == Type::s32 ? Type::u32 : t == Type::s64 ? Type::u64 : t; }
bool is_32_or_64(Type t) { return t == Type::u32 || t == Type::s32 || t == Type::u64 || t == Type::s64; }

void carry(Form& form, Type type, Carry operation, uint32_t how) {
    form.require(is_32_or_64(type));
    Instruction& out = form.out;
    const bool mad = operation == Carry::mad_low || operation == Carry::mad_high;
    form.finish(mad ? 4 : 3);
    form.fill(type, type, type, mad ? type : Type::none);
    ptx::Operand flag;
    flag.kind = ptx::Operand::Kind::name;
    flag.name = "%carry";
    out.d2 = form.operands.destination(flag, 1);
    out.small = how;
    const bool wide = bits_of(type) == 64;
    switch (operation) {
        case Carry::add:
            out.run = wide ? with_carry<uint64_t, Carry::add> : with_carry<uint32_t, Carry::add>;
            break;
        case Carry::sub:
            out.run = wide ? with_carry<uint64_t, Carry::sub> : with_carry<uint32_t, Carry::sub>;
            break;
        case Carry::mad_low:
            out.run = wide ? with_carry<uint64_t, Carry::mad_low> : with_carry<uint32_t, Carry::mad_low>;
            break;
        case Carry::mad_high:
            out.run = type == Type::u64   ? with_carry<uint64_t, Carry::mad_high>
                      : type == Type::s64 ? with_carry<int64_t, Carry::mad_high>
                      : type == Type::u32 ? with_carry<uint32_t, Carry::mad_high>
                                          : with_carry<int32_t, Carry::mad_high>;
            break;
    }
}

void add(Form& form, Type type) {
    if (form.take("cc")) return carry(form, type, Carry::add, kCarryOut);
    const bool saturated = form.take("sat");
    form.require(!saturated || type == Type::s32);
    form.finish(3);
    form.fill(type, type, type);
    form.out.run = saturated                                    ? binary<kAddSat, int32_t>
                   : bits_of(type) == 32 && type >= Type::u16x2 ? binary<kHalves<kAdd, uint16_t>, uint32_t>
                                                                : binary_by_type<kAdd>(form, without_sign(type));
}

void sub(Form& form, Type type) {
    if (form.take("cc")) return carry(form, type, Carry::sub, kCarryOut);
    const bool saturated = form.take("sat");
    form.require(!saturated || type == Type::s32);
    form.finish(3);
    form.fill(type, type, type);
    form.out.run = saturated ? binary<kSubSat, int32_t> : binary_by_type<kSub>(form, without_sign(type));
}

void addc(Form& form, Type type) { carry(form, type, Carry::add, form.take("cc") ? kCarryIn | kCarryOut : kCarryIn); }
void subc(Form& form, Type type) { carry(form, type, Carry::sub, form.take("cc") ? kCarryIn | kCarryOut : kCarryIn); }

void madc(Form& form, Type type) {
    const int mode = form.take_one({"lo", "hi"});
    form.require(mode >= 0);
    carry(form, type, mode ? Carry::mad_high : Carry::mad_low, form.take("cc") ? kCarryIn | kCarryOut : kCarryIn);
}

Type doubled(Form& form, Type type) {
    switch (type) {
        case Type::u16:
            return Type::u32;
        case Type::s16:
            return Type::s32;
        case Type::u32:
            return Type::u64;
        case Type::s32:
            return Type::s64;
        default:
            form.unknown();
    }
}

void mul(Form& form, Type type) {
    const int mode = form.take_one({"lo", "hi", "wide"});
    form.require(mode >= 0);
    form.finish(3);
    form.fill(mode == 2 ? doubled(form, type) : type, type, type);
    if (mode == 0) {
        form.out.run = binary_by_type<kMulLow>(form, without_sign(type));
    } else if (mode == 1) {
        form.out.run = binary_by_type<kMulHigh>(form, type);
    } else {
        form.out.run = type == Type::u16   ? map2<kMulWide, uint32_t, uint16_t, uint16_t>
                       : type == Type::s16 ? map2<kMulWide, int32_t, int16_t, int16_t>
                       : type == Type::u32 ? map2<kMulWide, uint64_t, uint32_t, uint32_t>
                                           : map2<kMulWide, int64_t, int32_t, int32_t>;
    }
}

void mad(Form& form, Type type) {
    const int mode = form.take_one({"lo", "hi", "wide"});
    form.require(mode >= 0);
    if (form.take("cc")) {
        form.require(mode != 2);
        return carry(form, type, mode ? Carry::mad_high : Carry::mad_low, kCarryOut);
    }
    const bool saturated = form.take("sat");
    form.require(!saturated || (type == Type::s32 && mode == 1));
    form.finish(4);
    const Type result = mode == 2 ? doubled(form, type) : type;
    form.fill(result, type, type, result);
    if (mode == 0) {
        form.out.run = ternary_by_type<kMadLow>(form, without_sign(type));
    } else if (mode == 1) {
        form.out.run = saturated ? ternary<kMadHighSat, int32_t> : ternary_by_type<kMadHigh>(form, type);
    } else {
        form.out.run = type == Type::u16   ? map3<kMadWide, uint32_t, uint16_t, uint16_t, uint32_t>
                       : type == Type::s16 ? map3<kMadWide, int32_t, int16_t, int16_t, int32_t>
                       : type == Type::u32 ? map3<kMadWide, uint64_t, uint32_t, uint32_t, uint64_t>
                                           : map3<kMadWide, int64_t, int32_t, int32_t, int64_t>;
    }
}

void mul24(Form& form, Type type) {
    const int mode = form.take_one({"lo", "hi"});
    form.require(mode >= 0 && (type == Type::u32 || type == Type::s32));
    form.finish(3);
    form.fill(type, type, type);
    const bool sign = type == Type::s32;
    form.out.run = mode == 0 ? sign ? binary<kMul24Low, int32_t> : binary<kMul24Low, uint32_t>
                   : sign    ? binary<kMul24High, int32_t>
                             : binary<kMul24High, uint32_t>;
}

void mad24(Form& form, Type type) {
    const int mode = form.take_one({"lo", "hi"});
    const bool saturated = form.take("sat"), sign = type == Type::s32;
    form.require(mode >= 0 && (type == Type::u32 || sign) && (!saturated || (sign && mode == 1)));
    form.finish(4);
    form.fill(type, type, type, type);
    form.out.run = saturated   ? ternary<kMad24HighSat, int32_t>
                   : mode == 0 ? sign ? ternary<kMad24Low, int32_t> : ternary<kMad24Low, uint32_t>
                   : sign      ? ternary<kMad24High, int32_t>
                               : ternary<kMad24High, uint32_t>;
}

void sad(Form& form, Type type) {
    form.finish(4);
    form.fill(type, type, type, type);
    form.out.run = ternary_by_type<kSad>(form, type);
}
void div(Form& form, Type type) {
    form.finish(3);
    form.fill(type, type, type);
    form.out.run = binary_by_type<kDiv>(form, type);
}
void rem(Form& form, Type type) {
    form.finish(3);
    form.fill(type, type, type);
    form.out.run = binary_by_type<kRem>(form, type);
}
void neg(Form& form, Type type) {
    form.finish(2);
    form.fill(type, type);
    form.out.run = signed_by_type<kNeg>(form, type);
}
void abs(Form& form, Type type) {
    form.finish(2);
    form.fill(type, type);
    form.out.run = signed_by_type<kAbs>(form, type);
}

template <auto plain, auto relu>
void minmax(Form& form, Type type) {
    const bool clamped = form.take("relu");
    form.require(!clamped || type == Type::s32 || type == Type::s16x2);
    form.finish(3);
    form.fill(type, type, type);
    if (type == Type::u16x2)
        form.out.run = binary<kHalves<plain, uint16_t>, uint32_t>;
    else if (type == Type::s16x2)
        form.out.run = clamped ? binary<kHalves<relu, int16_t>, uint32_t> : binary<kHalves<plain, int16_t>, uint32_t>;
    else
        form.out.run = clamped ? binary<relu, int32_t> : binary_by_type<plain>(form, type);
}

void popc(Form& form, Type type) {
    form.require(type == Type::b32 || type == Type::b64);
    form.finish(2);
    form.fill(Type::u32, type);
    form.out.run = type == Type::b32 ? map1<kPopc, uint32_t, uint32_t> : map1<kPopc, uint32_t, uint64_t>;
}
void clz(Form& form, Type type) {
    form.require(type == Type::b32 || type == Type::b64);
    form.finish(2);
    form.fill(Type::u32, type);
    form.out.run = type == Type::b32 ? map1<kClz, uint32_t, uint32_t> : map1<kClz, uint32_t, uint64_t>;
}
void brev(Form& form, Type type) {
    form.require(type == Type::b32 || type == Type::b64);
    form.finish(2);
    form.fill(type, type);
    form.out.run = type == Type::b32 ? unary<kBrev, uint32_t> : unary<kBrev, uint64_t>;
}

template <bool shift_amount>
Alu bfind_for(Type type) {
    return type == Type::u32   ? map1<kBfind<shift_amount>, uint32_t, uint32_t>
           : type == Type::s32 ? map1<kBfind<shift_amount>, uint32_t, int32_t>
           : type == Type::u64 ? map1<kBfind<shift_amount>, uint32_t, uint64_t>
                               : map1<kBfind<shift_amount>, uint32_t, int64_t>;
}
void bfind(Form& form, Type type) {
    const bool shift_amount = form.take("shiftamt");
    form.require(is_32_or_64(type));
    form.finish(2);
    form.fill(Type::u32, type);
    form.out.run = shift_amount ? bfind_for<true>(type) : bfind_for<false>(type);
}
void bfe(Form& form, Type type) {
    form.require(is_32_or_64(type));
    form.finish(4);
    form.fill(type, type, Type::u32, Type::u32);
    form.out.run = type == Type::u32   ? map3<kBfe, uint32_t, uint32_t, uint32_t, uint32_t>
                   : type == Type::s32 ? map3<kBfe, int32_t, int32_t, uint32_t, uint32_t>
                   : type == Type::u64 ? map3<kBfe, uint64_t, uint64_t, uint32_t, uint32_t>
                                       : map3<kBfe, int64_t, int64_t, uint32_t, uint32_t>;
}
void bfi(Form& form, Type type) {
    form.require(type == Type::b32 || type == Type::b64);
    form.finish(5);
    form.fill(type, type, type, Type::u32);
    form.out.small = form.source(4, Type::u32);
    form.out.run = type == Type::b32 ? bfi<uint32_t> : bfi<uint64_t>;
}
void fns(Form& form, Type type) {
    form.require(type == Type::b32);
    form.finish(4);
    form.fill(Type::b32, Type::b32, Type::b32, Type::s32);
    form.out.run = map3<kFns, uint32_t, uint32_t, uint32_t, int32_t>;
}
void bmsk(Form& form, Type type) {
    const int mode = form.take_one({"clamp", "wrap"});
    form.require(mode >= 0 && type == Type::b32);
    form.finish(3);
    form.fill(type, type, type);
    form.out.run = mode == 0 ? binary<kBmsk<true>, uint32_t> : binary<kBmsk<false>, uint32_t>;
}
void szext(Form& form, Type type) {
    const int mode = form.take_one({"clamp", "wrap"});
    const bool sign = type == Type::s32;
    form.require(mode >= 0 && (sign || type == Type::u32));
    form.finish(3);
    form.fill(type, type, Type::u32);
    form.out.run = mode == 0 ? sign ? binary<kSzext<true, true>, uint32_t> : binary<kSzext<true, false>, uint32_t>
                   : sign    ? binary<kSzext<false, true>, uint32_t>
                             : binary<kSzext<false, false>, uint32_t>;
}

template <class A, class SignedA, int count, int b_from>
Alu dot_for(bool a_sign, bool b_sign) {
    return a_sign   ? b_sign ? ternary<kDot<SignedA, int8_t, count, b_from>, uint32_t>
                             : ternary<kDot<SignedA, uint8_t, count, b_from>, uint32_t>
           : b_sign ? ternary<kDot<A, int8_t, count, b_from>, uint32_t>
                    : ternary<kDot<A, uint8_t, count, b_from>, uint32_t>;
}
void dot_product(Form& form, Type b, bool four) {
    const Type a = form.take_type();
    const int part = four ? -1 : form.take_one({"lo", "hi"});
    form.require((a == Type::u32 || a == Type::s32) && (b == Type::u32 || b == Type::s32) && (four || part >= 0));
    form.finish(4);
    form.fill(b, a, b, b);
    const bool a_sign = a == Type::s32, b_sign = b == Type::s32;
    form.out.run = four        ? dot_for<uint8_t, int8_t, 4, 0>(a_sign, b_sign)
                   : part == 0 ? dot_for<uint16_t, int16_t, 2, 0>(a_sign, b_sign)
                               : dot_for<uint16_t, int16_t, 2, 2>(a_sign, b_sign);
}
void dp4a(Form& form, Type type) { dot_product(form, type, true); }
void dp2a(Form& form, Type type) { dot_product(form, type, false); }

}  // namespace

bool decode_integer(const ptx::Statement& statement, Operands& operands, Instruction& out) {
    static const std::unordered_map<std::string_view, void (*)(Form&, Type)> known = {
        {"add", add},
        {"sub", sub},
        {"addc", addc},
        {"subc", subc},
        {"mul", mul},
        {"mad", mad},
        {"madc", madc},
        {"mul24", mul24},
        {"mad24", mad24},
        {"sad", sad},
        {"div", div},
        {"rem", rem},
        {"neg", neg},
        {"abs", abs},
        {"popc", popc},
        {"clz", clz},
        {"brev", brev},
        {"bfind", bfind},
        {"bfe", bfe},
        {"bfi", bfi},
        {"fns", fns},
        {"bmsk", bmsk},
        {"szext", szext},
        {"dp4a", dp4a},
        {"dp2a", dp2a},
        {"min", minmax<kMin, kMinRelu>},
        {"max", minmax<kMax, kMaxRelu>},
    };
    const auto found = known.find(statement.opcode);
    if (found == known.end()) return false;
    Form form(statement, operands, out);
    if (is_float(form.last_type())) return false;
    const Type type = form.take_type();
    form.require(type != Type::none);
    found->second(form, type);
    return true;
}

}  // namespace vgpu

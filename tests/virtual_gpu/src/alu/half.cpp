// Floating point of 16 bits, alone and in pairs: f16, f16x2, bf16, bf16x2. Results are rounded once: they are computed exactly,
// or to odd in a wider format, or in one so wide that a second rounding changes nothing.
#include <cmath>
#include <unordered_map>

#include "alu/families.h"
#include "alu/form.h"
#include "alu/lanes.h"
#include "alu/real.h"

namespace vgpu {
namespace {

using namespace lanes;

// Half: sums and products of two f16 are exact as floats, or a sum's second rounding is harmless (24 >= 2 * 11 + 2).
// Brain: products need double, where floats are subnormal.
template <class H>
struct Format;

template <>
struct Format<Half> {
    // With a NaN's sign, which .xorsign asks for.
    static float read(uint32_t bits) {
        return formats::as_float(formats::bits_of(formats::f16_to_f32(bits)) | (bits & 0x8000) << 16);
    }
    static uint32_t round(float x) { return formats::f32_to_f16(x); }
    // Subnormal as f16.
    static float flush(float x) {
        const uint32_t b = formats::bits_of(x);
        return formats::as_float((b & 0x7fffffff) < 0x38800000 ? b & 0x80000000 : b);
    }
    static float mul(float a, float b) { return a * b; }
    static float fma(float a, float b, float c) { return real::add_to_odd(a * b, c); }
};

template <>
struct Format<Brain> {
    static float read(uint32_t bits) { return formats::bf16_to_f32(bits); }
    static uint32_t round(float x) { return formats::f32_to_bf16(x); }
    static float flush(float x) { return formats::flush(x); }
    static float mul(float a, float b) { return real::narrow_to_odd(double{a} * double{b}); }
    static float fma(float a, float b, float c) {
        return real::narrow_to_odd(real::add_to_odd(double{a} * double{b}, double{c}));
    }
};

struct Add {
    template <class H>
    static float of(float a, float b) {
        return a + b;
    }
};
struct Sub {
    template <class H>
    static float of(float a, float b) {
        return a - b;
    }
};
struct Mul {
    template <class H>
    static float of(float a, float b) {
        return Format<H>::mul(a, b);
    }
};
struct Fma {
    template <class H>
    static float of(float a, float b, float c) {
        return Format<H>::fma(a, b, c);
    }
};
struct Ex2 {
    template <class H>
    static float of(float a) {
        return real::narrow_to_odd(real::exp2(double{a}));
    }
};
struct Tanh {
    template <class H>
    static float of(float a) {
        return real::narrow_to_odd(real::tanh(double{a}));
    }
};
template <bool larger, bool nan>
struct Pick {
    template <class H>
    static float of(float a, float b) {
        return real::pick<larger, nan>(a, b);
    }
};
template <bool larger, bool nan>
struct PickXorsign {
    template <class H>
    static float of(float a, float b) {
        return real::MinMax{larger, nan, true, true}(a, b);
    }
};

enum class Limit { none, sat, relu };

// In steps, each a loop simple enough to be vectorised; the upper halves of pairs come after all the lower ones.
template <class H, class Op, bool ftz, Limit limit, bool pair, int arity>
void run(const Instruction& in, std::byte* regs, uint32_t mask) {
    using F = Format<H>;
    constexpr int kCount = pair ? 2 * kLanes : kLanes;
    alignas(64) float x[arity][kCount];
    const uint32_t from[] = {in.a, in.b, in.c};
    for (int k = 0; k < arity; ++k) {
        const uint32_t* a = u32(regs, from[k]);
        for (int i = 0; i < kLanes; ++i) x[k][i] = F::read(a[i] & 0xffff);
        if constexpr (pair)
            for (int i = 0; i < kLanes; ++i) x[k][kLanes + i] = F::read(a[i] >> 16);
        if constexpr (ftz)
            for (int i = 0; i < kCount; ++i) x[k][i] = F::flush(x[k][i]);
    }
    for (int i = 0; i < kCount; ++i) {
        if constexpr (arity == 1)
            x[0][i] = Op::template of<H>(x[0][i]);
        else if constexpr (arity == 2)
            x[0][i] = Op::template of<H>(x[0][i], x[1][i]);
        else
            x[0][i] = Op::template of<H>(x[0][i], x[1][i], x[2][i]);
    }
    alignas(64) uint32_t result[kCount];
    for (int i = 0; i < kCount; ++i) result[i] = F::round(x[0][i]);
    constexpr uint32_t kExponent = std::is_same_v<H, Half> ? 0x7c00 : 0x7f80, kOne = std::is_same_v<H, Half> ? 0x3c00 : 0x3f80;
    if constexpr (ftz)  // what is subnormal after rounding
        for (int i = 0; i < kCount; ++i) result[i] = result[i] & kExponent ? result[i] : result[i] & 0x8000;
    if constexpr (limit == Limit::sat)  // positive numbers' patterns are in their order; above them NaN and what is negative
        for (int i = 0; i < kCount; ++i) result[i] = result[i] > kExponent ? 0 : result[i] > kOne ? kOne : result[i];
    if constexpr (limit == Limit::relu)  // NaN, all ones, is positive
        for (int i = 0; i < kCount; ++i) result[i] = result[i] & 0x8000 ? 0 : result[i];
    if constexpr (pair)
        write(u32(regs, in.d), mask, [&](int i) { return result[i] | result[kLanes + i] << 16; });
    else
        write(u32(regs, in.d), mask, [&](int i) { return result[i]; });
}

template <class Op, int arity>
Alu for_type(Type type, bool ftz, Limit limit) {
    const auto with = [&]<class H, bool pair>() -> Alu {
        switch (limit) {
            case Limit::sat:
                return ftz ? run<H, Op, true, Limit::sat, pair, arity> : run<H, Op, false, Limit::sat, pair, arity>;
            case Limit::relu:
                return ftz ? run<H, Op, true, Limit::relu, pair, arity> : run<H, Op, false, Limit::relu, pair, arity>;
            default:
                return ftz ? run<H, Op, true, Limit::none, pair, arity> : run<H, Op, false, Limit::none, pair, arity>;
        }
    };
    return type == Type::f16     ? with.template operator()<Half, false>()
           : type == Type::f16x2 ? with.template operator()<Half, true>()
           : type == Type::bf16  ? with.template operator()<Brain, false>()
                                 : with.template operator()<Brain, true>();
}
template <class Op, int arity>
Alu for_type(Type type, bool ftz) {
    const bool pair = type == Type::f16x2 || type == Type::bf16x2, brain = type == Type::bf16 || type == Type::bf16x2;
    if (brain) {
        if (ftz) return pair ? run<Brain, Op, true, Limit::none, true, arity> : run<Brain, Op, true, Limit::none, false, arity>;
        return pair ? run<Brain, Op, false, Limit::none, true, arity> : run<Brain, Op, false, Limit::none, false, arity>;
    }
    if (ftz) return pair ? run<Half, Op, true, Limit::none, true, arity> : run<Half, Op, true, Limit::none, false, arity>;
    return pair ? run<Half, Op, false, Limit::none, true, arity> : run<Half, Op, false, Limit::none, false, arity>;
}

bool is_brain(Type t) { return t == Type::bf16 || t == Type::bf16x2; }

template <class Op>
void arithmetic(Form& form, Type type) {
    form.take("rn");
    const bool ftz = form.take("ftz"), sat = form.take("sat");
    form.require(!is_brain(type) || (!ftz && !sat && form.operands.target() >= 90));
    form.finish(3);
    form.fill(type, type, type);
    form.out.run = for_type<Op, 2>(type, ftz, sat ? Limit::sat : Limit::none);
}

void fma(Form& form, Type type) {
    form.require(form.take("rn"));
    const bool ftz = form.take("ftz"), sat = form.take("sat"), relu = form.take("relu");
    form.require(!(sat && relu) && (!is_brain(type) || (!ftz && !sat)));
    form.require(form.operands.target() >= (is_brain(type) || relu ? 80 : 53));
    form.finish(4);
    form.fill(type, type, type, type);
    form.out.run = for_type<Fma, 3>(type, ftz, sat ? Limit::sat : relu ? Limit::relu : Limit::none);
}

template <bool larger>
void minmax(Form& form, Type type) {
    const bool ftz = form.take("ftz"), nan = form.take("NaN"), xorsign = form.take("xorsign"), abs = form.take("abs");
    form.require(xorsign == abs && !(ftz && is_brain(type)) && form.operands.target() >= (xorsign ? 86 : 80));
    form.finish(3);
    form.fill(type, type, type);
    form.out.run =
        xorsign ? nan ? for_type<PickXorsign<larger, true>, 2>(type, ftz) : for_type<PickXorsign<larger, false>, 2>(type, ftz)
        : nan   ? for_type<Pick<larger, true>, 2>(type, ftz)
                : for_type<Pick<larger, false>, 2>(type, ftz);
}

template <class Op, bool flushes>
void approximate(Form& form, Type type) {
    form.require(form.take("approx"));
    const bool ftz = form.take("ftz");
    form.require((flushes ? ftz == is_brain(type) : !ftz) && form.operands.target() >= (is_brain(type) ? 90 : 75));
    form.finish(2);
    form.fill(type, type);
    form.out.run = for_type<Op, 1>(type, ftz);
}

// in.small: the bits that are kept; in.immediate: those that are turned; .ftz: subnormal f16 become zeros.
template <bool ftz>
void signs(const Instruction& in, std::byte* regs, uint32_t mask) {
    const uint32_t *a = u32(regs, in.a), keep = in.small, turn = static_cast<uint32_t>(in.immediate);
    write(u32(regs, in.d), mask, [&](int i) {
        uint32_t x = a[i];
        if (ftz) {
            const uint32_t low = x & 0x7c00 ? 0xffff : 0x8000, high = x & 0x7c000000 ? 0xffff0000 : 0x80000000;
            x &= low | high;
        }
        return (x & keep) ^ turn;
    });
}

template <bool negate>
void sign(Form& form, Type type) {
    const bool ftz = form.take("ftz");
    form.require(!is_brain(type) || (!ftz && form.operands.target() >= 80));
    form.finish(2);
    form.fill(type, type);
    const uint32_t bits = bits_of(type) == 32 ? 0x80008000 : 0x8000;
    form.out.small = negate ? kAll : ~bits;
    form.out.immediate = negate ? bits : 0;
    form.out.run = ftz ? signs<true> : signs<false>;
}

}  // namespace

bool decode_half(const ptx::Statement& statement, Operands& operands, Instruction& out) {
    static const std::unordered_map<std::string_view, void (*)(Form&, Type)> known = {
        {"add", arithmetic<Add>},
        {"sub", arithmetic<Sub>},
        {"mul", arithmetic<Mul>},
        {"fma", fma},
        {"min", minmax<false>},
        {"max", minmax<true>},
        {"ex2", approximate<Ex2, true>},
        {"neg", sign<true>},
        {"abs", sign<false>},
        {"tanh", approximate<Tanh, false>},
    };
    const auto found = known.find(statement.opcode);
    if (found == known.end()) return false;
    Form form(statement, operands, out);
    if (!is_half(form.last_type())) return false;
    found->second(form, form.take_type());
    return true;
}

}  // namespace vgpu

// Floating point: f32, f32x2, f64, and f32 with operands of 16 bits.
// Results of .rn and the directed roundings are exact; approximate functions are computed more precisely than the hardware's and
// never agree with it bit for bit.
#include <cfenv>
#include <cmath>
#include <unordered_map>

#include "alu/families.h"
#include "alu/form.h"
#include "alu/lanes.h"
#include "alu/real.h"

namespace vgpu {
namespace {

using namespace lanes;
using formats::as_double;
using formats::as_float;
using formats::bits_of;

constexpr auto kAdd = []<class T>(T a, T b) -> T { return a + b; };
constexpr auto kSub = []<class T>(T a, T b) -> T { return a - b; };
constexpr auto kMul = []<class T>(T a, T b) -> T { return a * b; };
constexpr auto kDiv = []<class T>(T a, T b) -> T { return a / b; };
constexpr auto kFma = []<class T>(T a, T b, T c) -> T { return std::fma(a, b, c); };
constexpr auto kRcp = []<class T>(T a) -> T { return T{1} / a; };
constexpr auto kSqrt = []<class T>(T a) -> T { return std::sqrt(a); };

// f as an f32 instruction.
template <auto f, bool ftz, bool sat = false>
constexpr auto kF32 = []<class... A>(A... x) -> float { return real::output<ftz, sat>(f(real::input<ftz>(x)...)); };

// f as an f64 instruction.
template <auto f>
constexpr auto kF64 = []<class... A>(A... x) -> double { return real::first_nan(f(x...), x...); };

// f on both floats of a 64-bit register.
template <auto f, bool ftz>
constexpr auto kF32x2 = []<class... A>(A... x) -> uint64_t {
    const float low = kF32<f, ftz>(as_float(static_cast<uint32_t>(x))...);
    const float high = kF32<f, ftz>(as_float(static_cast<uint32_t>(x >> 32))...);
    return uint64_t{std::bit_cast<uint32_t>(high)} << 32 | std::bit_cast<uint32_t>(low);
};

// in.small of the instructions that look their modifiers up while they run.
constexpr uint32_t kRoundMask = 3, kFtz = 4, kSat = 8;
constexpr int kRoundings[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};

class Rounding {
public:
    explicit Rounding(uint32_t which) : before_(std::fegetround()) { std::fesetround(kRoundings[which]); }
    ~Rounding() { std::fesetround(before_); }
    Rounding(const Rounding&) = delete;
    Rounding& operator=(const Rounding&) = delete;

private:
    int before_;
};

template <class T>
T held(T x) {
    volatile T v = x;
    return v;
}

// One operation in the rounding of the moment. Operands and result are volatile so that the compiler, which knows of no
// roundings, leaves it between the calls that set them.
template <auto f, class T, class... A>
T rounded(uint32_t how, A... x) {
    const auto once = [](auto... y) -> T {
        volatile T result = f(held<T>(y)...);
        return result;
    };
    if constexpr (std::is_same_v<T, float>) {
        const auto in = [how](float v) { return how & kFtz ? formats::flush(v) : v; };
        float result = once(in(x)...);
        if (how & kFtz) result = formats::flush(result);
        return how & kSat ? real::saturate(result) : real::canonical(result);
    } else {
        return real::first_nan(once(x...), x...);
    }
}

// Any rounding. A: the type of the operands but the last, T of the last and of the result.
template <auto f, class T, int arity, class A = T>
void directed(const Instruction& in, std::byte* regs, uint32_t mask) {
    const Rounding rounding(in.small & kRoundMask);
    auto* d = row<T>(regs, in.d);
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const int i = std::countr_zero(rest);
        if constexpr (arity == 1) {
            d[i] = cell<T>(rounded<f, T>(in.small, value<T>(row<T>(regs, in.a)[i])));
        } else if constexpr (arity == 2) {
            d[i] = cell<T>(rounded<f, T>(in.small, value<A>(row<A>(regs, in.a)[i]), value<T>(row<T>(regs, in.b)[i])));
        } else {
            d[i] = cell<T>(rounded<f, T>(in.small, value<A>(row<A>(regs, in.a)[i]), value<A>(row<A>(regs, in.b)[i]),
                                         value<T>(row<T>(regs, in.c)[i])));
        }
    }
}

template <auto f, int arity>
void directed_f32x2(const Instruction& in, std::byte* regs, uint32_t mask) {
    const Rounding rounding(in.small & kRoundMask);
    uint64_t* d = u64(regs, in.d);
    const uint64_t *a = u64(regs, in.a), *b = u64(regs, in.b), *c = arity == 3 ? u64(regs, in.c) : nullptr;
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const int i = std::countr_zero(rest);
        uint64_t result = 0;
        for (int half = 0; half < 64; half += 32) {
            const auto part = [half](uint64_t x) { return as_float(static_cast<uint32_t>(x >> half)); };
            float x;
            if constexpr (arity == 2)
                x = rounded<f, float>(in.small, part(a[i]), part(b[i]));
            else
                x = rounded<f, float>(in.small, part(a[i]), part(b[i]), part(c[i]));
            result |= uint64_t{std::bit_cast<uint32_t>(x)} << half;
        }
        d[i] = result;
    }
}

// ---- approximate functions ----

inline float rounded_once(double x) { return static_cast<float>(x); }
constexpr auto kRsqrt = [](float a) { return rounded_once(1.0 / std::sqrt(double{a})); };
constexpr auto kEx2 = [](float a) { return rounded_once(real::exp2(double{a})); };
constexpr auto kLg2 = [](float a) { return rounded_once(real::log2(double{a})); };
constexpr auto kSin = [](float a) { return rounded_once(std::sin(double{a})); };
constexpr auto kCos = [](float a) { return rounded_once(std::cos(double{a})); };
constexpr auto kTanh = [](float a) { return rounded_once(real::tanh(double{a})); };
constexpr auto kRsqrt64 = [](double a) { return 1.0 / std::sqrt(a); };

// A product with the reciprocal, which is zero for what is larger than 2^126: so is the quotient, or NaN of an infinite a.
constexpr auto kDivApprox = [](float a, float b) {
    const float magnitude = as_float(bits_of(b) & 0x7fffffff);
    const bool gone = magnitude > 0x1p126f && magnitude < as_float(0x7f800000);
    return gone ? a * as_float(bits_of(b) & 0x80000000) : a / b;
};

// .approx.ftz.f64: the upper 32 bits of a give the upper 32 bits of the result.
inline double flush64(double x) {
    const uint64_t b = bits_of(x);
    return as_double(b & 0x7ff0000000000000 ? b : b & 0x8000000000000000);
}
inline double upper(double x) {
    // A NaN stays one without its lower half.
    return x != x ? as_double(0x7fffffff00000000) : as_double(bits_of(x) & 0xffffffff00000000);
}
constexpr auto kRcpUpper = [](double a) { return upper(flush64(1.0 / flush64(upper(a)))); };
constexpr auto kRsqrtUpper = [](double a) { return upper(flush64(1.0 / std::sqrt(flush64(upper(a))))); };

// ---- minimum, maximum, signs ----

template <bool larger>
constexpr auto kPick = []<class T>(T a, T b) -> T { return real::pick<larger>(a, b); };

constexpr uint32_t kMinMaxFtz = 1, kMinMaxNan = 2, kMinMaxXorsign = 4, kMinMaxAbs = 8;
template <bool larger, bool three>
void minmax_f32(const Instruction& in, std::byte* regs, uint32_t mask) {
    const uint32_t how = in.small;
    const real::MinMax of{larger, (how & kMinMaxNan) != 0, (how & kMinMaxXorsign) != 0, (how & kMinMaxAbs) != 0};
    const uint32_t *a = u32(regs, in.a), *b = u32(regs, in.b), *c = three ? u32(regs, in.c) : nullptr;
    const auto read = [how](uint32_t bits) { return how & kMinMaxFtz ? formats::flush(as_float(bits)) : as_float(bits); };
    write(u32(regs, in.d), mask, [&](int i) {
        float x = of(read(a[i]), read(b[i]));
        if constexpr (three) x = of(x, read(c[i]));
        return bits_of(x);
    });
}

// Signs are bits: a NaN keeps its others.
constexpr auto kNeg = []<class T>(T a) -> T { return -a; };
constexpr auto kAbs = []<class T>(T a) -> T { return std::fabs(a); };
template <auto f>
constexpr auto kFlushThen = [](float a) { return f(formats::flush(a)); };
constexpr auto kCopysign = []<class T>(T sign, T magnitude) -> T { return std::copysign(magnitude, sign); };

enum class Property { finite, infinite, number, not_a_number, normal, subnormal };
template <class T>
void testp(const Instruction& in, std::byte* regs, uint32_t mask) {
    constexpr int kMantissa = sizeof(T) == 8 ? 52 : 23;
    constexpr Cell<T> kSign = Cell<T>{1} << (8 * sizeof(T) - 1), kInfinity = (kSign - 1) & ~((Cell<T>{1} << kMantissa) - 1);
    const auto* a = row<T>(regs, in.a);
    const auto test = [&](auto f) { write_predicate(regs, in.d, mask, bits([&](int i) { return f(a[i] & ~kSign); })); };
    constexpr Cell<T> kNormal = Cell<T>{1} << kMantissa;
    switch (static_cast<Property>(in.small)) {
        case Property::finite:
            test([](auto x) { return x < kInfinity; });
            break;
        case Property::infinite:
            test([](auto x) { return x == kInfinity; });
            break;
        case Property::number:
            test([](auto x) { return x <= kInfinity; });
            break;
        case Property::not_a_number:
            test([](auto x) { return x > kInfinity; });
            break;
        case Property::normal:
            test([](auto x) { return (x >= kNormal && x < kInfinity) || x == 0; });
            break;  // zeros count
        case Property::subnormal:
            test([](auto x) { return x < kNormal && x != 0; });
            break;
    }
}

// ---- forms ----

template <auto f, int arity, class T, class A = T>
constexpr Alu plain() {
    if constexpr (arity == 1) return map1<f, T, A>;
    if constexpr (arity == 2) return map2<f, T, A, A>;
    if constexpr (arity == 3) return map3<f, T, A, A, A>;
}

// An operation that rounds: to nearest, the usual case, in a loop of its own.
template <auto f, int arity>
void arithmetic(Form& form, Type type, bool saturates, bool rounding_needed) {
    const int round = form.take_one({"rn", "rz", "rm", "rp"});
    const bool ftz = form.take("ftz"), sat = form.take("sat");
    form.require(round >= 0 || !rounding_needed);
    form.require(!(ftz && type == Type::f64) && !(sat && (type != Type::f32 || !saturates)));
    form.finish(arity + 1);
    form.fill(type, type, arity >= 2 ? type : Type::none, arity >= 3 ? type : Type::none);
    Instruction& out = form.out;
    out.small = static_cast<uint32_t>(round < 0 ? 0 : round) | (ftz ? kFtz : 0) | (sat ? kSat : 0);
    const bool nearest = round <= 0;
    if (type == Type::f64) {
        out.run = nearest ? plain<kF64<f>, arity, double>() : directed<f, double, arity>;
    } else if (type == Type::f32) {
        out.run = !nearest ? directed<f, float, arity>
                  : ftz    ? sat ? plain<kF32<f, true, true>, arity, float>() : plain<kF32<f, true>, arity, float>()
                  : sat    ? plain<kF32<f, false, true>, arity, float>()
                           : plain<kF32<f, false>, arity, float>();
    } else if constexpr (arity >= 2) {
        form.require(type == Type::f32x2 && saturates && form.operands.target() >= 100);
        out.run = !nearest ? directed_f32x2<f, arity>
                  : ftz    ? plain<kF32x2<f, true>, arity, uint64_t>()
                           : plain<kF32x2<f, false>, arity, uint64_t>();
    } else {
        form.unknown();
    }
}

// add, sub, fma of f32 with operands of 16 bits, which are widened.
template <auto f, int arity>
void mixed(Form& form, Type narrow) {
    const int round = form.take_one({"rn", "rz", "rm", "rp"});
    const bool sat = form.take("sat");
    form.require(form.operands.target() >= 100);
    form.require(form.take_type() == Type::f32 && (narrow == Type::f16 || narrow == Type::bf16) && (arity == 2 || round >= 0));
    form.finish(arity + 1);
    if (arity == 2)
        form.fill(Type::f32, narrow, Type::f32);
    else
        form.fill(Type::f32, narrow, narrow, Type::f32);
    form.out.small = static_cast<uint32_t>(round < 0 ? 0 : round) | (sat ? kSat : 0);
    form.out.run = narrow == Type::f16 ? directed<f, float, arity, Half> : directed<f, float, arity, Brain>;
}

template <auto f>
void approximate(Form& form) {
    const bool ftz = form.take("ftz");
    form.finish(2);
    form.fill(Type::f32, Type::f32);
    form.out.run = ftz ? map1<kF32<f, true>, float, float> : map1<kF32<f, false>, float, float>;
}

void add(Form& form, Type type) { arithmetic<kAdd, 2>(form, type, true, false); }
void sub(Form& form, Type type) { arithmetic<kSub, 2>(form, type, true, false); }
void mul(Form& form, Type type) { arithmetic<kMul, 2>(form, type, true, false); }
void fma(Form& form, Type type) { arithmetic<kFma, 3>(form, type, true, true); }
void mad(Form& form, Type type) {
    form.require(type != Type::f32x2);
    arithmetic<kFma, 3>(form, type, true, true);
}

void div(Form& form, Type type) {
    const int how = form.take_one({"approx", "full"});
    if (how < 0) {
        form.require(type != Type::f32x2);
        return arithmetic<kDiv, 2>(form, type, false, true);
    }
    form.require(type == Type::f32);
    const bool ftz = form.take("ftz");
    form.finish(3);
    form.fill(type, type, type);
    form.out.run = how == 0 ? ftz ? binary<kF32<kDivApprox, true>, float> : binary<kF32<kDivApprox, false>, float>
                   : ftz    ? binary<kF32<kDiv, true>, float>
                            : binary<kF32<kDiv, false>, float>;
}

void rcp(Form& form, Type type) {
    if (!form.take("approx")) return arithmetic<kRcp, 1>(form, type, false, true);
    if (type == Type::f32) return approximate<kRcp>(form);
    form.require(type == Type::f64 && form.take("ftz"));
    form.finish(2);
    form.fill(type, type);
    form.out.run = unary<kRcpUpper, double>;
}

void sqrt(Form& form, Type type) {
    if (!form.take("approx")) return arithmetic<kSqrt, 1>(form, type, false, true);
    form.require(type == Type::f32);
    approximate<kSqrt>(form);
}

void rsqrt(Form& form, Type type) {
    form.require(form.take("approx"));
    if (type == Type::f32) return approximate<kRsqrt>(form);
    form.require(type == Type::f64);
    const bool ftz = form.take("ftz");
    form.finish(2);
    form.fill(type, type);
    form.out.run = ftz ? unary<kRsqrtUpper, double> : unary<kRsqrt64, double>;
}

template <auto f, bool flushes = true>
void function(Form& form, Type type) {
    form.require(type == Type::f32 && form.take("approx"));
    form.require(flushes || form.operands.target() >= 75);  // tanh
    form.require(flushes || !form.statement.has("ftz"));
    approximate<f>(form);
}

template <bool larger>
void minmax(Form& form, Type type) {
    const bool three = form.statement.operands.size() == 4;
    const bool ftz = form.take("ftz"), nan = form.take("NaN"), xorsign = form.take("xorsign"), abs = form.take("abs");
    form.finish(three ? 4 : 3);
    form.fill(type, type, type, three ? type : Type::none);
    if (type == Type::f64) {
        form.require(!ftz && !nan && !xorsign && !abs && !three);
        form.out.run = binary<kPick<larger>, double>;
        return;
    }
    form.require(type == Type::f32 && (three ? !xorsign : xorsign == abs));
    form.require(form.operands.target() >= (three ? 100 : xorsign ? 86 : nan ? 80 : 0));
    form.out.small = (ftz ? kMinMaxFtz : 0) | (nan ? kMinMaxNan : 0) | (xorsign ? kMinMaxXorsign : 0) | (abs ? kMinMaxAbs : 0);
    form.out.run = three            ? minmax_f32<larger, true>
                   : nan || xorsign ? minmax_f32<larger, false>
                   : ftz            ? binary<kF32<kPick<larger>, true>, float>
                                    : binary<kPick<larger>, float>;
}

template <auto f>
void sign(Form& form, Type type) {
    const bool ftz = form.take("ftz");
    form.require(type == Type::f32 || (type == Type::f64 && !ftz));
    form.finish(2);
    form.fill(type, type);
    form.out.run = type == Type::f64 ? unary<f, double> : ftz ? unary<kFlushThen<f>, float> : unary<f, float>;
}

void copysign(Form& form, Type type) {
    form.require(type == Type::f32 || type == Type::f64);
    form.finish(3);
    form.fill(type, type, type);
    form.out.run = type == Type::f64 ? binary<kCopysign, double> : binary<kCopysign, float>;
}

void decode_testp(Form& form, Type type) {
    const int property = form.take_one({"finite", "infinite", "number", "notanumber", "normal", "subnormal"});
    form.require(property >= 0 && (type == Type::f32 || type == Type::f64));
    form.finish(2);
    form.fill(Type::pred, type);
    form.out.small = static_cast<uint32_t>(property);
    form.out.run = type == Type::f64 ? testp<double> : testp<float>;
}

}  // namespace

bool decode_float(const ptx::Statement& statement, Operands& operands, Instruction& out) {
    static const std::unordered_map<std::string_view, void (*)(Form&, Type)> known = {
        {"add", add},
        {"sub", sub},
        {"mul", mul},
        {"fma", fma},
        {"mad", mad},
        {"div", div},
        {"rcp", rcp},
        {"sqrt", sqrt},
        {"rsqrt", rsqrt},
        {"ex2", function<kEx2>},
        {"lg2", function<kLg2>},
        {"sin", function<kSin>},
        {"cos", function<kCos>},
        {"tanh", function<kTanh, false>},
        {"min", minmax<false>},
        {"max", minmax<true>},
        {"neg", sign<kNeg>},
        {"abs", sign<kAbs>},
        {"copysign", copysign},
        {"testp", decode_testp},
    };
    const auto found = known.find(statement.opcode);
    if (found == known.end()) return false;
    Form form(statement, operands, out);
    const Type last = form.last_type();
    if (is_half(last)) {
        if (!statement.has("f32")) return false;
        form.take_type();
        if (statement.opcode == "add") return mixed<kAdd, 2>(form, last), true;
        if (statement.opcode == "sub") return mixed<kSub, 2>(form, last), true;
        if (statement.opcode == "fma") return mixed<kFma, 3>(form, last), true;
        form.unknown();
    }
    if (!is_float(last)) form.unknown();
    found->second(form, form.take_type());
    return true;
}

}  // namespace vgpu

// Bits, selections and comparisons.
#include <algorithm>
#include <array>
#include <unordered_map>

#include "alu/families.h"
#include "alu/form.h"
#include "alu/lanes.h"

namespace vgpu {
namespace {

using namespace lanes;
using ptx::Operand;

constexpr auto kAnd = []<class T>(T a, T b) -> T { return a & b; };
constexpr auto kOr = []<class T>(T a, T b) -> T { return a | b; };
constexpr auto kXor = []<class T>(T a, T b) -> T { return a ^ b; };
constexpr auto kNot = []<class T>(T a) -> T { return static_cast<T>(~a); };
constexpr auto kCnot = []<class T>(T a) -> T { return a == 0; };

// Shifts past the width give zero, or the sign.
constexpr auto kShl = []<class T>(T a, uint32_t b) -> T {
    constexpr uint32_t kWidth = 8 * sizeof(T);
    return b >= kWidth ? T{0} : static_cast<T>(Cell<T>{a} << (b & (kWidth - 1)));
};
constexpr auto kShr = []<class T>(T a, uint32_t b) -> T {
    constexpr uint32_t kWidth = 8 * sizeof(T);
    if constexpr (std::is_signed_v<T>)
        return static_cast<T>(a >> std::min(b, kWidth - 1));
    else
        return b >= kWidth ? T{0} : static_cast<T>(a >> (b & (kWidth - 1)));
};

template <bool left, bool clamp>
constexpr auto kFunnel = [](uint32_t a, uint32_t b, uint32_t c) {
    const uint32_t n = clamp ? std::min(c, 32u) : c & 31;
    const uint64_t x = uint64_t{b} << 32 | a;
    return static_cast<uint32_t>(left ? (x << n) >> 32 : x >> n);
};

// Three inputs' function by its table of 8 bits, as a tree of selections: the table's bits are masks.
struct Table {
    uint32_t m[8];
    explicit Table(uint32_t bits) {
        for (int i = 0; i < 8; ++i) m[i] = bits >> i & 1 ? kAll : 0;
    }
    uint32_t operator()(uint32_t a, uint32_t b, uint32_t c) const {
        const auto choose = [](uint32_t which, uint32_t one, uint32_t zero) { return zero ^ (which & (zero ^ one)); };
        const uint32_t b0 = choose(b, choose(c, m[3], m[2]), choose(c, m[1], m[0]));
        const uint32_t b1 = choose(b, choose(c, m[7], m[6]), choose(c, m[5], m[4]));
        return choose(a, b1, b0);
    }
};

void lop3(const Instruction& in, std::byte* regs, uint32_t mask) {
    const uint32_t *a = u32(regs, in.a), *b = u32(regs, in.b), *c = u32(regs, in.c);
    const Table table(in.small & 0xff);
    write(u32(regs, in.d), mask, [&](int i) { return table(a[i], b[i], c[i]); });
}

enum Bool : uint32_t { kBoolNone, kBoolAnd, kBoolOr, kBoolXor };
inline uint32_t combine(uint32_t how, uint32_t t, uint32_t c) {
    return how == kBoolAnd ? t & c : how == kBoolOr ? t | c : how == kBoolXor ? t ^ c : t;
}
int take_bool(Form& form) { return 1 + form.take_one({"and", "or", "xor"}); }

// d|p: p = (d != 0) BoolOp q. in.small: the table, BoolOp << 8, q negated << 16; in.immediate: q's offset.
void lop3_predicate(const Instruction& in, std::byte* regs, uint32_t mask) {
    const uint32_t *a = u32(regs, in.a), *b = u32(regs, in.b), *c = u32(regs, in.c);
    const Table table(in.small & 0xff);
    const uint32_t t = bits([&](int i) { return table(a[i], b[i], c[i]) != 0; });
    const uint32_t q = predicate(regs, static_cast<uint32_t>(in.immediate)) ^ (in.small >> 16 & 1 ? kAll : 0);
    if (in.d != kNone) write(u32(regs, in.d), mask, [&](int i) { return table(a[i], b[i], c[i]); });
    if (in.d2 != kNone) write_predicate(regs, in.d2, mask, combine(in.small >> 8 & 0xff, t, q));
}

// One byte of the eight in {b, a}, or its sign eight times.
constexpr auto kPermute = [](uint32_t a, uint32_t b, uint32_t control) {
    const uint64_t bytes = uint64_t{b} << 32 | a;
    uint32_t d = 0;
    for (int k = 0; k < 4; ++k) {
        const uint32_t select = control >> (4 * k) & 15;
        const uint32_t byte = static_cast<uint32_t>(bytes >> (8 * (select & 7))) & 0xff;
        d |= (select & 8 ? (byte >> 7) * 0xff : byte) << (8 * k);
    }
    return d;
};

// With a constant for the control, as compilers write it: every byte's source is known.
void permute_constant(const Instruction& in, std::byte* regs, uint32_t mask) {
    const uint32_t* from[4];
    uint32_t shift[4], sign[4];
    for (int k = 0; k < 4; ++k) {
        const uint32_t select = static_cast<uint32_t>(in.immediate) >> (4 * k) & 15;
        from[k] = u32(regs, select & 4 ? in.b : in.a);
        shift[k] = 8 * (select & 3);
        sign[k] = select & 8 ? 0xff : 0;
    }
    write(u32(regs, in.d), mask, [&](int i) {
        uint32_t d = 0;
        for (int k = 0; k < 4; ++k) {
            const uint32_t byte = from[k][i] >> shift[k] & 0xff;
            d |= ((sign[k] & (0 - (byte >> 7))) | (~sign[k] & byte)) << (8 * k);
        }
        return d;
    });
}

// in.immediate: the controls for the four values of c's lowest two bits.
void permute_mode(const Instruction& in, std::byte* regs, uint32_t mask) {
    const uint32_t *a = u32(regs, in.a), *b = u32(regs, in.b), *c = u32(regs, in.c);
    write(u32(regs, in.d), mask,
          [&](int i) { return kPermute(a[i], b[i], static_cast<uint32_t>(in.immediate >> (16 * (c[i] & 3))) & 0xffff); });
}

// Controls of the named modes, for c = 3, 2, 1, 0 from the top.
constexpr std::array<uint64_t, 6> kPermuteModes = {
    0x6543'5432'4321'3210,  // f4e
    0x0123'7012'6701'5670,  // b4e
    0x3333'2222'1111'0000,  // rc8
    0x3333'3222'3211'3210,  // ecl
    0x3210'2210'1110'0000,  // ecr
    0x3232'1010'3232'1010,  // rc16
};

template <class T>
void select(const Instruction& in, std::byte* regs, uint32_t mask) {
    const T *a = row<T>(regs, in.a), *b = row<T>(regs, in.b);
    const uint32_t p = predicate(regs, in.c) ^ in.small;
    write(row<T>(regs, in.d), mask, [&](int i) { return p >> i & 1 ? a[i] : b[i]; });
}

constexpr auto kSlct = []<class T, class C>(T a, T b, C c) { return c >= C{0} ? a : b; };
constexpr auto kSlctFlush = []<class T>(T a, T b, float c) { return formats::flush(c) >= 0 ? a : b; };

// ---- comparisons ----

// Every comparison is one of these, perhaps of (b, a), perhaps negated.
enum class Compare : uint8_t { equal, less, less_equal, less_greater, ordered };
struct Comparison {
    Compare base;
    bool swap, negate;
};

template <Compare compare, class T>
inline bool holds(T a, T b) {
    switch (compare) {
        case Compare::equal:
            return a == b;
        case Compare::less:
            return a < b;
        case Compare::less_equal:
            return a <= b;
        case Compare::less_greater:
            return (a < b) | (a > b);
        case Compare::ordered:
            return (a == a) & (b == b);
    }
}

struct Identity {
    template <class T>
    static T of(T x) {
        return x;
    }
};
struct Flush {
    static float of(float x) { return formats::flush(x); }
};
// f16's subnormal numbers are normal as floats.
struct FlushHalf {
    static float of(float x) {
        const uint32_t b = formats::bits_of(x);
        return formats::as_float((b & 0x7fffffff) < 0x38800000 ? b & 0x80000000 : b);
    }
};

// Bits of a row's comparison; shift: 16 for the upper half of a pair.
template <Compare compare, class T, class Prepare, int shift>
inline uint32_t compare_rows(const std::byte* a_row, const std::byte* b_row) {
    const auto* a = reinterpret_cast<const Cell<T>*>(a_row);
    const auto* b = reinterpret_cast<const Cell<T>*>(b_row);
    if constexpr (std::is_arithmetic_v<T>) {
        return bits([&](int i) { return holds<compare>(Prepare::of(value<T>(a[i])), Prepare::of(value<T>(b[i]))); });
    } else {  // widened first: in one loop with the comparison it would not be vectorised
        alignas(64) float x[kLanes], y[kLanes];
        for (int i = 0; i < kLanes; ++i) x[i] = value<T>(a[i] >> shift);
        for (int i = 0; i < kLanes; ++i) y[i] = value<T>(b[i] >> shift);
        return bits([&](int i) { return holds<compare>(Prepare::of(x[i]), Prepare::of(y[i])); });
    }
}

// in.small: negate, BoolOp << 8, c negated << 16
template <Compare compare, class T, class Prepare>
void setp(const Instruction& in, std::byte* regs, uint32_t mask) {
    uint32_t t = compare_rows<compare, T, Prepare, 0>(regs + in.a, regs + in.b) ^ (in.small & 1 ? kAll : 0);
    uint32_t other = ~t;
    if (in.small & ~1u) {
        const uint32_t how = in.small >> 8 & 0xff, c = predicate(regs, in.c) ^ (in.small >> 16 & 1 ? kAll : 0);
        t = combine(how, t, c);
        other = combine(how, other, c);
    }
    if (in.d != kNone) write_predicate(regs, in.d, mask, t);
    if (in.d2 != kNone) write_predicate(regs, in.d2, mask, other);
}

// A pair of halves: p is the lower one's comparison, q the upper one's.
template <Compare compare, class T, class Prepare>
void setp_pair(const Instruction& in, std::byte* regs, uint32_t mask) {
    const uint32_t negate = in.small & 1 ? kAll : 0, how = in.small >> 8 & 0xff;
    const uint32_t c = in.c == kNone ? 0 : predicate(regs, in.c) ^ (in.small >> 16 & 1 ? kAll : 0);
    const uint32_t low = combine(how, compare_rows<compare, T, Prepare, 0>(regs + in.a, regs + in.b) ^ negate, c);
    const uint32_t high = combine(how, compare_rows<compare, T, Prepare, 16>(regs + in.a, regs + in.b) ^ negate, c);
    if (in.d != kNone) write_predicate(regs, in.d, mask, low);
    if (in.d2 != kNone) write_predicate(regs, in.d2, mask, high);
}

// in.immediate: what true looks like. halves: each half is its own comparison's.
template <Compare compare, class T, class Prepare, bool halves>
void set(const Instruction& in, std::byte* regs, uint32_t mask) {
    const uint32_t negate = in.small & 1 ? kAll : 0, how = in.small >> 8 & 0xff, yes = static_cast<uint32_t>(in.immediate);
    const uint32_t c = in.c == kNone ? 0 : predicate(regs, in.c) ^ (in.small >> 16 & 1 ? kAll : 0);
    const uint32_t low = combine(how, compare_rows<compare, T, Prepare, 0>(regs + in.a, regs + in.b) ^ negate, c);
    if constexpr (halves) {
        const uint32_t high = combine(how, compare_rows<compare, T, Prepare, 16>(regs + in.a, regs + in.b) ^ negate, c);
        write(u32(regs, in.d), mask, [&](int i) { return (low >> i & 1 ? yes : 0) | (high >> i & 1 ? yes << 16 : 0); });
    } else {
        write(u32(regs, in.d), mask, [&](int i) { return low >> i & 1 ? yes : 0; });
    }
}

enum class Result { predicate, predicate_pair, value, value_pair };

template <Result result, Compare compare, class T, class Prepare>
constexpr Alu instance() {
    if constexpr (result == Result::predicate) return setp<compare, T, Prepare>;
    if constexpr (result == Result::predicate_pair) return setp_pair<compare, T, Prepare>;
    if constexpr (result == Result::value) return set<compare, T, Prepare, false>;
    if constexpr (result == Result::value_pair) return set<compare, T, Prepare, true>;
}

template <Result result, class T, class Prepare = Identity>
Alu compare_by(Compare compare) {
    switch (compare) {
        case Compare::equal:
            return instance<result, Compare::equal, T, Prepare>();
        case Compare::less:
            return instance<result, Compare::less, T, Prepare>();
        case Compare::less_equal:
            return instance<result, Compare::less_equal, T, Prepare>();
        default:
            break;
    }
    if constexpr (!std::is_integral_v<T>)
        return compare == Compare::ordered ? instance<result, Compare::ordered, T, Prepare>()
                                           : instance<result, Compare::less_greater, T, Prepare>();
    return nullptr;
}

template <Result single, Result pair>
Alu compare_for(Type type, Compare compare, bool flush) {
    switch (type) {
        case Type::b16:
        case Type::u16:
            return compare_by<single, uint16_t>(compare);
        case Type::s16:
            return compare_by<single, int16_t>(compare);
        case Type::b32:
        case Type::u32:
            return compare_by<single, uint32_t>(compare);
        case Type::s32:
            return compare_by<single, int32_t>(compare);
        case Type::b64:
        case Type::u64:
            return compare_by<single, uint64_t>(compare);
        case Type::s64:
            return compare_by<single, int64_t>(compare);
        case Type::f32:
            return flush ? compare_by<single, float, Flush>(compare) : compare_by<single, float>(compare);
        case Type::f64:
            return compare_by<single, double>(compare);
        case Type::f16:
            return flush ? compare_by<single, Half, FlushHalf>(compare) : compare_by<single, Half>(compare);
        case Type::f16x2:
            return flush ? compare_by<pair, Half, FlushHalf>(compare) : compare_by<pair, Half>(compare);
        case Type::bf16:
            return compare_by<single, Brain>(compare);
        case Type::bf16x2:
            return compare_by<pair, Brain>(compare);
        default:
            return nullptr;
    }
}

// Takes the comparison's modifiers but the types, and checks them against the operands' type.
Comparison take_comparison(Form& form, Type type, bool* flush) {
    const bool real = is_float(type), sign = type == Type::s16 || type == Type::s32 || type == Type::s64;
    const bool untyped = type == Type::b16 || type == Type::b32 || type == Type::b64;
    struct Named {
        std::string_view name;
        Comparison of_integers, of_floats;
        bool integers, floats;
    };
    using enum Compare;
    constexpr Comparison kNo{equal, false, false};
    static constexpr Named kNames[] = {
        {"eq", {equal, false, false}, {equal, false, false}, true, true},
        {"ne", {equal, false, true}, {less_greater, false, false}, true, true},
        {"lt", {less, false, false}, {less, false, false}, true, true},
        {"le", {less_equal, false, false}, {less_equal, false, false}, true, true},
        {"gt", {less, true, false}, {less, true, false}, true, true},
        {"ge", {less_equal, true, false}, {less_equal, true, false}, true, true},
        {"lo", {less, false, false}, kNo, true, false},
        {"ls", {less_equal, false, false}, kNo, true, false},
        {"hi", {less, true, false}, kNo, true, false},
        {"hs", {less_equal, true, false}, kNo, true, false},
        {"equ", kNo, {less_greater, false, true}, false, true},
        {"neu", kNo, {equal, false, true}, false, true},
        {"ltu", kNo, {less_equal, true, true}, false, true},
        {"leu", kNo, {less, true, true}, false, true},
        {"gtu", kNo, {less_equal, false, true}, false, true},
        {"geu", kNo, {less, false, true}, false, true},
        {"num", kNo, {ordered, false, false}, false, true},
        {"nan", kNo, {ordered, false, true}, false, true},
    };
    *flush = form.take("ftz");
    form.require(!*flush || type == Type::f32 || type == Type::f16 || type == Type::f16x2);
    for (const Named& n : kNames) {
        if (!form.take(n.name)) continue;
        const bool unsigned_only = n.integers && !n.floats;  // lo, ls, hi, hs
        const bool equality = n.name == "eq" || n.name == "ne";
        form.require(real ? n.floats : n.integers);
        form.require(!(unsigned_only && sign) && !(untyped && !equality));
        return real ? n.of_floats : n.of_integers;
    }
    form.unknown();
}

// a, b and the third predicate, whose operand is the fourth.
void finish_comparison(Form& form, Type type, Comparison comparison, int how) {
    form.finish(how ? 4 : 3);
    Instruction& out = form.out;
    out.a = form.source(comparison.swap ? 2 : 1, type);
    out.b = form.source(comparison.swap ? 1 : 2, type);
    bool negated = false;
    if (how) out.c = form.predicate(3, &negated);
    out.small = (comparison.negate ? 1 : 0) | static_cast<uint32_t>(how) << 8 | (negated ? 1u << 16 : 0);
}

void decode_setp(Form& form) {
    const Type type = form.take_type();
    bool flush = false;
    const Comparison comparison = take_comparison(form, type, &flush);
    finish_comparison(form, type, comparison, take_bool(form));
    form.destination_pair(0, Type::pred, Type::pred);
    form.require(form.out.d != kNone || form.out.d2 != kNone);
    const bool pair = type == Type::f16x2 || type == Type::bf16x2;
    form.require(!pair || form.operand(0).kind == Operand::Kind::pair);
    form.out.run = compare_for<Result::predicate, Result::predicate_pair>(type, comparison.base, flush);
    form.require(form.out.run);
}

void decode_set(Form& form) {
    const Type type = form.take_type(), result = form.take_type();
    bool flush = false;
    const Comparison comparison = take_comparison(form, type, &flush);
    finish_comparison(form, type, comparison, take_bool(form));
    const bool pair = type == Type::f16x2 || type == Type::bf16x2;
    uint32_t yes = 0;
    switch (result) {
        case Type::u32:
        case Type::s32:
            yes = pair ? 0xffff : kAll;
            break;
        case Type::f32:
            yes = 0x3f800000;
            break;
        case Type::u16:
        case Type::s16:
            yes = 0xffff;
            break;
        case Type::f16:
        case Type::f16x2:
            yes = 0x3c00;
            break;
        case Type::bf16:
        case Type::bf16x2:
            yes = 0x3f80;
            break;
        default:
            form.unknown();
    }
    const bool half = is_half(type), small_integer = result == Type::u16 || result == Type::s16;
    const bool integer = result == Type::u32 || result == Type::s32;
    form.require(!small_integer || (half && !pair));
    form.require(pair ? integer || result == type : result != Type::f16x2 && result != Type::bf16x2);
    form.out.immediate = yes;
    form.out.d = form.destination(0, result);
    form.out.run = compare_for<Result::value, Result::value_pair>(type, comparison.base, flush);
    form.require(form.out.run);
}

// ---- the rest's forms ----

enum class Logic { l_and, l_or, l_xor };
template <Logic logic>
void logic_predicate(const Instruction& in, std::byte* regs, uint32_t mask) {
    const uint32_t a = predicate(regs, in.a) ^ (in.small & 1 ? kAll : 0), b = predicate(regs, in.b) ^ (in.small & 2 ? kAll : 0);
    write_predicate(regs, in.d, mask, logic == Logic::l_and ? a & b : logic == Logic::l_or ? a | b : a ^ b);
}
void not_predicate(const Instruction& in, std::byte* regs, uint32_t mask) {
    write_predicate(regs, in.d, mask, ~predicate(regs, in.a) ^ (in.small & 1 ? kAll : 0));
}

bool is_bits(Type t) { return t == Type::b16 || t == Type::b32 || t == Type::b64; }

template <Logic logic, auto f>
void decode_logic2(Form& form) {
    const Type type = form.take_type();
    form.finish(3);
    if (type == Type::pred) {
        bool a = false, b = false;
        form.out.a = form.predicate(1, &a);
        form.out.b = form.predicate(2, &b);
        form.out.d = form.destination(0, type);
        form.out.small = (a ? 1 : 0) | (b ? 2 : 0);
        form.out.run = logic_predicate<logic>;
        return;
    }
    form.require(is_bits(type));
    form.fill(type, type, type);
    form.out.run = type == Type::b64 ? binary<f, uint64_t> : binary<f, uint32_t>;
}

void decode_not(Form& form) {
    const Type type = form.take_type();
    form.finish(2);
    if (type == Type::pred) {
        bool negated = false;
        form.out.a = form.predicate(1, &negated);
        form.out.d = form.destination(0, type);
        form.out.small = negated ? 1 : 0;
        form.out.run = not_predicate;
        return;
    }
    form.require(is_bits(type));
    form.fill(type, type);
    form.out.run = type == Type::b64 ? unary<kNot, uint64_t> : type == Type::b32 ? unary<kNot, uint32_t> : unary<kNot, uint16_t>;
}

void decode_cnot(Form& form) {
    const Type type = form.take_type();
    form.finish(2);
    form.require(is_bits(type));
    form.fill(type, type);
    form.out.run = type == Type::b64 ? unary<kCnot, uint64_t> : unary<kCnot, uint32_t>;
}

void decode_shl(Form& form) {
    const Type type = form.take_type();
    form.finish(3);
    form.require(is_bits(type));
    form.fill(type, type, Type::u32);
    form.out.run = type == Type::b64   ? map2<kShl, uint64_t, uint64_t, uint32_t>
                   : type == Type::b32 ? map2<kShl, uint32_t, uint32_t, uint32_t>
                                       : map2<kShl, uint16_t, uint16_t, uint32_t>;
}

void decode_shr(Form& form) {
    const Type type = form.take_type();
    form.finish(3);
    switch (type) {
        case Type::b16:
        case Type::u16:
            form.out.run = map2<kShr, uint16_t, uint16_t, uint32_t>;
            break;
        case Type::b32:
        case Type::u32:
            form.out.run = map2<kShr, uint32_t, uint32_t, uint32_t>;
            break;
        case Type::b64:
        case Type::u64:
            form.out.run = map2<kShr, uint64_t, uint64_t, uint32_t>;
            break;
        case Type::s16:
            form.out.run = map2<kShr, int16_t, int16_t, uint32_t>;
            break;
        case Type::s32:
            form.out.run = map2<kShr, int32_t, int32_t, uint32_t>;
            break;
        case Type::s64:
            form.out.run = map2<kShr, int64_t, int64_t, uint32_t>;
            break;
        default:
            form.unknown();
    }
    form.fill(type, type, Type::u32);
}

void decode_shf(Form& form) {
    form.require(form.take_type() == Type::b32);
    const int direction = form.take_one({"l", "r"}), mode = form.take_one({"clamp", "wrap"});
    form.require(direction >= 0 && mode >= 0);
    form.finish(4);
    form.fill(Type::b32, Type::b32, Type::b32, Type::u32);
    form.out.run = direction == 0 ? mode == 0 ? ternary<kFunnel<true, true>, uint32_t> : ternary<kFunnel<true, false>, uint32_t>
                   : mode == 0    ? ternary<kFunnel<false, true>, uint32_t>
                                  : ternary<kFunnel<false, false>, uint32_t>;
}

void decode_lop3(Form& form) {
    form.require(form.take_type() == Type::b32);
    const int how = take_bool(form);
    form.require(how != kBoolXor);
    form.finish(how ? 6 : 5);
    const Operand& table = form.operand(4);
    form.require(table.kind == Operand::Kind::integer && table.value < 256);
    Instruction& out = form.out;
    out.a = form.source(1, Type::b32);
    out.b = form.source(2, Type::b32);
    out.c = form.source(3, Type::b32);
    out.small = static_cast<uint32_t>(table.value);
    if (!how) {
        out.d = form.destination(0, Type::b32);
        out.run = lop3;
        return;
    }
    form.require(form.operand(0).kind == Operand::Kind::pair);
    form.destination_pair(0, Type::b32, Type::pred);
    bool negated = false;
    out.immediate = form.predicate(5, &negated);
    out.small |= static_cast<uint32_t>(how) << 8 | (negated ? 1u << 16 : 0);
    out.run = lop3_predicate;
}

void decode_prmt(Form& form) {
    form.require(form.take("b32"));
    const int mode = form.take_one({"f4e", "b4e", "rc8", "ecl", "ecr", "rc16"});
    form.finish(4);
    form.fill(Type::b32, Type::b32, Type::b32, Type::b32);
    Instruction& out = form.out;
    const Operand& control = form.operand(3);
    const bool constant = control.kind == Operand::Kind::integer;
    if (mode >= 0) out.immediate = kPermuteModes[static_cast<size_t>(mode)];
    if (constant) {
        out.immediate = (mode >= 0 ? out.immediate >> (16 * (control.value & 3)) : control.value) & 0xffff;
        out.run = permute_constant;
    } else {
        out.run = mode >= 0 ? permute_mode : ternary<kPermute, uint32_t>;
    }
}

bool selectable(Type t) {
    return is_bits(t) || (t >= Type::u16 && t <= Type::u64) || (t >= Type::s16 && t <= Type::s64) || t == Type::f32 ||
           t == Type::f64;
}

void decode_selp(Form& form) {
    const Type type = form.take_type();
    form.finish(4);
    form.require(selectable(type) || type == Type::f16 || type == Type::bf16 || type == Type::f16x2 || type == Type::bf16x2);
    form.fill(type, type, type);
    bool negated = false;
    form.out.c = form.predicate(3, &negated);
    form.out.small = negated ? kAll : 0;
    form.out.run = bits_of(type) == 64 ? select<uint64_t> : select<uint32_t>;
}

void decode_slct(Form& form) {
    const Type by = form.take_type(), type = form.take_type();
    const bool flush = form.take("ftz");
    form.finish(4);
    form.require(selectable(type) && (by == Type::f32 || (by == Type::s32 && !flush)));
    form.fill(type, type, type, by);
    const bool wide = bits_of(type) == 64;
    if (by == Type::s32)
        form.out.run =
            wide ? map3<kSlct, uint64_t, uint64_t, uint64_t, int32_t> : map3<kSlct, uint32_t, uint32_t, uint32_t, int32_t>;
    else if (flush)
        form.out.run =
            wide ? map3<kSlctFlush, uint64_t, uint64_t, uint64_t, float> : map3<kSlctFlush, uint32_t, uint32_t, uint32_t, float>;
    else
        form.out.run = wide ? map3<kSlct, uint64_t, uint64_t, uint64_t, float> : map3<kSlct, uint32_t, uint32_t, uint32_t, float>;
}

}  // namespace

bool decode_logic(const ptx::Statement& statement, Operands& operands, Instruction& out) {
    static const std::unordered_map<std::string_view, void (*)(Form&)> known = {
        {"and", decode_logic2<Logic::l_and, kAnd>},
        {"or", decode_logic2<Logic::l_or, kOr>},
        {"xor", decode_logic2<Logic::l_xor, kXor>},
        {"not", decode_not},
        {"cnot", decode_cnot},
        {"shl", decode_shl},
        {"shr", decode_shr},
        {"shf", decode_shf},
        {"lop3", decode_lop3},
        {"prmt", decode_prmt},
        {"selp", decode_selp},
        {"slct", decode_slct},
        {"setp", decode_setp},
        {"set", decode_set},
    };
    const auto found = known.find(statement.opcode);
    if (found == known.end()) return false;
    Form form(statement, operands, out);
    found->second(form);
    return true;
}

}  // namespace vgpu

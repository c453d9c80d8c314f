#include "alu/form.h"

#include <string>

#include "alu/formats.h"

namespace vgpu {

namespace {

struct Named {
    std::string_view name;
    int bits;
};
// In the order of Type.
constexpr std::array<Named, 24> kTypes{{{"", 0},       {"pred", 1},  {"b8", 8},      {"b16", 16},   {"b32", 32},   {"b64", 64},
                                        {"b128", 128}, {"u8", 8},    {"u16", 16},    {"u32", 32},   {"u64", 64},   {"s8", 8},
                                        {"s16", 16},   {"s32", 32},  {"s64", 64},    {"u16x2", 32}, {"s16x2", 32}, {"f16", 16},
                                        {"f16x2", 32}, {"bf16", 16}, {"bf16x2", 32}, {"f32", 32},   {"f32x2", 64}, {"f64", 64}}};
static_assert(static_cast<size_t>(Type::f64) + 1 == kTypes.size());

}  // namespace

Type type_named(std::string_view name) {
    for (size_t i = 1; i < kTypes.size(); ++i)
        if (kTypes[i].name == name) return static_cast<Type>(i);
    return Type::none;
}

int bits_of(Type type) { return kTypes[static_cast<size_t>(type)].bits; }

void Form::unknown(std::string_view why) const {
    throw ptx::SyntaxError("PTX line " + std::to_string(statement.line) + ": " + std::string(why) + ": " + statement.text());
}

bool Form::take(std::string_view modifier) {
    for (size_t i = 0; i < statement.modifiers.size() && i < 32; ++i) {
        if (statement.modifiers[i] == modifier && !(taken_ >> i & 1)) {
            taken_ |= uint32_t{1} << i;
            return true;
        }
    }
    return false;
}

int Form::take_one(std::initializer_list<std::string_view> modifiers) {
    int found = -1, at = 0;
    for (const std::string_view m : modifiers) {
        if (take(m)) {
            require(found < 0);
            found = at;
        }
        ++at;
    }
    return found;
}

Type Form::last_type() const { return statement.modifiers.empty() ? Type::none : type_named(statement.modifiers.back()); }

Type Form::take_type() {
    for (size_t i = statement.modifiers.size(); i-- > 0;) {
        if (i >= 32 || taken_ >> i & 1) continue;
        const Type t = type_named(statement.modifiers[i]);
        if (t != Type::none) taken_ |= uint32_t{1} << i;
        return t;
    }
    return Type::none;
}

void Form::finish(size_t operand_count) const {
    const size_t n = statement.modifiers.size();
    require(n < 32 && taken_ == (uint32_t{1} << n) - 1);
    if (statement.operands.size() != operand_count) unknown("wrong number of operands");
}

const ptx::Operand& Form::operand(size_t i) const {
    if (i >= statement.operands.size()) unknown("too few operands");
    return statement.operands[i];
}

uint32_t Form::source(const ptx::Operand& operand, Type type) {
    using Kind = ptx::Operand::Kind;
    if (operand.negated) unknown("negated operand");
    const bool literal = operand.kind == Kind::f32 || operand.kind == Kind::f64;
    if (literal && bits_of(type) == 16 && is_float(type)) {
        const double value = operand.kind == Kind::f32 ? double{formats::as_float(static_cast<uint32_t>(operand.value))}
                                                       : formats::as_double(operand.value);
        const auto round = formats::Round::nearest;
        return operands.constant(
            type == Type::f16 ? formats::encode<formats::F16>(value, round) : formats::encode<formats::BF16>(value, round), 16);
    }
    return operands.source(operand, bits_of(type));
}

uint32_t Form::destination(const ptx::Operand& operand, Type type) {
    const uint32_t at = operands.destination(operand, bits_of(type));
    if (at == kNone) unknown("a sink where a result is needed");
    return at;
}

void Form::destination_pair(size_t i, Type first, Type second) {
    const ptx::Operand& o = operand(i);
    out.d2 = kNone;
    if (o.kind != ptx::Operand::Kind::pair) {
        out.d = destination(o, first);
        return;
    }
    if (o.parts.size() != 2) unknown("a pair of destinations is needed");
    out.d = operands.destination(o.parts[0], bits_of(first));
    out.d2 = operands.destination(o.parts[1], bits_of(second));
    if (out.d == kNone && out.d2 == kNone) unknown("two sinks");
}

uint32_t Form::predicate(size_t i, bool* negated) {
    ptx::Operand o = operand(i);
    *negated = o.negated;
    o.negated = false;
    return operands.source(o, 1);
}

void Form::fill(Type d, Type a, Type b, Type c) {
    out.d = destination(0, d);
    out.a = source(1, a);
    if (b != Type::none) out.b = source(2, b);
    if (c != Type::none) out.c = source(3, c);
}

}  // namespace vgpu

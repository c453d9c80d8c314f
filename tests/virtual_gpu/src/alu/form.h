// The form of a statement while it is decoded: modifiers are taken one by one, and what nobody took is an error.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string_view>

#include "alu/alu.h"

namespace vgpu {

enum class Type : uint8_t {
    none,
    pred,
    b8,
    b16,
    b32,
    b64,
    b128,
    u8,
    u16,
    u32,
    u64,
    s8,
    s16,
    s32,
    s64,
    u16x2,
    s16x2,
    f16,
    f16x2,
    bf16,
    bf16x2,
    f32,
    f32x2,
    f64,
};

// none: not a type.
Type type_named(std::string_view name);
int bits_of(Type type);
inline bool is_float(Type t) { return t >= Type::f16; }
inline bool is_half(Type t) { return t >= Type::f16 && t <= Type::bf16x2; }

class Form {
public:
    Form(const ptx::Statement& statement, Operands& operands, Instruction& out)
        : statement(statement), operands(operands), out(out) {}

    [[noreturn]] void unknown(std::string_view why = "unknown form") const;
    void require(bool known) const {
        if (!known) unknown();
    }

    // Takes a modifier, if it is there.
    bool take(std::string_view modifier);
    // Takes one of these, and says which; -1: none of them.
    int take_one(std::initializer_list<std::string_view> modifiers);
    // The last modifier, where that is a type; not taken.
    Type last_type() const;
    // Takes the last modifier that is still there as a type; none: it is no type.
    Type take_type();
    // All modifiers are taken, and there are so many operands.
    void finish(size_t operand_count) const;

    const ptx::Operand& operand(size_t i) const;
    // Offsets of operand i. A literal for a 16-bit float is rounded to it.
    uint32_t source(size_t i, Type type) { return source(operand(i), type); }
    uint32_t source(const ptx::Operand& operand, Type type);
    uint32_t destination(size_t i, Type type) { return destination(operand(i), type); }
    uint32_t destination(const ptx::Operand& operand, Type type);  // no sink
    // d|p or d alone: fills out.d and out.d2 (kNone where there is no such); either may be a sink where sinks are allowed.
    void destination_pair(size_t i, Type first, Type second);
    // A predicate, perhaps negated.
    uint32_t predicate(size_t i, bool* negated);
    // d, a, b, c of these types into out; needs finish() before.
    void fill(Type d, Type a, Type b = Type::none, Type c = Type::none);

    const ptx::Statement& statement;
    Operands& operands;
    Instruction& out;

private:
    uint32_t taken_ = 0;  // a bit a modifier
};

}  // namespace vgpu

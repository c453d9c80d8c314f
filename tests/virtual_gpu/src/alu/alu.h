// Instructions that touch registers alone: decoded once into a function over 32 lanes.
//
// A warp's register file is one array, 64-byte aligned. A register is a row of it:
//   1 to 32 bits   uint32_t[32], the value in the low bits, the rest zero
//   64 bits        uint64_t[32]
//   128 bits       two rows of uint64_t[32], low half first
//   predicate      one uint32_t, a bit a lane
// Constants and special registers are registers too, filled before the kernel starts, so every operand is an offset.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ptx/module.h"

namespace vgpu {

inline constexpr int kLanes = 32;
inline constexpr uint32_t kNone = UINT32_MAX;

struct Instruction;

// regs: the register file. mask: the lanes that execute; the others' registers keep their values. mask != 0.
using Alu = void (*)(const Instruction& in, std::byte* regs, uint32_t mask);

// One decoded instruction, as the interpreter's loop sees it: a cache line.
struct Instruction {
    Alu run = nullptr;    // an ALU instruction; null: the interpreter's own (memory, branches, barriers)
    uint16_t opcode = 0;  // the interpreter's own instructions: its enum; 0 for an ALU instruction
    uint8_t flags = 0;
    uint8_t type = 0;        // free for whoever decodes
    uint32_t guard = kNone;  // offset of the guard's predicate; kNone: none
    uint32_t d = kNone;      // offsets of registers: destination,
    uint32_t d2 = kNone;     // second destination (setp p|q, shfl d|p; kNone: none),
    uint32_t a = kNone, b = kNone, c = kNone;
    uint32_t member = kNone;         // membermask register of a collective
    uint32_t small = 0;              // free for whoever decodes: a lookup table, a rounding mode
    const uint32_t* more = nullptr;  // offsets of further operands (vectors, mma), owned by the kernel
    uint64_t immediate = 0;
};
static_assert(sizeof(Instruction) == 64);

inline constexpr uint8_t kGuardNegated = 1;
// All lanes of `member` (or, without one, all of the warp) have to be here before it runs; `mask` is then those lanes.
inline constexpr uint8_t kCollective = 2;

// What a decoder asks of the kernel that it decodes for.
class Operands {
public:
    virtual ~Operands() = default;
    // The offset of a register, special register, or a constant made from an integer, float or symbol's address, for an
    // operand read as `bits` bits (1: a predicate; 8 to 128). A float literal for a 16- or 32-bit type is written as 0f...:
    // its bits are taken as they are for 32 bits, converted by the caller otherwise (constant()). A decimal f64 literal
    // read as 32 bits is rounded to f32. A negated predicate (!%p) comes back as a fresh register that is kept up to date:
    // never, throws; read `operand.negated` yourself.
    // Throws ptx::SyntaxError naming the operand if it is none of those or its register has another width class.
    virtual uint32_t source(const ptx::Operand& operand, int bits) = 0;
    // The offset of a register to be written; kNone for the sink "_".
    virtual uint32_t destination(const ptx::Operand& operand, int bits) = 0;
    // A register that always holds `value` in every lane.
    virtual uint32_t constant(uint64_t value, int bits) = 0;
    // The width class of a register: 1 (predicate), 16, 32, 64 or 128; a register of 8 bits counts as 16.
    virtual int width(const ptx::Operand& operand) = 0;
    // Storage for `n` offsets that lives as long as the kernel.
    virtual uint32_t* list(size_t n) = 0;
    // 80, 90, ...: the module's .target
    virtual int target() const = 0;
};

// Fills in everything but guard. False: no ALU instruction of this opcode. Throws ptx::SyntaxError with the statement's text
// for an ALU opcode with a form (modifier, type) that is not known: nothing is guessed.
bool decode_alu(const ptx::Statement& statement, Operands& operands, Instruction& out);

// Typed views of a register.
inline uint32_t* u32(std::byte* regs, uint32_t at) { return reinterpret_cast<uint32_t*>(regs + at); }
inline uint64_t* u64(std::byte* regs, uint32_t at) { return reinterpret_cast<uint64_t*>(regs + at); }
inline uint32_t& predicate(std::byte* regs, uint32_t at) { return *reinterpret_cast<uint32_t*>(regs + at); }

}  // namespace vgpu

// The families of ALU instructions. Each answers false for an opcode, or a type of it, that is another family's, and throws
// ptx::SyntaxError for a form that it does not know.
#pragma once

#include "alu/alu.h"

namespace vgpu {

bool decode_integer(const ptx::Statement& statement, Operands& operands, Instruction& out);
bool decode_logic(const ptx::Statement& statement, Operands& operands, Instruction& out);
bool decode_move(const ptx::Statement& statement, Operands& operands, Instruction& out);
bool decode_float(const ptx::Statement& statement, Operands& operands, Instruction& out);
bool decode_half(const ptx::Statement& statement, Operands& operands, Instruction& out);
bool decode_warp(const ptx::Statement& statement, Operands& operands, Instruction& out);
bool decode_convert(const ptx::Statement& statement, Operands& operands, Instruction& out);
bool decode_mma(const ptx::Statement& statement, Operands& operands, Instruction& out);

}  // namespace vgpu

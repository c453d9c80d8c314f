#include "alu/families.h"

namespace vgpu {

bool decode_alu(const ptx::Statement& statement, Operands& operands, Instruction& out) {
    return decode_move(statement, operands, out) || decode_integer(statement, operands, out) ||
           decode_logic(statement, operands, out) || decode_float(statement, operands, out) ||
           decode_half(statement, operands, out) || decode_warp(statement, operands, out) ||
           decode_convert(statement, operands, out) || decode_mma(statement, operands, out);
}

}  // namespace vgpu

// Where the values between instructions lie: one allocation, cut up for the widest instruction of a program.
#pragma once

#include <cstddef>

#include "cpu/executor.h"

namespace llama_ext::cpu {

// To whole cache lines.
constexpr size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

// Angles a row of a rotation table.
inline int64_t rotation_pairs(const Program& program, const Rotation& rotation) {
    return static_cast<int64_t>(program.ropes[static_cast<size_t>(rotation.rope)].inverse_frequency.size());
}

// Points step's buffers, and own_logits [vocab], into `base`, for step->members.size() members; base may be null, to measure.
// scratch: MemberBuffers::bytes. Returns the bytes of it all.
size_t lay_out(const Program& program, const std::vector<Rotation>& rotations, size_t scratch, std::byte* base, Step* step,
               float** own_logits);

}  // namespace llama_ext::cpu

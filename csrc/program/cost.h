// What an instruction must move and compute, from its definition: the floor that a timing is held against.
#pragma once

#include <cstdint>

#include "program/program.h"

namespace llama_ext {

struct Cost {
    int64_t weight_bytes = 0;  // weights read, in the checkpoint's bits, once whatever the rows; of experts, as many as the rows
                               // can choose, if no two choose the same
    int64_t cache_bytes = 0;   // keys and values read and appended
    int64_t operations = 0;    // floating-point or integer additions and multiplications
};

// rows tokens, the first of them at `position`; logits for `logit_rows` of them.
Cost cost(const Program& program, const Instruction& instruction, int64_t rows, int64_t position, int64_t logit_rows);

}  // namespace llama_ext

// The first half of every product: its input, normalised if the instruction says so, in the forms that the weights ask for.
#pragma once

#include <initializer_list>

#include "cpu/executor.h"

namespace llama_ext::cpu {

// A set of ActivationFormat.
struct Forms {
    bool f32 = false, q15 = false;
};
Forms forms_of(std::initializer_list<const PackedWeight*> weights);

// source [rows][cols]; norm [cols] or null for no normalisation.
// In a step of one row every member makes its own copy, which is quicker than meeting at a barrier. Else rows are shared out,
// and the members meet.
Activation prepare(Step& step, int member, const float* source, int64_t rows, int64_t cols, const float* norm, float eps,
                   Forms forms);

}  // namespace llama_ext::cpu

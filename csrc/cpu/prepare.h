// The first half of every product: its input, normalised if the instruction says so, in the forms that the weights ask for.
#pragma once

#include <initializer_list>

#include "cpu/executor.h"

namespace llama_ext::cpu {

// Kinds of weights by what they can meet: floats f32 alone; BF16 that or bf16; integers q15.
struct Forms {
    bool f32 = false, bf16 = false, integers = false;
};
Forms forms_of(std::initializer_list<const PackedWeight*> weights);

// Which weights may meet activations of fewer bits in a coarse step. One digit costs what docs/architecture.md counts: the inputs
// of a feed-forward network bear it, and three quarters of a prompt's work are there.
enum class Coarse { none, bf16, all };

// source [rows][cols]; norm [cols] or null for no normalisation.
// In a step of one row every member makes its own copy, which is quicker than meeting at a barrier. Else rows are shared out,
// and the members meet.
Activation prepare(Step& step, int member, const float* source, int64_t rows, int64_t cols, const float* norm, float eps,
                   Forms forms, Coarse coarse);

}  // namespace llama_ext::cpu

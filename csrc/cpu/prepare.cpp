#include "cpu/prepare.h"

namespace llama_ext::cpu {

Forms forms_of(std::initializer_list<const PackedWeight*> weights) {
    Forms forms;
    for (const PackedWeight* w : weights) {
        if (info(w->format).activation == ActivationFormat::q15)
            forms.integers = true;
        else
            (w->format == Format::bf16 ? forms.bf16 : forms.f32) = true;
    }
    return forms;
}

Activation prepare(Step& step, int member, const float* source, int64_t rows, int64_t cols, const float* norm, float eps,
                   Forms forms, Coarse coarse) {
    const Kernels& kernels = step.kernels;
    const bool own = step.rows == 1;
    const ActivationBuffers& to = own ? step.members[static_cast<size_t>(member)].activation : step.shared;
    const Share mine = own ? Share{0, rows} : share(rows, member, step.team.size());
    const bool one_digit = step.coarse && coarse == Coarse::all;
    const bool bf16 = forms.bf16 && step.coarse && coarse != Coarse::none && kernels.bf16_product != nullptr;
    const bool f32 = forms.f32 || (forms.bf16 && !bf16);
    for (int64_t r = mine.begin; r < mine.end; ++r) {
        const float* row = source + r * cols;
        if (norm) {
            float* normalised = f32 ? to.f32 + r * cols : step.members[static_cast<size_t>(member)].row;
            kernels.rms_norm(row, norm, eps, cols, normalised);
            row = normalised;
        }
        if (forms.integers) kernels.quantize_q15(row, cols, to.q15 + r, rows, one_digit);
        if (bf16) kernels.round_bf16(row, cols, to.bf16 + bf16_offset(r, cols), kBf16Tile);
    }
    if (!own) step.team.barrier();
    return {norm ? to.f32 : source, to.q15, bf16 ? to.bf16 : nullptr, rows};
}

}  // namespace llama_ext::cpu

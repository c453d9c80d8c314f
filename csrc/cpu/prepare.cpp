#include "cpu/prepare.h"

namespace llama_ext::cpu {

Forms forms_of(std::initializer_list<const PackedWeight*> weights) {
    Forms forms;
    for (const PackedWeight* w : weights) {
        switch (info(w->format).activation) {
            case ActivationFormat::f32:
                forms.f32 = true;
                break;
            case ActivationFormat::q15:
                forms.q15 = true;
                break;
        }
    }
    return forms;
}

Activation prepare(Step& step, int member, const float* source, int64_t rows, int64_t cols, const float* norm, float eps,
                   Forms forms) {
    const Kernels& kernels = step.kernels;
    const bool own = step.rows == 1;
    const ActivationBuffers& to = own ? step.members[static_cast<size_t>(member)].activation : step.shared;
    const Share mine = own ? Share{0, rows} : share(rows, member, step.team.size());
    for (int64_t r = mine.begin; r < mine.end; ++r) {
        const float* row = source + r * cols;
        if (norm) {
            float* normalised = forms.f32 ? to.f32 + r * cols : step.members[static_cast<size_t>(member)].row;
            kernels.rms_norm(row, norm, eps, cols, normalised);
            row = normalised;
        }
        if (forms.q15) kernels.quantize_q15(row, cols, to.q15 + r, rows);
    }
    if (!own) step.team.barrier();
    return {norm ? to.f32 : source, to.q15, rows};
}

}  // namespace llama_ext::cpu

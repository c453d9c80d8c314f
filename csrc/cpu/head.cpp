#include <algorithm>
#include <cstring>

#include "cpu/bind.h"
#include "cpu/groups.h"
#include "cpu/prepare.h"

namespace llama_ext::cpu {
namespace {

struct BoundHead final : BoundInstruction {
    PackedWeight weight;
    const float* norm;
    float eps;

    void run(Step& step, int member) const override {
        const int64_t rows = step.logit_rows, hidden = step.program.hidden;
        if (rows == 0) return;
        const Activation x = prepare(step, member, step.x + (step.rows - rows) * hidden, rows, hidden, norm, eps,
                                     forms_of({&weight}), Coarse::none);
        const Share mine = share(weight.groups, member, step.team.size());
        for_each_group(step, member, weight, mine, x, 0, rows, [&](int64_t g, const float* tile) {
            const int64_t first = g * kGroup, count = std::min<int64_t>(kGroup, weight.rows - first);
            for (int64_t r = 0; r < rows; ++r)
                std::memcpy(step.logits + r * weight.rows + first, tile + r * kGroup, static_cast<size_t>(count) * sizeof(float));
        });
    }
};

}  // namespace

std::unique_ptr<BoundInstruction> bind(const Head& instruction, Binder& binder) {
    auto bound = std::make_unique<BoundHead>();
    bound->norm = binder.vector(*instruction.norm);
    bound->weight = binder.pack(*instruction.weight);
    bound->eps = instruction.eps;
    return bound;
}

}  // namespace llama_ext::cpu

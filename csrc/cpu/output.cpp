// output and down: a product added to the residual stream.
#include <algorithm>

#include "cpu/bind.h"
#include "cpu/groups.h"
#include "cpu/prepare.h"

namespace llama_ext::cpu {
namespace {

struct BoundResidualProduct final : BoundInstruction {
    PackedWeight weight;
    float* Step::* source;
    Coarse coarse;

    void run(Step& step, int member) const override {
        const Activation input =
            prepare(step, member, step.*source, step.rows, weight.cols, nullptr, 0, forms_of({&weight}), coarse);
        const Share mine = share(weight.groups, member, step.team.size());
        for_each_group(step, member, weight, mine, input, 0, step.rows, [&](int64_t g, const float* tile) {
            const int64_t first = g * kGroup, count = std::min<int64_t>(kGroup, weight.rows - first);
            for (int64_t r = 0; r < step.rows; ++r) {
                float* x = step.x + r * weight.rows + first;
                for (int64_t j = 0; j < count; ++j) x[j] += tile[r * kGroup + j];
            }
        });
    }
};

std::unique_ptr<BoundInstruction> residual_product(const Weight& weight, float* Step::* source, Coarse coarse, Binder& binder) {
    auto bound = std::make_unique<BoundResidualProduct>();
    bound->weight = binder.pack(weight);
    bound->source = source;
    bound->coarse = coarse;
    return bound;
}

}  // namespace

std::unique_ptr<BoundInstruction> bind(const Output& instruction, Binder& binder) {
    return residual_product(*instruction.weight, &Step::a, Coarse::bf16, binder);
}

std::unique_ptr<BoundInstruction> bind(const Down& instruction, Binder& binder) {
    return residual_product(*instruction.weight, &Step::h, Coarse::all, binder);
}

}  // namespace llama_ext::cpu

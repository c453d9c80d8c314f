#include <algorithm>

#include "cpu/bind.h"
#include "cpu/groups.h"
#include "cpu/prepare.h"

namespace llama_ext::cpu {
namespace {

struct BoundGateUp final : BoundInstruction {
    PackedWeight gate, up;
    const float* norm;
    float eps;

    void run(Step& step, int member) const override {
        const Activation x =
            prepare(step, member, step.x, step.rows, step.program.hidden, norm, eps, forms_of({&gate, &up}), Coarse::all);
        const Share mine = share(gate.groups, member, step.team.size());
        for_each_group(step, member, gate, up, mine, x, 0, step.rows, [&](int64_t g, const float* gates, const float* ups) {
            const int64_t first = g * kGroup, count = std::min<int64_t>(kGroup, gate.rows - first);
            for (int64_t r = 0; r < step.rows; ++r)
                step.kernels.silu_times(gates + r * kGroup, ups + r * kGroup, count, step.h + r * gate.rows + first);
        });
    }
};

}  // namespace

std::unique_ptr<BoundInstruction> bind(const GateUp& instruction, Binder& binder) {
    auto bound = std::make_unique<BoundGateUp>();
    bound->norm = binder.vector(*instruction.norm);
    bound->gate = binder.pack(*instruction.gate);
    bound->up = binder.pack(*instruction.up);
    bound->eps = instruction.eps;
    return bound;
}

}  // namespace llama_ext::cpu

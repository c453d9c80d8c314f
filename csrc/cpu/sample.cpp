#include "cpu/bind.h"
#include "cpu/sampler.h"

namespace llama_ext::cpu {
namespace {

struct BoundSample final : BoundInstruction {
    void run(Step& step, int member) const override {
        if (member != 0 || !step.draw) return;
        const Draw& draw = *step.draw;
        const uint32_t vocab = static_cast<uint32_t>(step.program.vocab);
        const uint64_t position = static_cast<uint64_t>(step.position + step.rows);
        step.id = step.sampler->sample(step.logits + (step.logit_rows - 1) * step.program.vocab, vocab, draw.history,
                                       draw.history_size, draw.params, position);
    }
};

}  // namespace

std::unique_ptr<BoundInstruction> bind(const Sample&, Binder&) { return std::make_unique<BoundSample>(); }

}  // namespace llama_ext::cpu

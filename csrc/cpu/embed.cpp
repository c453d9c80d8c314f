#include "cpu/bind.h"

namespace llama_ext::cpu {
namespace {

struct BoundEmbed final : BoundInstruction {
    WeightPtr table;

    void run(Step& step, int member) const override {
        const Share mine = share(step.rows, member, step.team.size());
        const size_t stride = row_bytes(table->format, table->cols);
        for (int64_t r = mine.begin; r < mine.end; ++r)
            dequantize(table->format, table->data + static_cast<size_t>(step.ids[r]) * stride, table->cols,
                       step.x + r * table->cols);
    }
};

}  // namespace

std::unique_ptr<BoundInstruction> bind(const Embed& instruction, Binder&) {
    auto bound = std::make_unique<BoundEmbed>();
    bound->table = instruction.table;
    return bound;
}

}  // namespace llama_ext::cpu

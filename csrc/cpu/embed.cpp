#include <vector>

#include "cpu/bind.h"

namespace llama_ext::cpu {
namespace {

struct BoundEmbed final : BoundInstruction {
    Format format;
    int64_t cols;
    WeightBytes table;    // [vocab] rows as in the file, or null: the head's packed copy serves
    PackedWeight packed;  // [vocab, hidden]

    void run(Step& step, int member) const override {
        const Share mine = share(step.rows, member, step.team.size());
        const size_t stride = row_bytes(format, cols);
        std::byte* unpacked = step.members[static_cast<size_t>(member)].bytes;
        for (int64_t r = mine.begin; r < mine.end; ++r) {
            const int64_t id = step.ids[r];
            const std::byte* row = unpacked;
            if (table.data)
                row = table.data + static_cast<size_t>(id) * stride;
            else
                unpack_row(format, cols, packed.data + static_cast<size_t>(id / kGroup) * packed.group_bytes,
                           static_cast<int>(id % kGroup), unpacked);
            dequantize(format, row, cols, step.x + r * cols);
        }
    }
};

}  // namespace

std::unique_ptr<BoundInstruction> bind(const Embed& instruction, Binder& binder) {
    auto bound = std::make_unique<BoundEmbed>();
    const Weight& table = *instruction.table;
    bound->format = table.format;
    bound->cols = table.cols;
    // Bytes that would have to be made, and that the head has packed anyway, are not kept a second time.
    if (!table.data && binder.is_head(table))
        bound->packed = binder.pack(table), bound->format = bound->packed.format;
    else
        bound->table = binder.keep(table);
    binder.scratch(row_bytes(bound->format, table.cols));
    return bound;
}

}  // namespace llama_ext::cpu

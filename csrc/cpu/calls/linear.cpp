// A product with weights as a file holds them. Each group of 16 rows is packed into scratch before it is used and forgotten
// after: a call costs one more pass over the weights than a session's product, which packs once.
#include <algorithm>
#include <vector>

#include "cpu/calls/calls.h"

namespace llama_ext::cpu {
namespace {

constexpr int64_t kRowBlock = 64;  // tokens a tile of outputs holds

struct Input {
    std::vector<float> f32;
    std::vector<Q15Block> q15;
};

Activation prepare(const Kernels& kernels, const LinearCall& call, Input* input, const Parallel& parallel) {
    const bool q15 = info(call.format).activation == ActivationFormat::q15;
    const bool as_it_is = call.type == ValueType::f32;
    const size_t values = static_cast<size_t>(call.rows * call.cols);
    if (!as_it_is) input->f32.resize(values);
    if (q15) input->q15.resize(values / 32);
    const float* f32 = as_it_is ? static_cast<const float*>(call.x) : input->f32.data();
    if (q15 || !as_it_is) {
        parallel(call.rows, grain(call.cols), [&](int64_t begin, int64_t end) {
            for (int64_t at_row = begin; at_row < end; ++at_row) {
                const int64_t first = at_row * call.cols;
                if (!as_it_is) widen(call.type, at(call.x, call.type, first), call.cols, input->f32.data() + first);
                if (q15) kernels.quantize_q15(f32 + first, call.cols, input->q15.data() + at_row, call.rows, false);
            }
        });
    }
    return {f32, input->q15.data(), nullptr, call.rows};
}

}  // namespace

void linear(const Kernels& kernels, const LinearCall& call, const Parallel& parallel) {
    Input input;
    const Activation x = prepare(kernels, call, &input, parallel);
    const size_t group_bytes = packed_group_bytes(call.format, call.cols), stride = row_bytes(call.format, call.cols);
    const ProductFn product = kernels.products[static_cast<size_t>(packed_format(call.format))];
    const int64_t groups = (call.outputs + kGroup - 1) / kGroup;
    parallel(groups, grain(kGroup * call.cols), [&](int64_t begin, int64_t end) {
        std::vector<std::byte> packed(group_bytes);
        std::vector<float> tile(static_cast<size_t>(std::min(call.rows, kRowBlock) * kGroup));
        const PackedWeight weight{packed_format(call.format), kGroup, call.cols, 1, group_bytes, packed.data()};
        for (int64_t g = begin; g < end; ++g) {
            const int64_t first = g * kGroup, count = std::min<int64_t>(kGroup, call.outputs - first);
            pack_group(call.format, call.cols, call.weight + static_cast<size_t>(first) * stride, static_cast<int>(count),
                       packed.data());
            for (int64_t row = 0; row < call.rows; row += kRowBlock) {
                const int64_t rows = std::min(kRowBlock, call.rows - row);
                product(weight, 0, 1, x, row, rows, tile.data());
                for (int64_t r = 0; r < rows; ++r)
                    narrow(call.type, tile.data() + r * kGroup, count, at(call.out, call.type, (row + r) * call.outputs + first));
            }
        }
    });
}

}  // namespace llama_ext::cpu

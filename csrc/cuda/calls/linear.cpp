// A product with weights as a file holds them. They are packed into scratch before they are used and forgotten after: decoding
// packs once, when a model is loaded.
#include <algorithm>

#include "cuda/calls/calls.h"
#include "cuda/check.h"
#include "cuda/kernels/repack.h"
#include "cuda/kernels/step.h"
#include "cuda/pack.h"
#include "cuda/product.h"

namespace llama_ext::cuda::calls {
namespace {

constexpr int64_t kProductRows = 16;  // the most that a product without tensor cores takes

const char* repack_kernel(Format format) {
    switch (format) {
        case Format::f32:
            return "repack_32";
        case Format::f16:
        case Format::bf16:
            return "repack_16";
        case Format::q8_0:
            return "repack_q8_0";
        case Format::q4_0:
            return "repack_q4_0";
        case Format::q4_1:
            return "repack_q4_1";
        case Format::q5_0:
            return "repack_q5_0";
        case Format::q5_1:
            return "repack_q5_1";
        case Format::q4_k:
            return "repack_q4_k";
        case Format::q5_k:
            return "repack_q5_k";
        case Format::q6_k:
            return "repack_q6_k";
        case Format::mxfp8:
            break;
    }
    return "repack_mxfp8";
}

// Whether a file's rows are what packed ones are.
bool packed_already(const Linear& call) {
    return info(call.format).block == 1 && row_bytes(call.format, call.cols) % 16 == 0 && aligned({call.weight}, 256);
}

}  // namespace

Plan repack(const RepackCall& call) {
    constexpr const char* name = "repack";
    product_of(name, "weight", {call.rows, call.cols, 4});
    require_range(name, "rows", call.rows, 1, INT32_MAX);
    require_range(name, "cols", call.cols, 1, INT32_MAX);
    require_address(name, "source", call.source, 16);
    require_address(name, "packed", call.packed, 256);
    const Planes at = planes(call.format, call.rows, call.cols);
    const char* kernel = repack_kernel(call.format);
    if (info(call.format).block == 1) {
        const int64_t pieces = plane_rows(call.format, call.cols).quants / 16;
        return {
            {{kernel,
              {blocks(name, call.rows * pieces, kRepackFloatThreads), 1, 1},
              {kRepackFloatThreads, 1, 1},
              0,
              {{"source", call.source}, {"packed", call.packed}, {"rows", call.rows}, {"cols", call.cols}, {"pieces", pieces}},
              true}},
            {}};
    }
    const int64_t count = call.rows * (call.cols / kBlock);
    return {{{kernel,
              {blocks(name, count, kRepackBlocks), 1, 1},
              {kRepackBlocks, 1, 1},
              0,
              {{"source", call.source},
               {"packed", call.packed},
               {"high", at.high},
               {"scales", at.scales},
               {"supers", at.supers},
               {"blocks", count}},
              true}},
            {}};
}

Plan build(const Linear& call, const Card& card, Scratch& scratch) {
    constexpr const char* name = "linear";
    product_of(name, "weight", {call.outputs, call.cols, 4});
    const int64_t inputs = product_of(name, "x", {call.rows, call.cols, 4}) / 4;
    const int64_t results = product_of(name, "out", {call.rows, call.outputs, 4}) / 4;
    const bool narrow = call.type == Type::bf16;
    Plan plan;
    Address x{call.x}, out{call.out}, weight{call.weight};
    require_address(name, "weight", weight, 16);
    require_address(name, "out", out, 4);
    if (!packed_already(call)) {
        weight = scratch.take(planes(call.format, call.outputs, call.cols).bytes);
        append(&plan, repack({{call.weight}, call.format, call.outputs, call.cols, weight}));
    }
    if (narrow) {
        x = scratch.take(4 * inputs);
        out = scratch.take(4 * results);
        from_bf16(&plan, {call.x}, x, inputs);
    }
    ProductCall product{};
    product.weight = {call.format, call.outputs, call.cols, weight};
    product.which = Rows::all;
    product.epilogue = Epilogue::store;
    product.y_stride = call.outputs;
    const auto multiply = [&](Plan (*product_of_rows)(const ProductCall&, const Card&), int64_t row, int64_t rows) {
        product.step = scratch.take(sizeof(Step));
        product.x = {x.value + 4 * static_cast<uint64_t>(row * call.cols)};
        product.y = {out.value + 4 * static_cast<uint64_t>(row * call.outputs)};
        product.max_rows = static_cast<int>(rows);
        write_step(&plan, product.step, 0, rows);
        append(&plan, product_of_rows(product, card));
    };
    // Tensor cores take no float32: such weights are read again for each 16 rows.
    if (call.rows > kProductRows && call.format != Format::f32) {
        multiply(cuda::product_tiles, 0, call.rows);
    } else {
        for (int64_t row = 0; row < call.rows; row += kProductRows)
            multiply(cuda::product, row, std::min(kProductRows, call.rows - row));
    }
    if (narrow) to_bf16(&plan, out, {call.out}, results);
    return plan;
}

}  // namespace llama_ext::cuda::calls

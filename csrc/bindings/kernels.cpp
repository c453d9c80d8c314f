// Single kernels of one SIMD level, for tests: each takes and gives numpy arrays and does what the executor does around it.
#include "cpu/kernels.h"

#include <pybind11/numpy.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "program/half.h"

namespace py = pybind11;

namespace llama_ext {
namespace {

using Array = py::array_t<float, py::array::c_style>;

void require(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

// What prepare() makes of x [rows][cols] for weights that take q15.
std::vector<cpu::Q15Block> quantized(const cpu::Kernels& kernels, const float* x, int64_t rows, int64_t cols, bool coarse) {
    std::vector<cpu::Q15Block> blocks(static_cast<size_t>(rows * (cols / 32)));
    for (int64_t r = 0; r < rows; ++r) kernels.quantize_q15(x + r * cols, cols, blocks.data() + r, rows, coarse);
    return blocks;
}

// y = W x for rows first, first + 1 .. of x, with the weight packed as the executor packs it; coarse: as it does for a prompt's.
py::array_t<float> product(const Weight& weight, const Array& x, const std::string& simd, bool coarse, int64_t first) {
    require(x.ndim() == 2 && x.shape(1) == weight.cols, "x must be [rows, the weight's columns]");
    require(first >= 0 && first < x.shape(0), "first must be a row of x");
    const cpu::Kernels& kernels = cpu::choose_kernels(simd.c_str());
    const int64_t rows = x.shape(0), groups = (weight.rows + cpu::kGroup - 1) / cpu::kGroup;
    const size_t group_bytes = cpu::packed_group_bytes(weight.format, weight.cols),
                 stride = row_bytes(weight.format, weight.cols);
    std::vector<std::byte> packed(static_cast<size_t>(groups) * group_bytes);
    for (int64_t g = 0; g < groups; ++g) {
        const int in_group = static_cast<int>(std::min<int64_t>(cpu::kGroup, weight.rows - g * cpu::kGroup));
        cpu::pack_group(weight.format, weight.cols, weight.data + static_cast<size_t>(g * cpu::kGroup) * stride, in_group,
                        packed.data() + static_cast<size_t>(g) * group_bytes);
    }
    const cpu::PackedWeight w{cpu::packed_format(weight.format), weight.rows, weight.cols, groups, group_bytes, packed.data()};
    const bool integers = info(weight.format).activation == ActivationFormat::q15, to_bf16 = coarse && !integers;
    const cpu::ProductFn product = to_bf16 ? kernels.bf16_product : kernels.products[static_cast<size_t>(w.format)];
    require(product && (!to_bf16 || w.format == Format::bf16), "this level has no such product");
    const std::vector<cpu::Q15Block> q15 = quantized(kernels, x.data(), integers ? rows : 0, weight.cols, coarse);
    const int64_t tiles = (rows + cpu::kBf16Tile - 1) / cpu::kBf16Tile;
    std::vector<cpu::Bf16Pair> bf16(static_cast<size_t>(to_bf16 ? cpu::bf16_offset(tiles * cpu::kBf16Tile, weight.cols) : 0));
    for (int64_t r = 0; to_bf16 && r < rows; ++r)
        kernels.round_bf16(x.data() + r * weight.cols, weight.cols, bf16.data() + cpu::bf16_offset(r, weight.cols),
                           cpu::kBf16Tile);
    const cpu::Activation activation{x.data(), q15.data(), bf16.data(), rows};
    const int64_t out_rows = rows - first;
    std::vector<float> tile(static_cast<size_t>(cpu::kGroupsAtOnce * out_rows * cpu::kGroup));
    py::array_t<float> out({out_rows, weight.rows});
    float* to = out.mutable_data();
    for (int64_t g = 0; g < groups; g += cpu::kGroupsAtOnce) {
        const int64_t some = std::min(cpu::kGroupsAtOnce, groups - g);
        product(w, g, some, activation, first, out_rows, tile.data());
        for (int64_t r = 0; r < out_rows; ++r)
            for (int64_t i = g * cpu::kGroup; i < std::min(weight.rows, (g + some) * cpu::kGroup); ++i)
                to[r * weight.rows + i] =
                    tile[static_cast<size_t>(((i / cpu::kGroup - g) * out_rows + r) * cpu::kGroup + i % cpu::kGroup)];
    }
    return out;
}

// (integers [n] as the digits stand for them, scales [n / 32], sums [n / 16])
py::tuple quantize_q15(const Array& x, const std::string& simd, bool coarse) {
    require(x.ndim() == 1 && x.shape(0) % 32 == 0, "x must be [n], n a multiple of 32");
    const int64_t n = x.shape(0);
    const std::vector<cpu::Q15Block> blocks = quantized(cpu::choose_kernels(simd.c_str()), x.data(), 1, n, coarse);
    py::array_t<int32_t> integers(n), sums(n / 16);
    py::array_t<float> scales(n / 32);
    for (int64_t i = 0; i < n; ++i) {
        const cpu::Q15Block& block = blocks[static_cast<size_t>(i / 32)];
        integers.mutable_at(i) = (int32_t{1} << cpu::kDigitShift) * block.high[i % 32] + block.low[i % 32];
        scales.mutable_at(i / 32) = block.scale;
        sums.mutable_at(i / 16) = -block.minus_of[i % 32 / 16];
    }
    return py::make_tuple(integers, scales, sums);
}

py::array_t<float> rms_norm(const Array& x, const py::object& weight, float eps, const std::string& simd) {
    require(x.ndim() == 1, "x must be [n]");
    Array w;
    if (!weight.is_none()) {
        w = weight.cast<Array>();
        require(w.ndim() == 1 && w.shape(0) == x.shape(0), "weight must be as long as x");
    }
    py::array_t<float> out(x.shape(0));
    cpu::choose_kernels(simd.c_str())
        .rms_norm(x.data(), weight.is_none() ? nullptr : w.data(), eps, x.shape(0), out.mutable_data());
    return out;
}

py::array_t<float> silu_times(const Array& gate, const Array& up, const std::string& simd) {
    require(gate.ndim() == 1 && up.ndim() == 1 && gate.shape(0) == up.shape(0), "gate and up must be [n]");
    py::array_t<float> out(gate.shape(0));
    cpu::choose_kernels(simd.c_str()).silu_times(gate.data(), up.data(), gate.shape(0), out.mutable_data());
    return out;
}

}  // namespace

void bind_kernels(py::module_& m) {
    py::module_ testing = m.def_submodule("testing", "Single kernels of one SIMD level, for tests.");
    testing.def(
        "e4m3",
        [](const Array& values) {
            py::array_t<uint8_t> out(values.size());
            uint8_t* to = out.mutable_data();
            for (py::ssize_t i = 0; i < values.size(); ++i) to[i] = e4m3_from_f32(values.data()[i]);
            return out;
        },
        py::arg("values"), "The codes of E4M3, uint8, of float32 values.");
    testing.def("product", &product, py::arg("weight"), py::arg("x"), py::arg("simd"), py::arg("coarse") = false,
                py::arg("first") = 0);
    testing.def("quantize_q15", &quantize_q15, py::arg("x"), py::arg("simd"), py::arg("coarse") = false);
    testing.def("rms_norm", &rms_norm, py::arg("x"), py::arg("weight"), py::arg("eps"), py::arg("simd"));
    testing.def("silu_times", &silu_times, py::arg("gate"), py::arg("up"), py::arg("simd"));
}

}  // namespace llama_ext

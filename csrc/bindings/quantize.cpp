// Weights from one format into another, rows shared out among threads.
#include "program/quantize.h"

#include <pybind11/numpy.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "cpu/kernels.h"
#include "cpu/team.h"
#include "program/file_map.h"
#include "program/instruction.h"

namespace py = pybind11;

namespace llama_ext {
namespace {

// Rows are taken in turns of about this many values: small enough that no thread is left with much when the others are done.
constexpr int64_t kTurn = 1 << 14;

// Calls convert(r, buffer [cols]) for every row on `threads` threads. Of several rows that fail, the first is reported: turns are
// begun in ascending order, and one that is begun is finished.
void for_rows(int64_t rows, int64_t cols, int threads, const std::function<void(int64_t r, float* buffer)>& convert) {
    const int64_t turn = std::max<int64_t>(1, kTurn / cols), turns = (rows + turn - 1) / turn;
    std::atomic<int64_t> next{0};
    std::mutex mutex;
    int64_t failed_row = rows;
    std::string failure;
    std::exception_ptr other;  // no memory, for one
    // A team gives its members the default floating-point mode; its jobs must not throw.
    cpu::Team team(static_cast<int>(std::min<int64_t>(threads, turns)));
    team.run([&](int) {
        int64_t r = 0;
        try {
            std::vector<float> buffer(static_cast<size_t>(cols));
            for (int64_t t; (t = next.fetch_add(1, std::memory_order_relaxed)) < turns;)
                for (r = t * turn; r < std::min(rows, (t + 1) * turn); ++r) convert(r, buffer.data());
        } catch (const std::invalid_argument& error) {
            const std::lock_guard lock(mutex);
            if (r < failed_row) {
                failed_row = r;
                failure = error.what();
            }
            next = turns;
        } catch (...) {
            const std::lock_guard lock(mutex);
            other = std::current_exception();
            next = turns;
        }
    });
    if (other) std::rethrow_exception(other);
    if (failed_row < rows) throw std::invalid_argument("row " + std::to_string(failed_row) + ": " + failure);
}

QuantizeLevel level_of(const std::string& simd) { return quantize_level(cpu::choose_kernels(simd.c_str()).name); }

// What concerns the arguments as a whole. Gives uint8 [rows, row_bytes].
py::array_t<uint8_t> make_out(Format format, int64_t rows, int64_t cols, int threads) {
    require_whole_blocks(format, cols);
    if (threads < 1) throw std::invalid_argument("threads must be 1 or more, is " + std::to_string(threads));
    return py::array_t<uint8_t>({rows, static_cast<int64_t>(row_bytes(format, cols))});
}

py::array_t<uint8_t> quantize_weight(const Weight& weight, const std::string& format_name, int threads, const std::string& simd) {
    try {
        const Format format = format_from_name(format_name);
        const QuantizeLevel level = level_of(simd);
        py::array_t<uint8_t> out = make_out(format, weight.rows, weight.cols, threads);
        std::byte* to = reinterpret_cast<std::byte*>(out.mutable_data());
        const size_t stride = row_bytes(format, weight.cols), source_stride = row_bytes(weight.format, weight.cols);
        const py::gil_scoped_release release;
        const WeightBytes bytes = weight.fetch();
        for_rows(weight.rows, weight.cols, threads, [&](int64_t r, float* buffer) {
            const std::byte* from = bytes.data + static_cast<size_t>(r) * source_stride;
            std::byte* row = to + static_cast<size_t>(r) * stride;
            dequantize(weight.format, from, weight.cols, buffer);
            if (format == weight.format) {  // nothing is lost by doing nothing
                require_finite(buffer, weight.cols);
                std::memcpy(row, from, stride);
            } else {
                quantize(format, buffer, weight.cols, row, level);
            }
        });
        give_back(bytes.data, weight.bytes());
        return out;
    } catch (const std::invalid_argument& error) {
        throw std::invalid_argument(weight.name + ": " + error.what());
    }
}

py::array_t<uint8_t> quantize_array(const py::array_t<float, py::array::c_style>& values, const std::string& format_name,
                                    int threads, const std::string& simd) {
    if (values.ndim() != 2)
        throw std::invalid_argument("values must be [rows, cols], has " + std::to_string(values.ndim()) + " dimensions");
    const Format format = format_from_name(format_name);
    const QuantizeLevel level = level_of(simd);
    const int64_t rows = values.shape(0), cols = values.shape(1);
    py::array_t<uint8_t> out = make_out(format, rows, cols, threads);
    if (rows == 0 || cols == 0) return out;
    const float* from = values.data();
    std::byte* to = reinterpret_cast<std::byte*>(out.mutable_data());
    const size_t stride = row_bytes(format, cols);
    const py::gil_scoped_release release;
    for_rows(rows, cols, threads,
             [&](int64_t r, float*) { quantize(format, from + r * cols, cols, to + static_cast<size_t>(r) * stride, level); });
    return out;
}

}  // namespace

void bind_quantize(py::module_& m) {
    m.def("quantize", &quantize_weight, py::arg("weight"), py::arg("format"), py::arg("threads") = 1, py::kw_only(),
          py::arg("simd") = "",
          "The bytes of `weight` in another format: uint8 [rows, bytes a row], the same for any number of threads and any SIMD "
          "level "
          "(`simd`, else LLAMA_EXT_SIMD, else the best). A row at a time is turned into floats. In the weight's own format they "
          "are "
          "copied.\n\nRaises ValueError, which begins with the weight's name: columns that do not fill the format's blocks, a "
          "NaN or an "
          "infinity, weights too large for the format, an unknown format.");
    m.def("quantize_array", &quantize_array, py::arg("values"), py::arg("format"), py::arg("threads") = 1, py::kw_only(),
          py::arg("simd") = "", "`quantize` for float32 values [rows, cols].");
}

}  // namespace llama_ext

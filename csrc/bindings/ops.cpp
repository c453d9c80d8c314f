// llama_ext._ops: torch.ops.llama_ext.* for CPU and CUDA tensors. A plain shared library, without Python and without pybind11,
// that speaks to torch through libtorch's stable ABI alone: one build serves torch 2.10 and every later one. The fake kernels
// and the documentation of each operator are in llama_ext/ops.py.
//
// CUDA kernels lie in _core, once: llama_ext/ops.py hands over its table of functions (csrc/cuda/calls.h).
#include <dlfcn.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <exception>
#include <limits>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/calls/calls.h"
#include "cuda/calls.h"

namespace llama_ext::ops {
namespace {

using cpu::ValueType;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// What STD_TORCH_CHECK throws, a RuntimeError in Python, without the path of this file in front.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    throw std::runtime_error(text.str());
}

std::string shape(const Tensor& tensor) {
    std::string text = "[";
    for (const int64_t size : tensor.sizes()) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
    return text + "]";
}

std::string device_of(const Tensor& tensor) {
    if (tensor.is_cpu()) return "cpu";
    return (tensor.is_cuda() ? "cuda:" : "another kind of device, of index ") + std::to_string(tensor.get_device_index());
}

// An operator runs where its first tensor lies.
void check_device(const char* op, const char* name, const Tensor& tensor) {
    if (!tensor.is_cpu() && !tensor.is_cuda())
        fail(op, ": ", name, " must be a CPU or a CUDA tensor, not on ", device_of(tensor), ".");
}

void check_beside(const char* op, const char* name, const Tensor& tensor, const char* first_name, const Tensor& first) {
    if (tensor.is_cpu() == first.is_cpu() && tensor.is_cuda() == first.is_cuda() &&
        (first.is_cpu() || tensor.get_device_index() == first.get_device_index()))
        return;
    fail(op, ": ", name, " must be on ", first_name, "'s device, ", device_of(first), ", not on ", device_of(tensor), ".");
}

// dims: what stands in the shape, for the message
void check_dims(const char* op, const char* name, const Tensor& tensor, int64_t least, int64_t most, const char* dims) {
    if (tensor.dim() < least || tensor.dim() > most) fail(op, ": ", name, " must be ", dims, ", not ", shape(tensor), ".");
}

void check_type(const char* op, const char* name, const Tensor& tensor, ScalarType type) {
    if (tensor.scalar_type() != type)
        fail(op, ": ", name, " must be ", toString(type), ", not ", toString(tensor.scalar_type()), ".");
}

ValueType value_type(const char* op, const char* name, const Tensor& tensor) {
    switch (tensor.scalar_type()) {
        case ScalarType::Float:
            return ValueType::f32;
        case ScalarType::BFloat16:
            return ValueType::bf16;
        default:
            fail(op, ": ", name, " must be float32 or bfloat16, not ", toString(tensor.scalar_type()), ".");
    }
}

constexpr int64_t kAnyDims = std::numeric_limits<int64_t>::max();

// CUDA kernels read 16 bytes at a time, where a view may begin in between.
Tensor row_major(const Tensor& tensor) {
    if (!tensor.is_contiguous()) return torch::stable::contiguous(tensor);
    if (tensor.is_cuda() && reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 != 0) return torch::stable::clone(tensor);
    return tensor;
}

// The level is chosen at the first call: one that this machine lacks is that call's error and not the library's.
const cpu::Kernels& kernels() {
    static const cpu::Kernels& chosen = []() -> const cpu::Kernels& {
        try {
            return cpu::choose_kernels();
        } catch (const std::exception& error) {
            fail(error.what(), ".");
        }
    }();
    return chosen;
}

// torch's own threads (torch.set_num_threads)
void parallel(int64_t count, int64_t grain, const cpu::Body& body) {
    if (count <= grain) {
        if (count > 0) body(0, count);
        return;
    }
    torch::stable::parallel_for(0, count, grain, body);
}

namespace calls = cuda::calls;

const calls::Table* cuda_table = nullptr;  // of _core, if that has CUDA

calls::Type type_on_cuda(ValueType type) { return type == ValueType::f32 ? calls::Type::f32 : calls::Type::bf16; }

calls::Pointer address(const Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()); }
calls::Pointer address(const std::optional<Tensor>& tensor) { return tensor ? address(*tensor) : 0; }

// torch's current stream on a device. Only a torch with CUDA has the function that tells it; as it is part of no stable header
// for a library that is built without CUDA, it is looked for by its name in what torch has loaded.
void* current_stream(const char* op, int32_t device) {
    using GetStream = int32_t (*)(int32_t, void**);
    static const GetStream get = [] {
        constexpr const char* name = "aoti_torch_get_current_cuda_stream";
        void* found = dlsym(RTLD_DEFAULT, name);
        if (!found)
            if (void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD)) found = dlsym(library, name);
        return reinterpret_cast<GetStream>(found);
    }();
    if (!get) fail(op, ": this PyTorch has no CUDA: install one that has, or pass CPU tensors.");
    void* stream = nullptr;
    if (get(device, &stream) != 0) fail(op, ": PyTorch has no current stream on cuda:", device, ".");
    return stream;
}

// Puts a call into the current stream of first's device. Its scratch is torch's, which may give it away again in stream order.
template <typename Call>
void run_on_cuda(const char* op, const Tensor& first, calls::Operation<Call> calls::Table::* which, const Call& call) {
    if (!cuda_table) fail(op, ": this build of llama_ext has no CUDA (llama_ext._core.cuda.about says why): pass CPU tensors.");
    const calls::Operation<Call>& operation = cuda_table->*which;
    const auto check = [op](const char* error) {
        if (error) fail(op, ": ", error, ".");
    };
    calls::Place place{first.get_device_index(), nullptr, 0, 0};
    check(operation.scratch_bytes(place.device, &call, &place.scratch_bytes));
    place.stream = current_stream(op, place.device);
    std::optional<Tensor> scratch;
    if (place.scratch_bytes > 0) {
        const std::vector<int64_t> size{static_cast<int64_t>(place.scratch_bytes)};
        scratch = torch::stable::new_empty(first, size, ScalarType::Byte);
        place.scratch = address(*scratch);
    }
    check(operation.run(&place, &call));
}

Tensor rms_norm(Tensor x, std::optional<Tensor> weight, double eps) {
    constexpr const char* op = "rms_norm";
    check_device(op, "x", x);
    const ValueType type = value_type(op, "x", x);
    check_dims(op, "x", x, 1, kAnyDims, "[..., n]");
    const int64_t n = x.size(x.dim() - 1);
    ValueType weight_type = ValueType::f32;
    if (weight) {
        check_beside(op, "weight", *weight, "x", x);
        weight_type = value_type(op, "weight", *weight);
        if (weight->dim() != 1 || weight->size(0) != n)
            fail(op, ": weight must be [", n, "] as x's last dimension, not ", shape(*weight), ".");
        weight = row_major(*weight);
    }
    const Tensor out = torch::stable::new_empty(x, x.sizes());
    if (x.numel() == 0) return out;
    const Tensor values = row_major(x);
    if (x.is_cuda()) {
        run_on_cuda<calls::RmsNorm>(op, x, &calls::Table::rms_norm,
                                    {type_on_cuda(type), type_on_cuda(weight_type), x.numel() / n, n, static_cast<float>(eps),
                                     address(values), address(weight), address(out)});
        return out;
    }
    std::vector<float> factors;
    if (weight) {
        factors.resize(static_cast<size_t>(n));
        cpu::widen(weight_type, weight->const_data_ptr(), n, factors.data());
    }
    cpu::rms_norm(kernels(),
                  {type, x.numel() / n, n, static_cast<float>(eps), values.const_data_ptr(), weight ? factors.data() : nullptr,
                   out.mutable_data_ptr()},
                  parallel);
    return out;
}

Tensor rope(Tensor x, Tensor positions, Tensor inverse_frequency, bool interleaved) {
    constexpr const char* op = "rope";
    check_device(op, "x", x);
    const ValueType type = value_type(op, "x", x);
    check_dims(op, "x", x, 3, kAnyDims, "[..., rows, heads, head_dim]");
    const int64_t rows = x.size(x.dim() - 3), heads = x.size(x.dim() - 2), head_dim = x.size(x.dim() - 1);
    if (head_dim % 2) fail(op, ": head_dim must be even, not ", head_dim, ".");
    check_beside(op, "positions", positions, "x", x);
    check_type(op, "positions", positions, ScalarType::Long);
    if (positions.dim() != 1 || positions.size(0) != rows)
        fail(op, ": positions must be [", rows, "], one a row of x, not ", shape(positions), ".");
    check_beside(op, "inverse_frequency", inverse_frequency, "x", x);
    check_type(op, "inverse_frequency", inverse_frequency, ScalarType::Double);
    if (inverse_frequency.dim() != 1 || inverse_frequency.size(0) != head_dim / 2)
        fail(op, ": inverse_frequency must be [", head_dim / 2, "], one a pair of x's last dimension, not ",
             shape(inverse_frequency), ".");
    const Tensor out = torch::stable::new_empty(x, x.sizes());
    if (x.numel() == 0) return out;
    const Tensor values = row_major(x), at = row_major(positions), frequency = row_major(inverse_frequency);
    if (x.is_cuda()) {
        run_on_cuda<calls::Rope>(op, x, &calls::Table::rope,
                                 {type_on_cuda(type), interleaved, x.numel() / (rows * heads * head_dim), rows, heads, head_dim,
                                  address(at), address(frequency), address(values), address(out)});
        return out;
    }
    cpu::rope(kernels(),
              {type, interleaved, x.numel() / (rows * heads * head_dim), rows, heads, head_dim, at.const_data_ptr<int64_t>(),
               frequency.const_data_ptr<double>(), values.const_data_ptr(), out.mutable_data_ptr()},
              parallel);
    return out;
}

Mask mask_from(const char* op, const std::string& name, int64_t extent) {
    if (name == "causal") {
        if (extent != 0) fail(op, ": extent belongs to chunked and sliding masks; leave it 0 for a causal one.");
        return {};
    }
    if (name != "chunked" && name != "sliding") fail(op, ": mask must be 'causal', 'chunked' or 'sliding', not '", name, "'.");
    if (extent < 1) fail(op, ": a ", name, " mask needs an extent of 1 or more, not ", extent, ".");
    return {name == "chunked" ? Mask::Kind::chunked : Mask::Kind::sliding, extent};
}

Tensor attention(Tensor q, Tensor k, Tensor v, int64_t first_position, std::string mask_name, int64_t extent,
                 std::optional<double> scale) {
    constexpr const char* op = "attention";
    check_device(op, "q", q);
    const ValueType type = value_type(op, "q", q);
    check_beside(op, "k", k, "q", q);
    check_beside(op, "v", v, "q", q);
    check_type(op, "k", k, q.scalar_type());
    check_type(op, "v", v, q.scalar_type());
    check_dims(op, "q", q, 3, 3, "[rows, heads, head_dim]");
    check_dims(op, "k", k, 3, 3, "[keys, kv_heads, head_dim]");
    if (v.dim() != 3 || v.size(0) != k.size(0) || v.size(1) != k.size(1) || v.size(2) != k.size(2))
        fail(op, ": v must have k's shape ", shape(k), ", not ", shape(v), ".");
    const int64_t rows = q.size(0), heads = q.size(1), head_dim = q.size(2), keys = k.size(0), kv_heads = k.size(1);
    if (k.size(2) != head_dim) fail(op, ": k must have q's head_dim ", head_dim, ", not ", k.size(2), ".");
    if (kv_heads == 0 ? heads != 0 : heads % kv_heads)
        fail(op, ": ", heads, " heads cannot share ", kv_heads, " key-value heads evenly.");
    if (heads > std::numeric_limits<int>::max() || head_dim > std::numeric_limits<int>::max())
        fail(op, ": q of ", shape(q), " is too large.");
    const Mask mask = mask_from(op, mask_name, extent);
    if (first_position < 0) fail(op, ": first_position must be 0 or more, not ", first_position, ".");
    if (rows > keys || first_position > keys - rows)
        fail(op, ": ", rows, " queries from position ", first_position, " on see keys up to their own position, and only ", keys,
             " keys are given.");
    const Tensor out = torch::stable::new_empty(q, q.sizes());
    if (q.numel() == 0) return out;
    const Tensor queries = row_major(q), all_keys = row_major(k), values = row_major(v);
    const double factor = scale ? *scale : 1 / std::sqrt(static_cast<double>(head_dim));
    if (q.is_cuda()) {
        run_on_cuda<calls::Attention>(
            op, q, &calls::Table::attention,
            {type_on_cuda(type), static_cast<int32_t>(heads), static_cast<int32_t>(kv_heads), static_cast<int32_t>(head_dim),
             rows, keys, first_position, mask, static_cast<float>(factor), address(queries), address(all_keys), address(values),
             address(out)});
        return out;
    }
    cpu::attention(kernels(),
                   {type, static_cast<int>(heads), static_cast<int>(kv_heads), static_cast<int>(head_dim), rows, keys,
                    first_position, mask, static_cast<float>(factor), queries.const_data_ptr(), all_keys.const_data_ptr(),
                    values.const_data_ptr(), out.mutable_data_ptr()},
                   parallel);
    return out;
}

Format weight_format(const char* op, const std::string& name) {
    try {
        return format_from_name(name);
    } catch (const std::exception& error) {
        fail(op, ": ", error.what(), ".");
    }
}

// A float tensor is a file's bytes as well, where its dtype is the format's.
std::optional<ScalarType> dtype_of(Format format) {
    switch (format) {
        case Format::f32:
            return ScalarType::Float;
        case Format::f16:
            return ScalarType::Half;
        case Format::bf16:
            return ScalarType::BFloat16;
        default:
            return std::nullopt;
    }
}

Tensor linear(Tensor x, Tensor weight, std::string format_name) {
    constexpr const char* op = "linear";
    check_device(op, "x", x);
    const ValueType type = value_type(op, "x", x);
    check_dims(op, "x", x, 1, kAnyDims, "[..., k]");
    check_beside(op, "weight", weight, "x", x);
    check_dims(op, "weight", weight, 2, 2, "[n, bytes of a row] or [n, k]");
    const Format format = weight_format(op, format_name);
    const int64_t cols = x.size(x.dim() - 1), outputs = weight.size(0);
    if (cols % info(format).block)
        fail(op, ": ", format_name, " weights come in blocks of ", info(format).block, ", which k = ", cols,
             " is no multiple of.");
    const ScalarType dtype = weight.scalar_type();
    if (dtype == ScalarType::Byte) {
        const int64_t bytes = static_cast<int64_t>(row_bytes(format, cols));
        if (weight.size(1) != bytes)
            fail(op, ": a row of ", cols, " ", format_name, " weights has ", bytes, " bytes; weight is ", shape(weight), ".");
    } else {
        if (dtype != dtype_of(format))
            fail(op, ": weight of dtype ", toString(dtype), " does not hold ", format_name, " weights.");
        if (weight.size(1) != cols) fail(op, ": weight must be [n, ", cols, "] as x's last dimension, not ", shape(weight), ".");
    }
    std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
    sizes.back() = outputs;
    const Tensor out = torch::stable::new_empty(x, sizes);
    if (out.numel() == 0) return out;
    if (cols == 0) return torch::stable::fill_(out, 0);
    const Tensor values = row_major(x), blocks = row_major(weight);
    if (x.is_cuda()) {
        run_on_cuda<calls::Linear>(
            op, x, &calls::Table::linear,
            {type_on_cuda(type), format, x.numel() / cols, cols, outputs, address(values), address(blocks), address(out)});
        return out;
    }
    cpu::linear(kernels(),
                {type, format, x.numel() / cols, cols, outputs, values.const_data_ptr(),
                 static_cast<const std::byte*>(blocks.const_data_ptr()), out.mutable_data_ptr()},
                parallel);
    return out;
}

Scoring scoring_from(const char* op, const std::string& name) {
    if (name != "softmax" && name != "sigmoid") fail(op, ": scoring must be 'softmax' or 'sigmoid', not '", name, "'.");
    return name == "softmax" ? Scoring::softmax : Scoring::sigmoid;
}

std::tuple<Tensor, Tensor> moe_route(Tensor logits, int64_t top_k, std::string scoring_name) {
    constexpr const char* op = "moe_route";
    check_device(op, "logits", logits);
    const ValueType type = value_type(op, "logits", logits);
    check_dims(op, "logits", logits, 2, 2, "[rows, experts]");
    const int64_t rows = logits.size(0), experts = logits.size(1);
    if (experts > std::numeric_limits<int32_t>::max()) fail(op, ": logits of ", shape(logits), " is too large.");
    if (top_k < 1 || top_k > experts) fail(op, ": top_k must be 1 to the number of experts, ", experts, ", not ", top_k, ".");
    const Scoring scoring = scoring_from(op, scoring_name);
    const std::vector<int64_t> sizes{rows, top_k};
    const Tensor chosen = torch::stable::new_empty(logits, sizes, ScalarType::Long);
    const Tensor scores = torch::stable::new_empty(logits, sizes, ScalarType::Float);
    const Tensor values = row_major(logits);
    if (logits.is_cuda()) {
        if (rows > 0)
            run_on_cuda<calls::MoeRoute>(op, logits, &calls::Table::moe_route,
                                         {type_on_cuda(type), rows, static_cast<int32_t>(experts), static_cast<int32_t>(top_k),
                                          scoring, address(values), address(chosen), address(scores)});
        return {chosen, scores};
    }
    cpu::moe_route({type, rows, static_cast<int>(experts), static_cast<int>(top_k), scoring, values.const_data_ptr(),
                    chosen.mutable_data_ptr<int64_t>(), scores.mutable_data_ptr<float>()},
                   parallel);
    return {chosen, scores};
}

void check_scores(const char* op, const Tensor& scores, int64_t rows, int64_t top_k, const char* first_name,
                  const Tensor& first) {
    check_beside(op, "scores", scores, first_name, first);
    check_type(op, "scores", scores, ScalarType::Float);
    if (scores.dim() != 2 || scores.size(0) != rows || scores.size(1) != top_k)
        fail(op, ": scores must be [", rows, ", ", top_k, "], one a choice, not ", shape(scores), ".");
}

std::tuple<Tensor, Tensor, Tensor> moe_dispatch(Tensor x, Tensor experts, int64_t num_experts, std::optional<Tensor> scores) {
    constexpr const char* op = "moe_dispatch";
    check_device(op, "x", x);
    const ValueType type = value_type(op, "x", x);
    check_dims(op, "x", x, 2, 2, "[rows, hidden]");
    const int64_t rows = x.size(0), hidden = x.size(1);
    check_beside(op, "experts", experts, "x", x);
    check_type(op, "experts", experts, ScalarType::Long);
    if (experts.dim() != 2 || experts.size(0) != rows)
        fail(op, ": experts must be [", rows, ", top_k], one row a row of x, not ", shape(experts), ".");
    if (num_experts < 0 || num_experts > std::numeric_limits<int32_t>::max())
        fail(op, ": num_experts must be 0 to ", std::numeric_limits<int32_t>::max(), ", not ", num_experts, ".");
    const int64_t top_k = experts.size(1), choices = rows * top_k;
    if (scores) check_scores(op, *scores, rows, top_k, "x", x);
    const Tensor chosen = row_major(experts);
    const int64_t* index = chosen.const_data_ptr<int64_t>();
    // On a GPU nobody can look without waiting for it.
    for (int64_t i = 0; i < choices && x.is_cpu(); ++i)
        if (index[i] < 0 || index[i] >= num_experts)
            fail(op, ": experts[", i / top_k, ", ", i % top_k, "] is ", index[i], "; with ", num_experts,
                 " experts it must be at least 0 and below ", num_experts, ".");
    const Tensor gathered = torch::stable::new_empty(x, std::vector<int64_t>{choices, hidden});
    const Tensor offsets = torch::stable::new_empty(x, std::vector<int64_t>{num_experts + 1}, ScalarType::Long);
    const Tensor source = torch::stable::new_empty(x, std::vector<int64_t>{choices}, ScalarType::Long);
    const Tensor values = row_major(x);
    std::optional<Tensor> factors;
    if (scores) factors = row_major(*scores);
    if (x.is_cuda()) {
        if (choices == 0) {
            torch::stable::fill_(offsets, 0);
        } else if (hidden > 0) {
            run_on_cuda<calls::MoeDispatch>(
                op, x, &calls::Table::moe_dispatch,
                {type_on_cuda(type), rows, top_k, hidden, num_experts, address(values), address(chosen), address(factors),
                 address(gathered), address(offsets), address(source)});
        } else {
            fail(op, ": x on CUDA must have columns, not be ", shape(x), ".");
        }
        return {gathered, offsets, source};
    }
    cpu::moe_dispatch({type, rows, top_k, hidden, num_experts, values.const_data_ptr(), index,
                       factors ? factors->const_data_ptr<float>() : nullptr, gathered.mutable_data_ptr(),
                       offsets.mutable_data_ptr<int64_t>(), source.mutable_data_ptr<int64_t>()},
                      parallel);
    return {gathered, offsets, source};
}

// [choices]: where in source each of 0 .. choices - 1 stands
std::vector<int64_t> places(const char* op, const Tensor& source, int64_t choices) {
    const Tensor contiguous = row_major(source);
    const int64_t* choice = contiguous.const_data_ptr<int64_t>();
    std::vector<int64_t> place(static_cast<size_t>(choices), -1);
    for (int64_t i = 0; i < choices; ++i) {
        if (choice[i] < 0 || choice[i] >= choices)
            fail(op, ": source[", i, "] is ", choice[i], "; each of 0 to ", choices - 1, " must stand there once.");
        int64_t& to = place[static_cast<size_t>(choice[i])];
        if (to != -1)
            fail(op, ": source[", to, "] and source[", i, "] are both ", choice[i], "; each of 0 to ", choices - 1,
                 " must stand there once.");
        to = i;
    }
    return place;
}

Tensor moe_combine(Tensor y, Tensor source, int64_t rows, std::optional<Tensor> scores) {
    constexpr const char* op = "moe_combine";
    check_device(op, "y", y);
    const ValueType type = value_type(op, "y", y);
    check_dims(op, "y", y, 2, 2, "[rows * top_k, hidden]");
    const int64_t choices = y.size(0), hidden = y.size(1);
    if (rows < 0 || (rows == 0 ? choices != 0 : choices % rows))
        fail(op, ": y of ", shape(y), " does not hold the same number of results for each of ", rows, " rows.");
    check_beside(op, "source", source, "y", y);
    check_type(op, "source", source, ScalarType::Long);
    if (source.dim() != 1 || source.size(0) != choices)
        fail(op, ": source must be [", choices, "], one a row of y, not ", shape(source), ".");
    // Without rows any top_k will do.
    const int64_t top_k = rows ? choices / rows : scores && scores->dim() == 2 ? scores->size(1) : 0;
    if (scores) check_scores(op, *scores, rows, top_k, "y", y);
    const std::vector<int64_t> place = y.is_cpu() ? places(op, source, choices) : std::vector<int64_t>{};
    const Tensor out = torch::stable::new_empty(y, std::vector<int64_t>{rows, hidden});
    if (out.numel() == 0) return out;
    if (top_k == 0) return torch::stable::fill_(out, 0);
    const Tensor values = row_major(y);
    std::optional<Tensor> factors;
    if (scores) factors = row_major(*scores);
    if (y.is_cuda()) {
        const Tensor choice = row_major(source);
        run_on_cuda<calls::MoeCombine>(
            op, y, &calls::Table::moe_combine,
            {type_on_cuda(type), rows, top_k, hidden, address(values), address(choice), address(factors), address(out)});
        return out;
    }
    cpu::moe_combine({type, rows, top_k, hidden, values.const_data_ptr(), place.data(),
                      factors ? factors->const_data_ptr<float>() : nullptr, out.mutable_data_ptr()},
                     parallel);
    return out;
}

}  // namespace
}  // namespace llama_ext::ops

STABLE_TORCH_LIBRARY(llama_ext, m) {
    m.def("rms_norm(Tensor x, Tensor? weight, float eps) -> Tensor");
    m.def("rope(Tensor x, Tensor positions, Tensor inverse_frequency, bool interleaved) -> Tensor");
    // SymInt: a position that changes from step to step compiles once
    m.def(
        "attention(Tensor q, Tensor k, Tensor v, SymInt first_position, str mask, SymInt extent=0, float? scale=None) -> Tensor");
    m.def("linear(Tensor x, Tensor weight, str format) -> Tensor");
    m.def("moe_route(Tensor logits, int top_k, str scoring) -> (Tensor experts, Tensor scores)");
    m.def(
        "moe_dispatch(Tensor x, Tensor experts, int num_experts, Tensor? scores=None) -> "
        "(Tensor gathered, Tensor offsets, Tensor source)");
    m.def("moe_combine(Tensor y, Tensor source, SymInt rows, Tensor? scores=None) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(llama_ext, CPU, m) {
    m.impl("rms_norm", TORCH_BOX(&llama_ext::ops::rms_norm));
    m.impl("rope", TORCH_BOX(&llama_ext::ops::rope));
    m.impl("attention", TORCH_BOX(&llama_ext::ops::attention));
    m.impl("linear", TORCH_BOX(&llama_ext::ops::linear));
    m.impl("moe_route", TORCH_BOX(&llama_ext::ops::moe_route));
    m.impl("moe_dispatch", TORCH_BOX(&llama_ext::ops::moe_dispatch));
    m.impl("moe_combine", TORCH_BOX(&llama_ext::ops::moe_combine));
}

// The same functions: each looks where its tensors lie.
STABLE_TORCH_LIBRARY_IMPL(llama_ext, CUDA, m) {
    m.impl("rms_norm", TORCH_BOX(&llama_ext::ops::rms_norm));
    m.impl("rope", TORCH_BOX(&llama_ext::ops::rope));
    m.impl("attention", TORCH_BOX(&llama_ext::ops::attention));
    m.impl("linear", TORCH_BOX(&llama_ext::ops::linear));
    m.impl("moe_route", TORCH_BOX(&llama_ext::ops::moe_route));
    m.impl("moe_dispatch", TORCH_BOX(&llama_ext::ops::moe_dispatch));
    m.impl("moe_combine", TORCH_BOX(&llama_ext::ops::moe_combine));
}

// For llama_ext/ops.py, when both libraries are loaded. -> 0 if the table is not one that this library knows.
extern "C" __attribute__((visibility("default"))) int llama_ext_ops_set_cuda(const llama_ext::cuda::calls::Table* table) {
    if (table->layout != llama_ext::cuda::calls::kLayout) return 0;
    llama_ext::ops::cuda_table = table;
    return 1;
}

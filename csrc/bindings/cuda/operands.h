// What the CUDA operations take from Python: buffers, checked against the shapes of a call.
#pragma once

#include <pybind11/pybind11.h>

#include <initializer_list>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cuda/device.h"
#include "cuda/plan.h"

namespace llama_ext {

using cuda::Address;
using cuda::Device;
using cuda::Plan;

// Device memory, or a part of it.
struct Buffer {
    std::shared_ptr<const cuda::Memory> memory;
    size_t offset, bytes;

    Address address() const { return {memory->address() + offset}; }
};

inline std::string count(size_t bytes) { return std::to_string(bytes) + " bytes"; }

// The operands of one call: each must be as large as its shape says, all on one device. What they lie in outlives the plan.
class Operands {
public:
    explicit Operands(const char* operation) : operation_(operation) {}

    Address operator()(const char* argument, const Buffer& buffer, size_t bytes) {
        const std::string what = std::string(operation_) + ": " + argument;
        if (buffer.bytes < bytes)
            throw std::invalid_argument(what + " has " + count(buffer.bytes) + ", its shape needs " + count(bytes));
        if (device_ && buffer.memory->device().context() != device_->context())
            throw std::invalid_argument(what + " lies on another device than the operands before it");
        device_ = &buffer.memory->device();
        owners_.push_back(buffer.memory);
        return buffer.address();
    }
    Address operator()(const char* argument, const std::optional<Buffer>& buffer, size_t bytes) {
        return buffer ? (*this)(argument, *buffer, bytes) : Address{};
    }

    const Device& device() const { return *device_; }
    Plan keep(Plan plan) {
        plan.owners = std::move(owners_);
        return plan;
    }

private:
    const char* operation_;
    const Device* device_ = nullptr;
    std::vector<std::shared_ptr<const void>> owners_;
};

// Bytes of a shape. A negative or absurd size counts as nothing here: the operation's own check names it.
inline size_t bytes_of(std::initializer_list<int64_t> shape, size_t element_bytes) {
    size_t bytes = element_bytes;
    for (const int64_t size : shape) {
        if (size < 0 || size > INT32_MAX || __builtin_mul_overflow(bytes, static_cast<size_t>(size), &bytes)) return 0;
    }
    return bytes;
}

// The operations, a file each.
void bind_cuda_attention(pybind11::module_& m);
void bind_cuda_calls(pybind11::module_& m);
void bind_cuda_attention_prefill(pybind11::module_& m);
void bind_cuda_device(pybind11::module_& m);
void bind_cuda_embed(pybind11::module_& m);
void bind_cuda_executor(pybind11::module_& m);
void bind_cuda_moe(pybind11::module_& m);
void bind_cuda_pack(pybind11::module_& m);
void bind_cuda_product(pybind11::module_& m);
void bind_cuda_rms_norm(pybind11::module_& m);
void bind_cuda_route(pybind11::module_& m);
void bind_cuda_sample(pybind11::module_& m);
void bind_cuda_rope(pybind11::module_& m);

}  // namespace llama_ext

// The kernels built into this library: a fatbin a file of csrc/cuda/kernels.
#pragma once

#include <span>
#include <string_view>

namespace llama_ext::cuda {

struct Fatbin {
    std::string_view name;  // the file's, without .cu; the names of its kernels begin with it
    const void* image;
};

std::span<const Fatbin> fatbins();

}  // namespace llama_ext::cuda

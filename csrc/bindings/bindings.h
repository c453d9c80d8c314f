// The parts of llama_ext._core, a file each.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "program/program.h"

namespace llama_ext {

void bind_program(pybind11::module_& m);
void bind_executor(pybind11::module_& m);
void bind_kernels(pybind11::module_& m);
void bind_quantize(pybind11::module_& m);
void bind_sampling(pybind11::module_& m);
void bind_cuda(pybind11::module_& m);

// "bf16" -> the format; throws std::invalid_argument.
CacheFormat cache_format(const std::string& name);

// Raises what a sampler's negative result stands for; does nothing for an id.
void raise_sampling_error(int32_t id, int64_t vocab);

}  // namespace llama_ext

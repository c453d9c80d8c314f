// The parts of llama_ext._core, a file each.
#pragma once

#include <pybind11/pybind11.h>

namespace llama_ext {

void bind_program(pybind11::module_& m);
void bind_executor(pybind11::module_& m);
void bind_kernels(pybind11::module_& m);
void bind_sampling(pybind11::module_& m);

}  // namespace llama_ext

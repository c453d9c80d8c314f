// The kernels, compiled: code for each architecture of the build, and PTX that a driver compiles for later ones.
#pragma once

namespace llama_ext::cuda {

const void* fatbin();

}  // namespace llama_ext::cuda

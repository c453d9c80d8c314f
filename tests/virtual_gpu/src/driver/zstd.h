// Zstandard (RFC 8878), as nvcc --compress-mode=size compresses what is in a fatbin. By the system's libzstd.so.1, which is
// opened when it is first needed: compilers and package managers bring it, its header less often.
#pragma once

#include <cstddef>
#include <string>

namespace vgpu::driver {

// Raises what refuse() does where the frame is broken, is not of `bytes` bytes, or there is no libzstd.so.1.
std::string decompress_zstd(const std::byte* frame, size_t frame_bytes, size_t bytes);

}  // namespace vgpu::driver

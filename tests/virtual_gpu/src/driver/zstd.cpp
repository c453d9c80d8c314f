#include "driver/zstd.h"

#include <dlfcn.h>

#include "driver/state.h"

namespace vgpu::driver {

std::string decompress_zstd(const std::byte* frame, size_t frame_bytes, size_t bytes) {
    using Decompress = size_t(void*, size_t, const void*, size_t);
    static const auto decompress = [] {
        void* library = dlopen("libzstd.so.1", RTLD_NOW | RTLD_LOCAL);
        return library ? reinterpret_cast<Decompress*>(dlsym(library, "ZSTD_decompress")) : nullptr;
    }();
    if (!decompress)
        refuse(CUDA_ERROR_NO_BINARY_FOR_GPU,
               "the fatbin is compressed and there is no libzstd.so.1: install Zstandard's library (Debian: libzstd1)");
    std::string plain(bytes, '\0');
    // An error is a number above every size.
    if (decompress(plain.data(), plain.size(), frame, frame_bytes) != bytes)
        refuse(CUDA_ERROR_INVALID_IMAGE, "compressed content of a fatbin is broken");
    return plain;
}

}  // namespace vgpu::driver

// cuGetProcAddress, and the names of errors.
#include <algorithm>
#include <cctype>

#include "driver/entry.h"
#include "driver/state.h"

namespace vgpu::driver {

int unserved(const char* symbol) {
    return plain(symbol, [&] {
        record("unknown_call", std::string("the virtual GPU has no ") + symbol);
        refuse(CUDA_ERROR_NOT_SUPPORTED, "the virtual GPU has no such entry point");
    });
}

namespace {

Found look_up(const char* name, void** out, int version, cuuint64_t flags) {
    require(name && out, "no name, or no place for the address");
    *out = nullptr;
    require((flags & ~cuuint64_t{CU_GET_PROC_ADDRESS_LEGACY_STREAM | CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM}) == 0,
            "unknown flags");
    if (version > driver_version())
        refuse(CUDA_ERROR_INVALID_VALUE, std::string(name) + " of version " + std::to_string(version) + "; the driver has " +
                                             std::to_string(driver_version()));
    const Found found = find_entry(name, version, flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM);
    *out = found.function;
    return found;
}

}  // namespace

}  // namespace vgpu::driver

using namespace vgpu::driver;

// As documented: what is not found is a success with a null pointer, and `status` says why.
CUresult CUDAAPI cuGetProcAddress(const char* name, void** out, int version, cuuint64_t flags,
                                  CUdriverProcAddressQueryResult* status) {
    return plain("cuGetProcAddress", [&] {
        if (status) *status = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
        const Found found = look_up(name, out, version, flags);
        if (!status) return;
        if (found.function)
            *status = CU_GET_PROC_ADDRESS_SUCCESS;
        else if (found.known)
            *status = CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT;
    });
}

// Before 12.0, without a status.
#undef cuGetProcAddress
VGPU_EXPORT CUresult CUDAAPI cuGetProcAddress(const char* name, void** out, int version, cuuint64_t flags) {
    return plain("cuGetProcAddress", [&] {
        if (!look_up(name, out, version, flags).function)
            refuse(CUDA_ERROR_NOT_FOUND, std::string("no entry point is called ") + name);
    });
}

namespace {

struct ErrorName {
    CUresult code;
    const char* name;
};

constexpr ErrorName kErrors[] = {
#define ENTRY(symbol, name, version, per_thread)
#define ERROR(code) {code, #code},
#include "entries.inc"
#undef ENTRY
#undef ERROR
};

const ErrorName* find_error(CUresult code) {
    const auto* at =
        std::find_if(std::begin(kErrors), std::end(kErrors), [&](const ErrorName& error) { return error.code == code; });
    return at == std::end(kErrors) ? nullptr : at;
}

}  // namespace

CUresult CUDAAPI cuGetErrorName(CUresult code, const char** out) {
    return plain("cuGetErrorName", [&] {
        require(out, "no place for the name");
        const ErrorName* error = find_error(code);
        *out = error ? error->name : nullptr;
        require(error, "no such error");
    });
}

// The words of the name: the driver's own sentences are not in cuda.h.
CUresult CUDAAPI cuGetErrorString(CUresult code, const char** out) {
    return plain("cuGetErrorString", [&] {
        require(out, "no place for the text");
        static std::map<CUresult, std::string> texts;
        const ErrorName* error = find_error(code);
        *out = nullptr;
        require(error, "no such error");
        std::string& text = texts[code];
        if (text.empty()) {
            text = error->name;
            text = text.substr(text.starts_with("CUDA_ERROR_") ? 11 : 5);
            for (char& c : text) c = c == '_' ? ' ' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
        }
        *out = text.c_str();
    });
}

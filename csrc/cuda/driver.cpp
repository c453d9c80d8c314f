#include "cuda/driver.h"

#include <dlfcn.h>

#include <cstdlib>

namespace llama_ext::cuda {
namespace {

// What nvcc 13 makes needs this much of a driver.
constexpr int kLeastVersion = 13000;
constexpr const char* kTooOld = "llama_ext needs a driver for CUDA 13.0 or later (580 or later): update the NVIDIA driver";

void* open_library() {
    const char* named = std::getenv("LLAMA_EXT_LIBCUDA");
    const bool chosen = named && *named;
    if (void* library = dlopen(chosen ? named : "libcuda.so.1", RTLD_NOW | RTLD_LOCAL)) return library;
    const char* text = dlerror();
    const std::string why = text ? text : "no reason given";
    if (chosen)
        throw std::runtime_error("LLAMA_EXT_LIBCUDA=" + std::string(named) + " does not load (" + why +
                                 "): name the file of a CUDA driver, or unset it to use the system's");
    throw std::runtime_error("there is no CUDA driver (" + why +
                             "): install NVIDIA's, or set LLAMA_EXT_LIBCUDA to the file of libcuda.so.1");
}

using GetProcAddress = CUresult (*)(const char*, void**, int, cuuint64_t, CUdriverProcAddressQueryResult*);

template <typename Call>
void resolve(GetProcAddress get, Call* call, const char* name, int version) {
    void* address = nullptr;
    CUdriverProcAddressQueryResult found = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    const CUresult code = get(name, &address, version, CU_GET_PROC_ADDRESS_DEFAULT, &found);
    if (code != CUDA_SUCCESS || !address)
        throw std::runtime_error("the CUDA driver has no " + std::string(name) + " of version " + std::to_string(version / 1000) +
                                 "." + std::to_string(version % 1000 / 10) + "; " + kTooOld);
    call->name = name;
    call->function = reinterpret_cast<decltype(call->function)>(address);
}

// "NAME (text)"
std::string describe(const Driver& driver, CUresult code) {
    const char* name = nullptr;
    const char* text = nullptr;
    if (driver.cuGetErrorName.function(code, &name) != CUDA_SUCCESS || !name)
        return "error " + std::to_string(static_cast<int>(code));
    if (driver.cuGetErrorString.function(code, &text) != CUDA_SUCCESS || !text) return name;
    return std::string(name) + " (" + text + ")";
}

Driver open_driver() {
    void* library = open_library();  // stays open: threads of the driver's own may run in it until the process ends
    const auto get = reinterpret_cast<GetProcAddress>(dlsym(library, "cuGetProcAddress_v2"));
    if (!get) throw std::runtime_error("the CUDA driver has no cuGetProcAddress_v2; " + std::string(kTooOld));
    Driver driver;
#define LLAMA_EXT_RESOLVE(name, version) resolve(get, &driver.name, #name, version);
    LLAMA_EXT_DRIVER_CALLS(LLAMA_EXT_RESOLVE)
#undef LLAMA_EXT_RESOLVE
    int version = 0;
    CUresult code = driver.cuDriverGetVersion.function(&version);
    if (code == CUDA_SUCCESS && version < kLeastVersion)
        throw std::runtime_error("the CUDA driver serves CUDA " + std::to_string(version / 1000) + "." +
                                 std::to_string(version % 1000 / 10) + "; " + kTooOld);
    if (code == CUDA_SUCCESS) code = driver.cuInit.function(0);
    if (code == CUDA_ERROR_NO_DEVICE)
        throw DriverError(code,
                          "the CUDA driver finds no device: check that nvidia-smi lists one and that CUDA_VISIBLE_DEVICES "
                          "does not hide it");
    if (code != CUDA_SUCCESS)
        throw DriverError(code, "the CUDA driver does not start: " + describe(driver, code) + "; check that nvidia-smi works");
    return driver;
}

}  // namespace

bool loses_context(CUresult code) {
    switch (code) {
        case CUDA_ERROR_CONTEXT_IS_DESTROYED:
        case CUDA_ERROR_ECC_UNCORRECTABLE:
        case CUDA_ERROR_NVLINK_UNCORRECTABLE:
        case CUDA_ERROR_ILLEGAL_ADDRESS:
        case CUDA_ERROR_LAUNCH_TIMEOUT:
        case CUDA_ERROR_ASSERT:
        case CUDA_ERROR_HARDWARE_STACK_ERROR:
        case CUDA_ERROR_ILLEGAL_INSTRUCTION:
        case CUDA_ERROR_MISALIGNED_ADDRESS:
        case CUDA_ERROR_INVALID_ADDRESS_SPACE:
        case CUDA_ERROR_INVALID_PC:
        case CUDA_ERROR_LAUNCH_FAILED:
        case CUDA_ERROR_CONTAINED:
        case CUDA_ERROR_EXTERNAL_DEVICE:
            return true;
        default:
            return false;
    }
}

void raise_driver_error(CUresult code, const char* call, const char* purpose) {
    std::string message = std::string(call) + " for " + purpose + ": " + describe(driver(), code);
    if (loses_context(code))
        message += "; the device is lost to this process, and with it all memory on it: start a new process";
    else if (code == CUDA_ERROR_DEVICE_UNAVAILABLE)
        message += "; another process may have the device to itself (nvidia-smi tells its compute mode), or it must be reset";
    throw DriverError(code, message);
}

const Driver& driver() {
    static const Driver opened = open_driver();
    return opened;
}

}  // namespace llama_ext::cuda

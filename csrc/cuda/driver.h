// NVIDIA's driver, opened at run time: nothing here links against it, so the extension loads where there is none. Only cuda.h is
// needed to compile, for types and numbers.
//
//     driver().cuMemAlloc("a buffer of 64 bytes", &address, 64);
//
// makes the call and throws a DriverError that names the call, what it was for, and what the driver says. The driver is opened at
// the first use, by whichever thread comes first; a failure is thrown and tried again at the next use.
#pragma once

#include <cuda.h>

#include <stdexcept>
#include <string>

namespace llama_ext::cuda {

struct DriverError : std::runtime_error {
    DriverError(CUresult code, const std::string& message) : std::runtime_error(message), code(code) {}
    CUresult code;
};

// After one of these nothing works any more in the device's context: its memory is lost, and every call of the process fails.
bool loses_context(CUresult code);

[[noreturn]] void raise_driver_error(CUresult code, const char* call, const char* purpose);

template <typename Function>
struct DriverCall;

template <typename... Parameters>
struct DriverCall<CUresult (*)(Parameters...)> {
    const char* name;
    CUresult (*function)(Parameters...);

    void operator()(const char* purpose, Parameters... arguments) const {
        const CUresult code = function(arguments...);
        if (code != CUDA_SUCCESS) raise_driver_error(code, name, purpose);
    }
    void operator()(const std::string& purpose, Parameters... arguments) const { (*this)(purpose.c_str(), arguments...); }
};

// Every entry point that we use, with the version of CUDA whose signature of it we use: the driver keeps older ones under the
// same name.
#define LLAMA_EXT_DRIVER_CALLS(X)         \
    X(cuInit, 2000)                       \
    X(cuDriverGetVersion, 2020)           \
    X(cuDeviceGetCount, 2000)             \
    X(cuDeviceGet, 2000)                  \
    X(cuDeviceGetName, 2000)              \
    X(cuDeviceGetAttribute, 2000)         \
    X(cuDeviceTotalMem, 3020)             \
    X(cuDevicePrimaryCtxRetain, 7000)     \
    X(cuDevicePrimaryCtxRelease, 11000)   \
    X(cuCtxPushCurrent, 4000)             \
    X(cuCtxPopCurrent, 4000)              \
    X(cuModuleLoadData, 2000)             \
    X(cuModuleUnload, 2000)               \
    X(cuModuleGetFunction, 2000)          \
    X(cuFuncGetAttribute, 2020)           \
    X(cuFuncSetAttribute, 9000)           \
    X(cuFuncLoad, 12040)                  \
    X(cuMemGetInfo, 3020)                 \
    X(cuMemAlloc, 3020)                   \
    X(cuMemFree, 3020)                    \
    X(cuMemHostAlloc, 2020)               \
    X(cuMemFreeHost, 2000)                \
    X(cuMemHostGetDevicePointer, 3020)    \
    X(cuMemcpyHtoDAsync, 3020)            \
    X(cuMemcpyDtoHAsync, 3020)            \
    X(cuMemcpyDtoDAsync, 3020)            \
    X(cuMemsetD8Async, 3020)              \
    X(cuStreamCreate, 2000)               \
    X(cuStreamDestroy, 4000)              \
    X(cuStreamSynchronize, 2000)          \
    X(cuEventCreate, 2000)                \
    X(cuEventDestroy, 4000)               \
    X(cuEventRecord, 2000)                \
    X(cuEventSynchronize, 2000)           \
    X(cuEventElapsedTime, 12080)          \
    X(cuStreamBeginCapture, 10010)        \
    X(cuStreamEndCapture, 10000)          \
    X(cuGraphInstantiateWithFlags, 11040) \
    X(cuGraphLaunch, 10000)               \
    X(cuGraphDestroy, 10000)              \
    X(cuGraphExecDestroy, 10000)          \
    X(cuLaunchKernelEx, 11060)            \
    X(cuGetErrorName, 6000)               \
    X(cuGetErrorString, 6000)

struct Driver {
#define LLAMA_EXT_MEMBER(name, version) DriverCall<decltype(&::name)> name;
    LLAMA_EXT_DRIVER_CALLS(LLAMA_EXT_MEMBER)
#undef LLAMA_EXT_MEMBER
};

// Opened and initialised.
const Driver& driver();

}  // namespace llama_ext::cuda

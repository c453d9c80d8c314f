#include "cuda/device.h"

#include <array>
#include <stdexcept>
#include <utility>

#include "cuda/fatbin.h"

namespace llama_ext::cuda {
namespace {

constexpr unsigned kSharedWithoutAsking = 48 * 1024;  // of a block, what the kernel itself has included

int attribute(CUdevice device, CUdevice_attribute which, const char* purpose) {
    int value = 0;
    driver().cuDeviceGetAttribute(purpose, &value, which, device);
    return value;
}

}  // namespace

Device::Device(int ordinal) {
    int count = 0;
    driver().cuDeviceGetCount("the number of devices", &count);
    if (ordinal < 0 || ordinal >= count)
        throw std::invalid_argument("there is no CUDA device " + std::to_string(ordinal) + ": the driver reports " +
                                    std::to_string(count) + ", counted from 0");
    const std::string purpose = "device " + std::to_string(ordinal);
    driver().cuDeviceGet(purpose, &handle_, ordinal);
    std::array<char, 256> name{};
    driver().cuDeviceGetName(purpose, name.data(), static_cast<int>(name.size()), handle_);
    name_ = name.data();
    driver().cuDeviceTotalMem(purpose, &memory_bytes_, handle_);
    compute_major_ = attribute(handle_, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, "the compute capability");
    compute_minor_ = attribute(handle_, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, "the compute capability");
    shared_bytes_each_ =
        attribute(handle_, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, "the shared memory of a multiprocessor");
    multiprocessors_ = attribute(handle_, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, "the number of multiprocessors");
    shared_bytes_ = attribute(handle_, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, "the size of shared memory");
    driver().cuDevicePrimaryCtxRetain(purpose, &context_, handle_);
}

Device::~Device() { driver().cuDevicePrimaryCtxRelease.function(handle_); }

Current::Current(const Device& device) { driver().cuCtxPushCurrent("the device's primary context", device.context()); }

Current::~Current() {
    CUcontext context;
    driver().cuCtxPopCurrent.function(&context);
}

size_t Device::free_bytes() const {
    const Current current(*this);
    size_t free = 0, total = 0;
    driver().cuMemGetInfo("the memory that is free", &free, &total);
    return free;
}

Memory::Memory(DevicePtr device, size_t bytes) : device_(std::move(device)), bytes_(bytes) {
    const Current current(*device_);
    const CUresult code = driver().cuMemAlloc.function(&address_, bytes);
    if (code == CUDA_ERROR_OUT_OF_MEMORY) {
        const size_t free = device_->free_bytes();
        std::string message = "a buffer of " + std::to_string(bytes) + " bytes does not fit " + device_->name() + ": of its " +
                              std::to_string(device_->memory_bytes()) + " bytes " + std::to_string(free) + " are free, ";
        // What is free may lie in pieces.
        message += bytes > free ? std::to_string(bytes - free) + " are missing" : "in no piece as large";
        throw DriverError(code, message);
    }
    if (code != CUDA_SUCCESS) raise_driver_error(code, "cuMemAlloc", ("a buffer of " + std::to_string(bytes) + " bytes").c_str());
}

Memory::~Memory() {
    if (owned_) release(*device_, [this] { driver().cuMemFree.function(address_); });
}

HostMemory::Pinned HostMemory::pin(const Device& device, size_t bytes) {
    const Current current(device);
    const std::string purpose = std::to_string(bytes) + " bytes of pinned memory";
    void* data = nullptr;
    const CUresult code = driver().cuMemHostAlloc.function(&data, bytes, CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_PORTABLE);
    if (code == CUDA_ERROR_OUT_OF_MEMORY)
        throw DriverError(code,
                          "the host cannot pin " + std::to_string(bytes) +
                              " bytes of memory: they do not fit beside what it holds, or a limit of the system forbids it");
    if (code != CUDA_SUCCESS) raise_driver_error(code, "cuMemHostAlloc", purpose.c_str());
    CUdeviceptr address = 0;
    try {
        driver().cuMemHostGetDevicePointer(purpose, &address, data, 0);
    } catch (...) {
        driver().cuMemFreeHost.function(data);
        throw;
    }
    return {static_cast<std::byte*>(data), address};
}

HostMemory::~HostMemory() {
    release(device(), [this] { driver().cuMemFreeHost.function(data_); });
}

Module::Module(DevicePtr device, const void* image) : device_(std::move(device)) {
    if (image) own_ = load(image);
}

Module::~Module() {
    release(*device_, [this] {
        if (own_) driver().cuModuleUnload.function(own_);
        for (const auto& [name, module] : built_in_) driver().cuModuleUnload.function(module);
    });
}

CUmodule Module::load(const void* image) const {
    const Current current(*device_);
    CUmodule module = nullptr;
    try {
        driver().cuModuleLoadData("the kernels", &module, image);
    } catch (const DriverError& error) {
        if (error.code != CUDA_ERROR_NO_BINARY_FOR_GPU) throw;
        throw DriverError(error.code, "the kernels hold no code for " + device_->name() + ", compute capability " +
                                          std::to_string(device_->compute_major()) + "." +
                                          std::to_string(device_->compute_minor()) +
                                          ": build llama_ext with it in LLAMA_EXT_CUDA_ARCHITECTURES");
    }
    return module;
}

CUfunction Module::find(const std::string& kernel) const {
    const Current current(*device_);
    CUfunction handle = nullptr;
    if (own_) {
        const CUresult code = driver().cuModuleGetFunction.function(&handle, own_, kernel.c_str());
        if (code == CUDA_SUCCESS) return handle;
        if (code != CUDA_ERROR_NOT_FOUND) raise_driver_error(code, "cuModuleGetFunction", kernel.c_str());
    }
    const Fatbin* file = nullptr;  // of the longest name
    for (const Fatbin& candidate : fatbins())
        if (kernel.starts_with(candidate.name) && (!file || candidate.name.size() > file->name.size())) file = &candidate;
    if (!file) throw std::invalid_argument("no file of kernels has one named " + kernel);
    auto found = built_in_.find(file->name);
    if (found == built_in_.end()) found = built_in_.emplace(file->name, load(file->image)).first;
    driver().cuModuleGetFunction(kernel, &handle, found->second, kernel.c_str());
    return handle;
}

CUfunction Module::function(const std::string& kernel, unsigned shared_bytes) const {
    const std::lock_guard lock(mutex_);
    auto found = functions_.find(kernel);
    if (found == functions_.end()) {
        const CUfunction handle = find(kernel);
        const Current current(*device_);
        driver().cuFuncLoad(kernel, handle);
        int own = 0;
        driver().cuFuncGetAttribute(kernel, &own, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, handle);
        found = functions_.emplace(kernel, Function{handle, kSharedWithoutAsking - static_cast<unsigned>(own)}).first;
    }
    Function& function = found->second;
    if (shared_bytes > function.shared_bytes) {
        const Current current(*device_);
        driver().cuFuncSetAttribute(kernel + ", " + std::to_string(shared_bytes) + " bytes of shared memory", function.handle,
                                    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, static_cast<int>(shared_bytes));
        function.shared_bytes = shared_bytes;
    }
    return function.handle;
}

}  // namespace llama_ext::cuda

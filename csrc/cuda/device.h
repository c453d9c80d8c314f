// A device, its memory, and the kernels loaded into it.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "cuda/driver.h"
#include "cuda/plan.h"

namespace llama_ext::cuda {

// A card in its primary context, the one that other libraries of the process (torch) use too: addresses and streams can be passed
// between them.
class Device {
public:
    explicit Device(int ordinal);
    ~Device();
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;

    CUcontext context() const { return context_; }
    const std::string& name() const { return name_; }
    int compute_major() const { return compute_major_; }
    int compute_minor() const { return compute_minor_; }
    int multiprocessors() const { return multiprocessors_; }
    int shared_bytes() const { return shared_bytes_; }            // the most that a block can opt in to
    int shared_bytes_each() const { return shared_bytes_each_; }  // of a multiprocessor
    size_t memory_bytes() const { return memory_bytes_; }
    Card card() const { return {multiprocessors_, shared_bytes_, shared_bytes_each_}; }

private:
    CUdevice handle_ = 0;
    CUcontext context_ = nullptr;
    std::string name_;
    int compute_major_ = 0, compute_minor_ = 0, multiprocessors_ = 0, shared_bytes_ = 0, shared_bytes_each_ = 0;
    size_t memory_bytes_ = 0;
};
using DevicePtr = std::shared_ptr<const Device>;

// Makes a device's context the calling thread's, and then what was before again.
class Current {
public:
    explicit Current(const Device& device);
    ~Current();
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;
};

// `free` in the device's context, for destructors: they have nobody to tell of a failure, and after a kernel's fault, which has
// been reported, every call fails.
template <typename Free>
void release(const Device& device, Free free) {
    if (driver().cuCtxPushCurrent.function(device.context()) != CUDA_SUCCESS) return;
    free();
    CUcontext context;
    driver().cuCtxPopCurrent.function(&context);
}

class Memory {
public:
    Memory(DevicePtr device, size_t bytes);
    ~Memory();
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    const Device& device() const { return *device_; }
    CUdeviceptr address() const { return address_; }
    size_t bytes() const { return bytes_; }

private:
    DevicePtr device_;
    CUdeviceptr address_ = 0;
    size_t bytes_;
};

// Kernels by name: those built into this library, each file's loaded when one of its kernels is first asked for.
class Module {
public:
    // image: a fatbin, a cubin, or PTX that ends in a zero, whose kernels take the place of ours of the same name; or null.
    explicit Module(DevicePtr device, const void* image = nullptr);
    ~Module();
    Module(const Module&) = delete;
    Module& operator=(const Module&) = delete;

    const Device& device() const { return *device_; }
    // Ready to be launched with so much dynamic shared memory, and loaded: the driver loads lazily otherwise, which a capture
    // does not allow.
    CUfunction function(const std::string& kernel, unsigned shared_bytes) const;

private:
    struct Function {
        CUfunction handle;
        unsigned shared_bytes;  // the most asked for so far
    };

    CUmodule load(const void* image) const;
    CUfunction find(const std::string& kernel) const;

    DevicePtr device_;
    CUmodule own_ = nullptr;  // of the image that was given
    mutable std::mutex mutex_;
    mutable std::map<std::string_view, CUmodule> built_in_;  // by the file's name
    mutable std::map<std::string, Function> functions_;
};

}  // namespace llama_ext::cuda

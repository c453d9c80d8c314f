// A device, its memory, and the kernels loaded into it.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

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
    size_t free_bytes() const;  // of its memory, at this moment
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

// Memory of the device. What does not fit is refused with how much is missing.
class Memory {
public:
    Memory(DevicePtr device, size_t bytes);
    virtual ~Memory();
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    const Device& device() const { return *device_; }
    CUdeviceptr address() const { return address_; }
    size_t bytes() const { return bytes_; }

protected:
    // Of memory that a class of its own has taken and gives back.
    Memory(DevicePtr device, size_t bytes, CUdeviceptr address)
        : device_(std::move(device)), bytes_(bytes), address_(address), owned_(false) {}

private:
    DevicePtr device_;
    size_t bytes_;
    CUdeviceptr address_ = 0;
    bool owned_ = true;
};

// Memory of the host that is pinned, so that copies from and to it need not wait for the host, and that kernels reach at
// address(), over the bus. Its bytes are whatever they are until they are written.
class HostMemory final : public Memory {
public:
    HostMemory(DevicePtr device, size_t bytes) : HostMemory(device, bytes, pin(*device, bytes)) {}
    ~HostMemory() override;

    std::byte* data() const { return data_; }

private:
    struct Pinned {
        std::byte* data;
        CUdeviceptr address;
    };
    static Pinned pin(const Device& device, size_t bytes);
    HostMemory(DevicePtr device, size_t bytes, Pinned pinned)
        : Memory(std::move(device), bytes, pinned.address), data_(pinned.data) {}

    std::byte* data_;
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
        unsigned shared_bytes;  // the most that a launch may take beside the kernel's own, unless it asks
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

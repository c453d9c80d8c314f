// Memory: allocations, copies, fills, and what a pointer is. Copies and fills take place when their turn in the stream has come,
// which is at the call.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "driver/graph.h"

namespace vgpu::driver {

bool is_device(uint64_t address) {
    uint64_t begin;
    size_t bytes;
    return device().find(address, &begin, &bytes);
}

namespace {

std::string hex(uint64_t address) {
    constexpr char kDigits[] = "0123456789abcdef";
    std::string text;
    do text.insert(text.begin(), kDigits[address & 15]);
    while (address >>= 4);
    return "0x" + text;
}

void check_range(const char* what, uint64_t address, size_t bytes) {
    if (device().holds(address, bytes)) return;
    std::string why = std::string(what) + " of " + std::to_string(bytes) + " bytes at " + hex(address);
    uint64_t begin = 0;
    size_t size = 0;
    if (device().find(address, &begin, &size))
        why += ", past the end of an allocation of " + std::to_string(size) + " bytes at " + hex(begin);
    else
        why += ": no device memory";
    refuse(CUDA_ERROR_INVALID_VALUE, why);
}

void succeed(Context& context, Outcome outcome) {
    if (outcome == Outcome::success) return;
    context.broken = code_of(outcome);
    const auto& faults = device().faults().all();
    context.why_broken = faults.empty() ? "a copy failed" : faults.back().message;
    refuse(context.broken, context.why_broken);
}

}  // namespace

void check(const Copy& copy) {
    if (copy.bytes == 0) return;
    require(copy.to && copy.from, "a copy from or to a null pointer");
    const auto check_side = [&](const char* what, uint64_t address, bool on_device) {
        if (on_device || device().of_host(address))
            check_range(what, address, copy.bytes);
        else if (is_device(address))
            refuse(CUDA_ERROR_INVALID_VALUE, "a device address where the host's is due");
    };
    check_side("a write", copy.to, copy.to_device);
    check_side("a read", copy.from, copy.from_device);
}

void run(Context& context, const Copy& copy) {
    if (copy.bytes == 0) return;
    check(copy);  // again: a graph's memory may be gone
    void* const to = reinterpret_cast<void*>(copy.to);
    const void* const from = reinterpret_cast<const void*>(copy.from);
    // Mapped memory is the host's whichever name it goes by.
    const bool to_device = copy.to_device && !device().of_host(copy.to);
    const bool from_device = copy.from_device && !device().of_host(copy.from);
    if (to_device && from_device)
        succeed(context, device().copy(copy.to, copy.from, copy.bytes));
    else if (to_device)
        succeed(context, device().write(copy.to, from, copy.bytes));
    else if (from_device)
        succeed(context, device().read(to, copy.from, copy.bytes));
    else
        std::memmove(to, from, copy.bytes);
}

void check(const Set& set) {
    require(set.element == 1 || set.element == 2 || set.element == 4, "elements of 1, 2 or 4 bytes");
    require(set.to % set.element == 0, "a misaligned address");
    if (set.width == 0 || set.height == 0) return;
    require(set.height == 1 || (set.pitch >= set.width * set.element && set.pitch % set.element == 0), "a pitch below the width");
    for (size_t row = 0; row < set.height; ++row) check_range("a fill", set.to + row * set.pitch, set.width * set.element);
}

void run(const Set& set) {
    if (set.width == 0) return;
    check(set);
    for (size_t row = 0; row < set.height; ++row) device().fill(set.to + row * set.pitch, &set.value, set.element, set.width);
}

}  // namespace vgpu::driver

using namespace vgpu;
using namespace vgpu::driver;

namespace {

uint64_t allocate(Context& context, size_t bytes) {
    require(bytes > 0, "an allocation of 0 bytes");
    const uint64_t address = device().allocate(bytes);
    if (!address)
        refuse(CUDA_ERROR_OUT_OF_MEMORY, std::to_string(bytes) + " bytes beside the " + std::to_string(device().allocated()) +
                                             " that are taken; the card has " + std::to_string(card().memory));
    context.allocations.insert(address);
    return address;
}

void release(Context& context, uint64_t address) {
    if (!context.allocations.contains(address) || !device().free(address))
        refuse(CUDA_ERROR_INVALID_VALUE, "no allocation begins at " + hex(address));
    context.allocations.erase(address);
}

// A copy or a fill of a stream, or of the host, which then waits for it.
template <typename Work>
void in_stream(const char* call, const Work& work, std::optional<CUstream> handle) {
    const auto context = current();
    const auto stream = handle ? stream_of(context, *handle) : context->legacy;
    if (!handle) refuse_during_capture(call);
    check(work);
    if (capturing(*stream)) {
        auto node = std::make_shared<vgpu::driver::Node>();
        node->work = work;
        return capture_node(*stream, node);
    }
    begin(*context, *stream);
    if constexpr (std::is_same_v<Work, Copy>)
        run(*context, work);
    else
        run(work);
    if (!handle) join(state().known, stream->clock);
}

Copy to_device(CUdeviceptr to, const void* from, size_t bytes) {
    return {to, reinterpret_cast<uint64_t>(from), bytes, true, false};
}
Copy to_host(void* to, CUdeviceptr from, size_t bytes) { return {reinterpret_cast<uint64_t>(to), from, bytes, false, true}; }
Copy on_device(CUdeviceptr to, CUdeviceptr from, size_t bytes) { return {to, from, bytes, true, true}; }
Copy anywhere(CUdeviceptr to, CUdeviceptr from, size_t bytes) { return {to, from, bytes, is_device(to), is_device(from)}; }

}  // namespace

// --- allocations ----------------------------------------------------------------------------------------------------------

CUresult CUDAAPI cuMemGetInfo(size_t* free, size_t* total) {
    return in_context("cuMemGetInfo", [&](const std::shared_ptr<Context>&) {
        require(free && total, "no place for the sizes");
        *total = card().memory;
        *free = card().memory - std::min<uint64_t>(card().memory, device().allocated());
    });
}

CUresult CUDAAPI cuMemAlloc(CUdeviceptr* out, size_t bytes) {
    return in_context("cuMemAlloc", [&](const std::shared_ptr<Context>& context) {
        require(out, "no place for the address");
        refuse_during_capture("cuMemAlloc");
        *out = allocate(*context, bytes);
    });
}

CUresult CUDAAPI cuMemAllocPitch(CUdeviceptr* out, size_t* pitch, size_t width, size_t height, unsigned int element) {
    return in_context("cuMemAllocPitch", [&](const std::shared_ptr<Context>& context) {
        require(out && pitch, "no place for the address");
        require(element == 4 || element == 8 || element == 16, "elements of 4, 8 or 16 bytes");
        refuse_during_capture("cuMemAllocPitch");
        *pitch = (width + 511) / 512 * 512;
        *out = allocate(*context, *pitch * height);
    });
}

CUresult CUDAAPI cuMemFree(CUdeviceptr address) {
    return in_context("cuMemFree", [&](const std::shared_ptr<Context>& context) {
        refuse_during_capture("cuMemFree");
        if (!address) return;
        // A card's driver waits for everything here. What is pending has its turn, but nobody may rely on it as a wait.
        flush_all(*context);
        release(*context, address);
    });
}

CUresult CUDAAPI cuMemAllocAsync(CUdeviceptr* out, size_t bytes, CUstream handle) {
    return in_context("cuMemAllocAsync", [&](const std::shared_ptr<Context>& context) {
        require(out, "no place for the address");
        const auto stream = stream_of(context, handle);
        if (capturing(*stream))
            invalidate(*stream->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the virtual GPU captures no allocations");
        begin(*context, *stream);
        *out = allocate(*context, bytes);
    });
}

CUresult CUDAAPI cuMemFreeAsync(CUdeviceptr address, CUstream handle) {
    return in_context("cuMemFreeAsync", [&](const std::shared_ptr<Context>& context) {
        const auto stream = stream_of(context, handle);
        if (capturing(*stream))
            invalidate(*stream->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the virtual GPU captures no allocations");
        begin(*context, *stream);
        if (address) release(*context, address);
    });
}

CUresult CUDAAPI cuMemGetAddressRange(CUdeviceptr* out, size_t* bytes, CUdeviceptr address) {
    return in_context("cuMemGetAddressRange", [&](const std::shared_ptr<Context>&) {
        uint64_t begin = 0;
        size_t size = 0;
        if (!device().find(address, &begin, &size)) refuse(CUDA_ERROR_NOT_FOUND, "no allocation holds " + hex(address));
        if (out) *out = begin;
        if (bytes) *bytes = size;
    });
}

CUresult CUDAAPI cuMemAllocManaged(CUdeviceptr*, size_t, unsigned int) {
    return in_context("cuMemAllocManaged", [&](const std::shared_ptr<Context>&) {
        refuse(CUDA_ERROR_NOT_SUPPORTED, "the virtual GPU has no managed memory");
    });
}

// --- the host's memory ----------------------------------------------------------------------------------------------------

namespace {

void host_allocate(const char* call, void** out, size_t bytes, unsigned flags) {
    require(out, "no place for the address");
    require(bytes > 0, "an allocation of 0 bytes");
    require(flags < 8, "unknown flags");
    refuse_during_capture(call);
    // A card's kernels reach all pinned memory. Here they reach what was allocated for it: a program says so anyhow.
    const bool mapped = flags & CU_MEMHOSTALLOC_DEVICEMAP;
    void* const address =
        mapped ? reinterpret_cast<void*>(device().allocate_host(bytes)) : std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (!address) throw std::bad_alloc();
    state().host[reinterpret_cast<uintptr_t>(address)] = {bytes, flags, false, mapped};
    *out = address;
}

// The pinned block that holds an address.
std::map<uintptr_t, HostBlock>::iterator host_block(uintptr_t address) {
    auto& host = state().host;
    auto at = host.upper_bound(address);
    if (at == host.begin()) return host.end();
    --at;
    return address < at->first + at->second.bytes ? at : host.end();
}

}  // namespace

CUresult CUDAAPI cuMemAllocHost(void** out, size_t bytes) {
    return in_context("cuMemAllocHost", [&](const std::shared_ptr<Context>&) { host_allocate("cuMemAllocHost", out, bytes, 0); });
}

CUresult CUDAAPI cuMemHostAlloc(void** out, size_t bytes, unsigned int flags) {
    return in_context("cuMemHostAlloc",
                      [&](const std::shared_ptr<Context>&) { host_allocate("cuMemHostAlloc", out, bytes, flags); });
}

CUresult CUDAAPI cuMemFreeHost(void* address) {
    return in_context("cuMemFreeHost", [&](const std::shared_ptr<Context>& context) {
        refuse_during_capture("cuMemFreeHost");
        if (!address) return;
        const auto at = state().host.find(reinterpret_cast<uintptr_t>(address));
        if (at == state().host.end() || at->second.registered)
            refuse(CUDA_ERROR_INVALID_VALUE, "no allocation of the host begins there");
        flush_all(*context);
        const bool mapped = at->second.mapped;
        state().host.erase(at);
        if (mapped)
            device().free(reinterpret_cast<uintptr_t>(address));
        else
            std::free(address);
    });
}

CUresult CUDAAPI cuMemHostRegister(void* address, size_t bytes, unsigned int flags) {
    return in_context("cuMemHostRegister", [&](const std::shared_ptr<Context>&) {
        require(address && bytes > 0, "no memory");
        if (flags & (CU_MEMHOSTREGISTER_DEVICEMAP | CU_MEMHOSTREGISTER_IOMEMORY))
            refuse(CUDA_ERROR_NOT_SUPPORTED, "kernels of the virtual GPU cannot reach memory that was registered");
        const auto key = reinterpret_cast<uintptr_t>(address);
        if (host_block(key) != state().host.end() || host_block(key + bytes - 1) != state().host.end())
            refuse(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "the memory is registered already");
        state().host[key] = {bytes, flags, true, false};
    });
}

CUresult CUDAAPI cuMemHostUnregister(void* address) {
    return in_context("cuMemHostUnregister", [&](const std::shared_ptr<Context>&) {
        const auto at = state().host.find(reinterpret_cast<uintptr_t>(address));
        if (at == state().host.end() || !at->second.registered)
            refuse(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "the memory was not registered");
        state().host.erase(at);
    });
}

CUresult CUDAAPI cuMemHostGetFlags(unsigned int* flags, void* address) {
    return in_context("cuMemHostGetFlags", [&](const std::shared_ptr<Context>&) {
        require(flags, "no place for the flags");
        const auto at = host_block(reinterpret_cast<uintptr_t>(address));
        require(at != state().host.end(), "no pinned memory");
        *flags = at->second.flags;
    });
}

CUresult CUDAAPI cuMemHostGetDevicePointer(CUdeviceptr* out, void* address, unsigned int flags) {
    return in_context("cuMemHostGetDevicePointer", [&](const std::shared_ptr<Context>&) {
        require(out, "no place for the address");
        require(flags == 0, "unknown flags");
        const auto at = host_block(reinterpret_cast<uintptr_t>(address));
        require(at != state().host.end() && at->second.mapped, "no memory of the host that was allocated with DEVICEMAP");
        *out = reinterpret_cast<CUdeviceptr>(address);
    });
}

// --- copies ---------------------------------------------------------------------------------------------------------------

CUresult CUDAAPI cuMemcpyHtoD(CUdeviceptr to, const void* from, size_t bytes) {
    return enter("cuMemcpyHtoD", [&] { in_stream("cuMemcpyHtoD", to_device(to, from, bytes), std::nullopt); });
}

CUresult CUDAAPI cuMemcpyDtoH(void* to, CUdeviceptr from, size_t bytes) {
    return enter("cuMemcpyDtoH", [&] { in_stream("cuMemcpyDtoH", to_host(to, from, bytes), std::nullopt); });
}

CUresult CUDAAPI cuMemcpyDtoD(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    return enter("cuMemcpyDtoD", [&] { in_stream("cuMemcpyDtoD", on_device(to, from, bytes), std::nullopt); });
}

CUresult CUDAAPI cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    return enter("cuMemcpy", [&] { in_stream("cuMemcpy", anywhere(to, from, bytes), std::nullopt); });
}

CUresult CUDAAPI cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
    return enter("cuMemcpyHtoDAsync", [&] { in_stream("cuMemcpyHtoDAsync", to_device(to, from, bytes), stream); });
}

CUresult CUDAAPI cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
    return enter("cuMemcpyDtoHAsync", [&] { in_stream("cuMemcpyDtoHAsync", to_host(to, from, bytes), stream); });
}

CUresult CUDAAPI cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    return enter("cuMemcpyDtoDAsync", [&] { in_stream("cuMemcpyDtoDAsync", on_device(to, from, bytes), stream); });
}

CUresult CUDAAPI cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    return enter("cuMemcpyAsync", [&] { in_stream("cuMemcpyAsync", anywhere(to, from, bytes), stream); });
}

// --- fills ----------------------------------------------------------------------------------------------------------------

CUresult CUDAAPI cuMemsetD8(CUdeviceptr to, unsigned char value, size_t count) {
    return enter("cuMemsetD8", [&] { in_stream("cuMemsetD8", Set{to, value, 1, count}, std::nullopt); });
}

CUresult CUDAAPI cuMemsetD16(CUdeviceptr to, unsigned short value, size_t count) {
    return enter("cuMemsetD16", [&] { in_stream("cuMemsetD16", Set{to, value, 2, count}, std::nullopt); });
}

CUresult CUDAAPI cuMemsetD32(CUdeviceptr to, unsigned int value, size_t count) {
    return enter("cuMemsetD32", [&] { in_stream("cuMemsetD32", Set{to, value, 4, count}, std::nullopt); });
}

CUresult CUDAAPI cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream stream) {
    return enter("cuMemsetD8Async", [&] { in_stream("cuMemsetD8Async", Set{to, value, 1, count}, stream); });
}

CUresult CUDAAPI cuMemsetD16Async(CUdeviceptr to, unsigned short value, size_t count, CUstream stream) {
    return enter("cuMemsetD16Async", [&] { in_stream("cuMemsetD16Async", Set{to, value, 2, count}, stream); });
}

CUresult CUDAAPI cuMemsetD32Async(CUdeviceptr to, unsigned int value, size_t count, CUstream stream) {
    return enter("cuMemsetD32Async", [&] { in_stream("cuMemsetD32Async", Set{to, value, 4, count}, stream); });
}

// --- what a pointer is ----------------------------------------------------------------------------------------------------

namespace {

template <typename Value>
void put(void* data, Value value) {
    std::memcpy(data, &value, sizeof value);
}

// False: the attribute does not apply to the pointer.
bool pointer_attribute(void* data, CUpointer_attribute attribute, CUdeviceptr pointer) {
    uint64_t begin = 0;
    size_t bytes = 0;
    const bool reached = device().find(pointer, &begin, &bytes);  // by kernels
    const auto host = host_block(pointer);
    const bool pinned = host != state().host.end();
    if (pinned) begin = host->first, bytes = host->second.bytes;
    const bool known = reached || pinned, on_device = reached && !pinned;
    switch (attribute) {
        case CU_POINTER_ATTRIBUTE_CONTEXT: {
            CUcontext owner = nullptr;
            for (const auto& [handle, context] : state().contexts.all())
                if (context->allocations.contains(begin) || pinned) owner = handle;
            if (known) put(data, owner);
            return known;
        }
        case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
            if (known) put(data, static_cast<unsigned>(on_device ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST));
            return known;
        case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
            if (reached) put(data, pointer);
            return reached;
        case CU_POINTER_ATTRIBUTE_HOST_POINTER:
            if (pinned) put(data, pointer);
            return pinned;
        case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
        case CU_POINTER_ATTRIBUTE_IS_MANAGED:
        case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
        case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
            put(data, 0u);
            return known;
        case CU_POINTER_ATTRIBUTE_BUFFER_ID:
            if (known) put(data, static_cast<unsigned long long>(begin));
            return known;
        case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
            put(data, known ? 0 : -2);
            return known;
        case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
            if (known) put(data, begin);
            return known;
        case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
            if (known) put(data, bytes);
            return known;
        case CU_POINTER_ATTRIBUTE_MAPPED:
            put(data, static_cast<unsigned>(reached));
            return true;
        case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
            put(data, reached ? CU_POINTER_ATTRIBUTE_ACCESS_FLAG_READWRITE : CU_POINTER_ATTRIBUTE_ACCESS_FLAG_NONE);
            return known;
        case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
            put(data, static_cast<void*>(nullptr));
            return known;
        default:
            refuse(CUDA_ERROR_NOT_SUPPORTED, "the virtual GPU does not know pointer attribute " + std::to_string(attribute));
    }
}

}  // namespace

CUresult CUDAAPI cuPointerGetAttribute(void* data, CUpointer_attribute attribute, CUdeviceptr pointer) {
    return in_context("cuPointerGetAttribute", [&](const std::shared_ptr<Context>&) {
        require(data, "no place for the value");
        require(pointer_attribute(data, attribute, pointer), "the pointer is none that the driver knows");
    });
}

// Of a pointer that the driver does not know the values are nought, without an error.
CUresult CUDAAPI cuPointerGetAttributes(unsigned int count, CUpointer_attribute* attributes, void** data, CUdeviceptr pointer) {
    return in_context("cuPointerGetAttributes", [&](const std::shared_ptr<Context>&) {
        require(count == 0 || (attributes && data), "no attributes");
        for (unsigned i = 0; i < count; ++i) {
            require(data[i], "no place for a value");
            if (pointer_attribute(data[i], attributes[i], pointer)) continue;
            switch (attributes[i]) {
                case CU_POINTER_ATTRIBUTE_CONTEXT:
                case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
                case CU_POINTER_ATTRIBUTE_HOST_POINTER:
                case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
                case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
                case CU_POINTER_ATTRIBUTE_BUFFER_ID:
                    put(data[i], uint64_t{0});
                    break;
                case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
                    put(data[i], 0u);
                    break;
                default:
                    break;
            }
        }
    });
}

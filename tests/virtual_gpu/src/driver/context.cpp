// cuInit, the one device and its attributes, contexts.
#include <cstdlib>
#include <cstring>

#include "driver/graph.h"

namespace vgpu::driver {

void write_report();  // state.cpp

namespace {

thread_local std::vector<CUcontext> contexts_of_thread;

std::shared_ptr<Context> make_context(bool primary, unsigned flags) {
    State& s = state();
    device();
    auto context = std::make_shared<Context>();
    context->primary = primary;
    context->flags = flags;
    context->id = s.next_id++;
    context->limits = {{CU_LIMIT_STACK_SIZE, 1024},
                       {CU_LIMIT_PRINTF_FIFO_SIZE, 1 << 20},
                       {CU_LIMIT_MALLOC_HEAP_SIZE, 8 << 20},
                       {CU_LIMIT_MAX_L2_FETCH_GRANULARITY, 64},
                       {CU_LIMIT_PERSISTING_L2_CACHE_SIZE, 0}};
    context->legacy = make_stream(context, CU_STREAM_DEFAULT, 0);
    context->legacy->legacy = true;
    context->handle = s.contexts.add(context);
    return context;
}

void check_device(CUdevice ordinal) {
    if (ordinal != 0) refuse(CUDA_ERROR_INVALID_DEVICE, "there is one device, 0");
}

}  // namespace

namespace {

void check_working(const Context& context) {
    if (context.broken != CUDA_SUCCESS) refuse(context.broken, "an earlier launch failed: " + context.why_broken);
}

}  // namespace

std::shared_ptr<Context> current() {
    if (contexts_of_thread.empty() || !contexts_of_thread.back())
        refuse(CUDA_ERROR_INVALID_CONTEXT, "no context is current to this thread");
    auto context = state().contexts.find(contexts_of_thread.back());
    if (!context) refuse(CUDA_ERROR_CONTEXT_IS_DESTROYED, "the current context was destroyed");
    check_working(*context);
    return context;
}

void destroy(const std::shared_ptr<Context>& context) {
    State& s = state();
    try {
        flush_all(*context);
    } catch (const Refusal&) {  // it is among the faults
    }
    if (!s.report_path.empty()) write_report();
    const auto of_context = [&](const auto& object) { return object.context.lock() == context; };
    s.captures.clear();
    s.execs.erase_if(of_context);
    s.events.erase_if(of_context);
    s.streams.erase_if(of_context);
    std::vector<CUfunction> dead;
    for (const auto& [handle, function] : s.functions.all()) {
        const auto module = function->module.lock();
        if (!module || module->context.lock() == context) dead.push_back(handle);
    }
    for (const CUfunction handle : dead) s.functions.erase(handle);
    s.modules.erase_if(of_context);
    s.libraries.erase_if(of_context);
    for (const uint64_t address : context->allocations) device().free(address);
    s.contexts.erase(context->handle);
    if (s.primary == context) {
        s.primary = nullptr;
        s.primary_retained = 0;
    }
}

void forget_everything() {
    State& s = state();
    drop_pending();
    s.captures.clear();
    s.execs.clear();
    s.graphs.clear();
    s.nodes.clear();
    s.events.clear();
    s.streams.clear();
    s.functions.clear();
    s.modules.clear();
    s.libraries.clear();
    s.primary = nullptr;
    s.primary_retained = 0;
    s.contexts.clear();
    std::erase_if(s.host, [](const auto& block) { return block.second.mapped; });  // lies in the device's range
    s.device = nullptr;
    s.card = nullptr;
    s.initialised = false;
    s.known.clear();
    s.issued.clear();
    s.free_numbers.clear();
}

}  // namespace vgpu::driver

using namespace vgpu;
using namespace vgpu::driver;

CUresult CUDAAPI cuInit(unsigned int flags) {
    return plain("cuInit", [&] {
        State& s = state();
        require(flags == 0, "the flags must be 0");
        const char* devices = std::getenv("LLAMA_EXT_VGPU_DEVICES");
        if (devices && std::strcmp(devices, "0") == 0) refuse(CUDA_ERROR_NO_DEVICE, "LLAMA_EXT_VGPU_DEVICES is 0");
        if (s.initialised) return;
        device();
        const char* eager = std::getenv("CUDA_MODULE_LOADING");
        s.eager = eager && std::strcmp(eager, "EAGER") == 0;
        if (const char* path = std::getenv("LLAMA_EXT_VGPU_REPORT"); path && *path && s.report_path.empty()) {
            s.report_path = path;
            std::atexit([] {
                try {
                    write_report();
                } catch (...) {  // nobody is left to be told
                }
            });
        }
        s.initialised = true;
    });
}

CUresult CUDAAPI cuDriverGetVersion(int* version) {
    return plain("cuDriverGetVersion", [&] {
        require(version, "no place for the version");
        *version = driver_version();
    });
}

// --- the device -----------------------------------------------------------------------------------------------------------

CUresult CUDAAPI cuDeviceGetCount(int* count) {
    return enter("cuDeviceGetCount", [&] {
        require(count, "no place for the count");
        *count = 1;
    });
}

CUresult CUDAAPI cuDeviceGet(CUdevice* out, int ordinal) {
    return enter("cuDeviceGet", [&] {
        require(out, "no place for the device");
        check_device(ordinal);
        *out = 0;
    });
}

CUresult CUDAAPI cuDeviceGetName(char* name, int length, CUdevice ordinal) {
    return enter("cuDeviceGetName", [&] {
        require(name && length > 0, "no place for the name");
        check_device(ordinal);
        const size_t fits = std::min(card().card.size(), static_cast<size_t>(length) - 1);
        std::memcpy(name, card().card.data(), fits);
        name[fits] = '\0';
    });
}

CUresult CUDAAPI cuDeviceGetUuid(CUuuid* uuid, CUdevice ordinal) {
    return enter("cuDeviceGetUuid", [&] {
        require(uuid, "no place for the uuid");
        check_device(ordinal);
        std::memset(uuid, 0, sizeof *uuid);
        std::memcpy(uuid->bytes, card().name.data(), std::min(card().name.size(), sizeof uuid->bytes));
    });
}

CUresult CUDAAPI cuDeviceTotalMem(size_t* bytes, CUdevice ordinal) {
    return enter("cuDeviceTotalMem", [&] {
        require(bytes, "no place for the size");
        check_device(ordinal);
        *bytes = card().memory;
    });
}

CUresult CUDAAPI cuDeviceComputeCapability(int* major, int* minor, CUdevice ordinal) {
    return enter("cuDeviceComputeCapability", [&] {
        require(major && minor, "no place for the version");
        check_device(ordinal);
        *major = card().major;
        *minor = card().minor;
    });
}

CUresult CUDAAPI cuDeviceGetPCIBusId(char* id, int length, CUdevice ordinal) {
    return enter("cuDeviceGetPCIBusId", [&] {
        constexpr char kId[] = "0000:00:00.0";
        require(id && length >= static_cast<int>(sizeof kId), "no place for the id");
        check_device(ordinal);
        std::memcpy(id, kId, sizeof kId);
    });
}

CUresult CUDAAPI cuDeviceGetAttribute(int* out, CUdevice_attribute attribute, CUdevice ordinal) {
    return enter("cuDeviceGetAttribute", [&] {
        require(out, "no place for the value");
        check_device(ordinal);
        require(attribute > 0 && attribute < CU_DEVICE_ATTRIBUTE_MAX, "no such attribute");
        const Profile& p = card();
        static const std::map<int, int> kSame = {
            {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X, 1024},
            {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y, 1024},
            {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z, 64},
            {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X, 2147483647},
            {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y, 65535},
            {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z, 65535},
            {CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY, 65536},
            {CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32},
            {CU_DEVICE_ATTRIBUTE_MAX_PITCH, 2147483647},
            {CU_DEVICE_ATTRIBUTE_CLOCK_RATE, 1000000},  // no clock: a round figure, so that nobody divides by nought
            {CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE, 1000000},
            {CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH, 1024},
            {CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT, 512},
            {CU_DEVICE_ATTRIBUTE_TEXTURE_PITCH_ALIGNMENT, 32},
            {CU_DEVICE_ATTRIBUTE_GPU_OVERLAP, 1},
            {CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT, 2},
            {CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS, 1},
            {CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1},
            {CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY, 1},
            {CU_DEVICE_ATTRIBUTE_COMPUTE_MODE, CU_COMPUTEMODE_DEFAULT},
            {CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED, 1},
            {CU_DEVICE_ATTRIBUTE_GLOBAL_L1_CACHE_SUPPORTED, 1},
            {CU_DEVICE_ATTRIBUTE_LOCAL_L1_CACHE_SUPPORTED, 1},
            {CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH, 1},
            {CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED, 1},
            {CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED, 1},
            {CU_DEVICE_ATTRIBUTE_SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO, 2},
            {CU_DEVICE_ATTRIBUTE_HOST_NATIVE_ATOMIC_SUPPORTED, 0},
        };
        switch (attribute) {
            case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
                *out = p.max_threads_per_block;
                return;
            case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK:
                *out = p.shared_per_block;
                return;
            case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
                *out = p.shared_per_block_optin;
                return;
            case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
                *out = p.shared_per_multiprocessor;
                return;
            case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK:
                *out = p.shared_reserved;
                return;
            case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
                *out = p.registers_per_block;
                return;
            case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR:
                *out = p.registers_per_multiprocessor;
                return;
            case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
                *out = p.multiprocessors;
                return;
            case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR:
                *out = p.max_threads_per_multiprocessor;
                return;
            case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR:
                *out = p.max_blocks_per_multiprocessor;
                return;
            case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
                *out = p.major;
                return;
            case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
                *out = p.minor;
                return;
            case CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH:
                *out = p.cluster_launch;
                return;
            case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE:
                *out = (p.name == "sm_86"   ? 6
                        : p.name == "sm_80" ? 40
                        : p.name == "sm_89" ? 72
                        : p.name == "sm_90" ? 50
                                            : 96)
                       << 20;
                return;
            default:
                const auto at = kSame.find(attribute);
                *out = at == kSame.end() ? 0 : at->second;  // a feature that it does not have
        }
    });
}

// --- the primary context --------------------------------------------------------------------------------------------------

CUresult CUDAAPI cuDevicePrimaryCtxRetain(CUcontext* out, CUdevice ordinal) {
    return enter("cuDevicePrimaryCtxRetain", [&] {
        State& s = state();
        require(out, "no place for the context");
        check_device(ordinal);
        if (!s.primary) s.primary = make_context(true, s.primary_flags);
        ++s.primary_retained;
        *out = s.primary->handle;
    });
}

CUresult CUDAAPI cuDevicePrimaryCtxRelease(CUdevice ordinal) {
    return enter("cuDevicePrimaryCtxRelease", [&] {
        State& s = state();
        check_device(ordinal);
        if (!s.primary) refuse(CUDA_ERROR_INVALID_CONTEXT, "the primary context is not retained");
        if (--s.primary_retained == 0) destroy(std::shared_ptr<Context>(s.primary));
    });
}

CUresult CUDAAPI cuDevicePrimaryCtxReset(CUdevice ordinal) {
    return enter("cuDevicePrimaryCtxReset", [&] {
        State& s = state();
        check_device(ordinal);
        if (s.primary) destroy(std::shared_ptr<Context>(s.primary));
    });
}

CUresult CUDAAPI cuDevicePrimaryCtxSetFlags(CUdevice ordinal, unsigned int flags) {
    return enter("cuDevicePrimaryCtxSetFlags", [&] {
        check_device(ordinal);
        require((flags & ~unsigned{CU_CTX_FLAGS_MASK}) == 0, "unknown flags");
        state().primary_flags = flags;
        if (state().primary) state().primary->flags = flags;
    });
}

CUresult CUDAAPI cuDevicePrimaryCtxGetState(CUdevice ordinal, unsigned int* flags, int* active) {
    return enter("cuDevicePrimaryCtxGetState", [&] {
        check_device(ordinal);
        require(flags && active, "no place for the state");
        *flags = state().primary_flags;
        *active = state().primary != nullptr;
    });
}

// --- contexts -------------------------------------------------------------------------------------------------------------

namespace {

void create(CUcontext* out, unsigned flags, CUdevice ordinal) {
    require(out, "no place for the context");
    check_device(ordinal);
    require((flags & ~unsigned{CU_CTX_FLAGS_MASK}) == 0, "unknown flags");
    *out = make_context(false, flags)->handle;
    contexts_of_thread.push_back(*out);
}

}  // namespace

CUresult CUDAAPI cuCtxCreate(CUcontext* out, CUctxCreateParams* parameters, unsigned int flags, CUdevice ordinal) {
    return enter("cuCtxCreate", [&] {
        if (parameters && (parameters->numExecAffinityParams || parameters->cigParams))
            refuse(CUDA_ERROR_NOT_SUPPORTED, "contexts of a part of the device");
        create(out, flags, ordinal);
    });
}

// Before 12.5.
VGPU_EXPORT CUresult CUDAAPI cuCtxCreate_v2(CUcontext* out, unsigned int flags, CUdevice ordinal) {
    return enter("cuCtxCreate", [&] { create(out, flags, ordinal); });
}

CUresult CUDAAPI cuCtxDestroy(CUcontext handle) {
    return enter("cuCtxDestroy", [&] {
        const auto context = state().contexts.find(handle);
        if (!context) refuse(CUDA_ERROR_INVALID_CONTEXT, "no context has this handle");
        if (context->primary) refuse(CUDA_ERROR_INVALID_CONTEXT, "the primary context is released, not destroyed");
        destroy(context);
        if (!contexts_of_thread.empty() && contexts_of_thread.back() == handle) contexts_of_thread.pop_back();
    });
}

CUresult CUDAAPI cuCtxPushCurrent(CUcontext handle) {
    return enter("cuCtxPushCurrent", [&] {
        if (!state().contexts.find(handle)) refuse(CUDA_ERROR_INVALID_CONTEXT, "no context has this handle");
        contexts_of_thread.push_back(handle);
    });
}

CUresult CUDAAPI cuCtxPopCurrent(CUcontext* out) {
    return enter("cuCtxPopCurrent", [&] {
        if (contexts_of_thread.empty()) refuse(CUDA_ERROR_INVALID_CONTEXT, "no context is current to this thread");
        if (out) *out = contexts_of_thread.back();
        contexts_of_thread.pop_back();
    });
}

CUresult CUDAAPI cuCtxSetCurrent(CUcontext handle) {
    return enter("cuCtxSetCurrent", [&] {
        if (handle && !state().contexts.find(handle)) refuse(CUDA_ERROR_INVALID_CONTEXT, "no context has this handle");
        if (!contexts_of_thread.empty()) contexts_of_thread.pop_back();
        if (handle) contexts_of_thread.push_back(handle);
    });
}

CUresult CUDAAPI cuCtxGetCurrent(CUcontext* out) {
    return enter("cuCtxGetCurrent", [&] {
        require(out, "no place for the context");
        *out = contexts_of_thread.empty() ? nullptr : contexts_of_thread.back();
    });
}

CUresult CUDAAPI cuCtxGetDevice(CUdevice* out) {
    return in_context("cuCtxGetDevice", [&](const std::shared_ptr<Context>&) {
        require(out, "no place for the device");
        *out = 0;
    });
}

CUresult CUDAAPI cuCtxGetFlags(unsigned int* flags) {
    return in_context("cuCtxGetFlags", [&](const std::shared_ptr<Context>& context) {
        require(flags, "no place for the flags");
        *flags = context->flags;
    });
}

CUresult CUDAAPI cuCtxGetId(CUcontext handle, unsigned long long* id) {
    return enter("cuCtxGetId", [&] {
        require(id, "no place for the id");
        const auto context = handle ? state().contexts.find(handle) : current();
        if (!context) refuse(CUDA_ERROR_CONTEXT_IS_DESTROYED, "no context has this handle");
        *id = context->id;
    });
}

CUresult CUDAAPI cuCtxGetApiVersion(CUcontext handle, unsigned int* version) {
    return enter("cuCtxGetApiVersion", [&] {
        require(version, "no place for the version");
        if (handle && !state().contexts.find(handle)) refuse(CUDA_ERROR_INVALID_CONTEXT, "no context has this handle");
        *version = 3020;
    });
}

namespace {

void wait_for(const std::shared_ptr<Context>& context) {
    for (const auto& weak : state().captures)
        if (const auto capture = weak.lock(); capture && capture->context.lock() == context)
            invalidate(*capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a context cannot be waited for during a capture");
    synchronize(*context);
}

// The entry points of 13.0 name a context; null means the current one.
std::shared_ptr<Context> named(CUcontext handle) {
    if (!handle) return current();
    auto context = state().contexts.find(handle);
    if (!context) refuse(CUDA_ERROR_INVALID_CONTEXT, "no context has this handle");
    check_working(*context);
    return context;
}

}  // namespace

CUresult CUDAAPI cuCtxSynchronize(void) {
    return enter("cuCtxSynchronize", [&] { wait_for(current()); });
}

CUresult CUDAAPI cuCtxSynchronize_v2(CUcontext handle) {
    return enter("cuCtxSynchronize", [&] { wait_for(named(handle)); });
}

CUresult CUDAAPI cuCtxGetDevice_v2(CUdevice* out, CUcontext handle) {
    return enter("cuCtxGetDevice", [&] {
        require(out, "no place for the device");
        named(handle);
        *out = 0;
    });
}

CUresult CUDAAPI cuCtxSetLimit(CUlimit limit, size_t value) {
    return in_context("cuCtxSetLimit", [&](const std::shared_ptr<Context>& context) {
        if (!context->limits.contains(limit)) refuse(CUDA_ERROR_UNSUPPORTED_LIMIT, "a limit that the card does not have");
        context->limits[limit] = value;
    });
}

CUresult CUDAAPI cuCtxGetLimit(size_t* out, CUlimit limit) {
    return in_context("cuCtxGetLimit", [&](const std::shared_ptr<Context>& context) {
        require(out, "no place for the limit");
        if (!context->limits.contains(limit)) refuse(CUDA_ERROR_UNSUPPORTED_LIMIT, "a limit that the card does not have");
        *out = context->limits[limit];
    });
}

CUresult CUDAAPI cuCtxGetCacheConfig(CUfunc_cache* out) {
    return in_context("cuCtxGetCacheConfig", [&](const std::shared_ptr<Context>& context) {
        require(out, "no place for the setting");
        *out = context->cache;
    });
}

CUresult CUDAAPI cuCtxSetCacheConfig(CUfunc_cache config) {
    return in_context("cuCtxSetCacheConfig", [&](const std::shared_ptr<Context>& context) { context->cache = config; });
}

CUresult CUDAAPI cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    return in_context("cuCtxGetStreamPriorityRange", [&](const std::shared_ptr<Context>&) {
        if (least) *least = 0;
        if (greatest) *greatest = -5;
    });
}

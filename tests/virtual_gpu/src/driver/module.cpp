// Modules, libraries and functions.
#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>

#include "driver/fatbin.h"
#include "driver/graph.h"

using namespace vgpu;
using namespace vgpu::driver;

namespace {

using ModulePtr = std::shared_ptr<vgpu::driver::Module>;
using FunctionPtr = std::shared_ptr<Function>;

// The buffers of CU_JIT_ERROR_LOG_BUFFER and its like.
struct Logs {
    char* error = nullptr;
    size_t error_bytes = 0;
    void** error_written = nullptr;
    char* info = nullptr;
    size_t info_bytes = 0;
    void** info_written = nullptr;

    Logs(unsigned count, const CUjit_option* options, void** values) {
        require(count == 0 || (options && values), "no options where some are said to be");
        for (unsigned i = 0; i < count; ++i) {
            switch (options[i]) {
                case CU_JIT_ERROR_LOG_BUFFER:
                    error = static_cast<char*>(values[i]);
                    break;
                case CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES:
                    error_bytes = reinterpret_cast<size_t>(values[i]) & 0xFFFFFFFF;
                    error_written = &values[i];
                    break;
                case CU_JIT_INFO_LOG_BUFFER:
                    info = static_cast<char*>(values[i]);
                    break;
                case CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES:
                    info_bytes = reinterpret_cast<size_t>(values[i]) & 0xFFFFFFFF;
                    info_written = &values[i];
                    break;
                default:
                    require(options[i] < CU_JIT_NUM_OPTIONS, "an unknown option");
            }
        }
        put(error, error_bytes, error_written, "");
        put(info, info_bytes, info_written, "");
    }
    void put_error(const std::string& text) const { put(error, error_bytes, error_written, text); }

private:
    // On return the size is that of what was written.
    static void put(char* to, size_t bytes, void** written, const std::string& text) {
        if (!to || bytes == 0) return;
        const size_t fits = std::min(bytes - 1, text.size());
        std::memcpy(to, text.data(), fits);
        to[fits] = '\0';
        if (written) *written = reinterpret_cast<void*>(fits);
    }
};

ModulePtr load(const void* data, std::optional<size_t> bytes, const Logs& logs) {
    State& s = state();
    const auto context = current();
    refuse_during_capture("loading a module");
    const auto module = std::make_shared<vgpu::driver::Module>();
    try {
        const Image image = read_image(data, bytes, card(), driver_version());
        try {
            module->code = device().load(image.ptx);
        } catch (const ptx::SyntaxError& error) {
            refuse(CUDA_ERROR_INVALID_PTX, error.what());
        }
        module->context = context;
        for (const std::string& name : module->code->kernels()) {
            auto function = std::make_shared<Function>();
            function->name = name;
            function->code = module->code;
            function->kernel = module->code->kernel(name);
            function->info = module->code->info(function->kernel);
            function->module = module;
            function->loaded = s.eager;
            function->ptx_version = image.target;
            if (const auto at = image.registers.find(name); at != image.registers.end()) function->registers = at->second;
            // Without the attribute, static and dynamic memory together have the 48 KB that every card has.
            function->max_dynamic_shared = std::max(0, card().shared_per_block - static_cast<int>(function->info.static_shared));
            function->handle = s.functions.add(function);
            module->functions[name] = function->handle;
        }
    } catch (const Refusal& refusal) {
        logs.put_error(refusal.why);
        throw;
    }
    return module;
}

ModulePtr load_file(const char* path, const Logs& logs) {
    require(path, "no name of a file");
    std::ifstream file(path, std::ios::binary);
    if (!file) refuse(CUDA_ERROR_FILE_NOT_FOUND, std::string("cannot open ") + path);
    const std::string bytes((std::istreambuf_iterator<char>(file)), {});
    return load(bytes.data(), bytes.size(), logs);
}

void publish(CUmodule* out, const ModulePtr& module) { *out = module->handle = state().modules.add(module); }
void publish(CUlibrary* out, const ModulePtr& module) { *out = module->library = state().libraries.add(module); }

void unload(const ModulePtr& module) {
    if (const auto context = module->context.lock()) flush_all(*context);
    for (const auto& [name, handle] : module->functions) state().functions.erase(handle);
    state().modules.erase(module->handle);
    state().libraries.erase(module->library);
}

CUfunction find(const ModulePtr& module, const char* name) {
    require(name, "no name");
    const auto at = module->functions.find(std::string_view(name));
    if (at == module->functions.end()) refuse(CUDA_ERROR_NOT_FOUND, std::string("no kernel is called ") + name);
    return at->second;
}

void find_global(CUdeviceptr* out, size_t* bytes, const ModulePtr& module, const char* name) {
    require(name, "no name");
    uint64_t address = 0;
    size_t size = 0;
    if (!module->code->variable(name, &address, &size))
        refuse(CUDA_ERROR_NOT_FOUND, std::string("no variable is called ") + name);
    if (out) *out = address;
    if (bytes) *bytes = size;
}

template <typename Handle>
void enumerate(Handle* out, unsigned count, const ModulePtr& module) {
    require(out, "no place for the functions");
    for (const auto& [name, handle] : module->functions) {
        if (count-- == 0) return;
        *out++ = reinterpret_cast<Handle>(handle);
    }
}

FunctionPtr function_of(CUfunction handle) { return state().functions.get(handle, "function"); }
FunctionPtr function_of(CUkernel handle) { return state().functions.get(reinterpret_cast<CUfunction>(handle), "kernel"); }
ModulePtr module_of(CUmodule handle) { return state().modules.get(handle, "module"); }
ModulePtr library_of(CUlibrary handle) { return state().libraries.get(handle, "library"); }

void get_attribute(int* out, CUfunction_attribute attribute, const Function& function) {
    require(out, "no place for the value");
    switch (attribute) {
        case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
            *out = static_cast<int>(function.max_threads());
            return;
        case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
            *out = static_cast<int>(function.info.static_shared);
            return;
        case CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES:
            *out = static_cast<int>(function.info.constant_bytes);
            return;
        case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
            *out = static_cast<int>(function.info.local_bytes);
            return;
        case CU_FUNC_ATTRIBUTE_NUM_REGS:  // 0 where only ptxas could say
            *out = function.registers;
            return;
        case CU_FUNC_ATTRIBUTE_PTX_VERSION:
            *out = function.ptx_version;
            return;
        case CU_FUNC_ATTRIBUTE_BINARY_VERSION:
            *out = card().major * 10 + card().minor;
            return;
        case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
            *out = function.max_dynamic_shared;
            return;
        case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
            *out = function.carveout;
            return;
        default:
            require(attribute >= 0 && attribute < CU_FUNC_ATTRIBUTE_MAX, "no such attribute");
            *out = 0;
    }
}

void set_attribute(Function& function, CUfunction_attribute attribute, int value) {
    switch (attribute) {
        case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: {
            const int most = card().shared_per_block_optin - static_cast<int>(function.info.static_shared);
            if (value < 0 || value > most)
                refuse(CUDA_ERROR_INVALID_VALUE,
                       function.name + ": " + std::to_string(value) + " bytes of dynamic shared memory beside " +
                           std::to_string(function.info.static_shared) + " static ones; " + std::string(card().name) + " has " +
                           std::to_string(card().shared_per_block_optin));
            function.max_dynamic_shared = value;
            return;
        }
        case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
            require(value >= -1 && value <= 100, "a carveout is a percentage, or -1");
            function.carveout = value;
            return;
        case CU_FUNC_ATTRIBUTE_CLUSTER_SIZE_MUST_BE_SET:
        case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH:
        case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_HEIGHT:
        case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_DEPTH:
        case CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED:
        case CU_FUNC_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE:
            record("unknown_call", "cuFuncSetAttribute of a cluster, attribute " + std::to_string(attribute));
            refuse(CUDA_ERROR_NOT_SUPPORTED, "the virtual GPU has no clusters");
        default:
            refuse(CUDA_ERROR_INVALID_VALUE, "an attribute that cannot be set");
    }
}

void parameter_info(const Function& function, size_t index, size_t* offset, size_t* bytes) {
    require(offset, "no place for the offset");
    require(index < function.info.parameters.size(), "the kernel has fewer parameters");
    *offset = function.info.parameters[index].offset;
    if (bytes) *bytes = function.info.parameters[index].bytes;
}

}  // namespace

// --- modules --------------------------------------------------------------------------------------------------------------

CUresult CUDAAPI cuModuleLoadData(CUmodule* out, const void* image) {
    return enter("cuModuleLoadData", [&] {
        require(out, "no place for the module");
        publish(out, load(image, std::nullopt, Logs(0, nullptr, nullptr)));
    });
}

CUresult CUDAAPI cuModuleLoadDataEx(CUmodule* out, const void* image, unsigned int count, CUjit_option* options, void** values) {
    return enter("cuModuleLoadDataEx", [&] {
        require(out, "no place for the module");
        publish(out, load(image, std::nullopt, Logs(count, options, values)));
    });
}

CUresult CUDAAPI cuModuleLoadFatBinary(CUmodule* out, const void* image) {
    return enter("cuModuleLoadFatBinary", [&] {
        require(out, "no place for the module");
        publish(out, load(image, std::nullopt, Logs(0, nullptr, nullptr)));
    });
}

CUresult CUDAAPI cuModuleLoad(CUmodule* out, const char* path) {
    return enter("cuModuleLoad", [&] {
        require(out, "no place for the module");
        publish(out, load_file(path, Logs(0, nullptr, nullptr)));
    });
}

CUresult CUDAAPI cuModuleUnload(CUmodule handle) {
    return in_context("cuModuleUnload", [&](const std::shared_ptr<Context>&) {
        refuse_during_capture("cuModuleUnload");
        const auto module = module_of(handle);
        if (module->library) refuse(CUDA_ERROR_NOT_PERMITTED, "the module is of a library");
        unload(module);
    });
}

CUresult CUDAAPI cuModuleGetFunction(CUfunction* out, CUmodule handle, const char* name) {
    return in_context("cuModuleGetFunction", [&](const std::shared_ptr<Context>&) {
        require(out, "no place for the function");
        *out = find(module_of(handle), name);
    });
}

CUresult CUDAAPI cuModuleGetFunctionCount(unsigned int* count, CUmodule handle) {
    return in_context("cuModuleGetFunctionCount", [&](const std::shared_ptr<Context>&) {
        require(count, "no place for the number");
        *count = static_cast<unsigned>(module_of(handle)->functions.size());
    });
}

CUresult CUDAAPI cuModuleEnumerateFunctions(CUfunction* out, unsigned int count, CUmodule handle) {
    return in_context("cuModuleEnumerateFunctions",
                      [&](const std::shared_ptr<Context>&) { enumerate(out, count, module_of(handle)); });
}

CUresult CUDAAPI cuModuleGetGlobal(CUdeviceptr* out, size_t* bytes, CUmodule handle, const char* name) {
    return in_context("cuModuleGetGlobal",
                      [&](const std::shared_ptr<Context>&) { find_global(out, bytes, module_of(handle), name); });
}

CUresult CUDAAPI cuModuleGetLoadingMode(CUmoduleLoadingMode* mode) {
    return enter("cuModuleGetLoadingMode", [&] {
        require(mode, "no place for the mode");
        *mode = state().eager ? CU_MODULE_EAGER_LOADING : CU_MODULE_LAZY_LOADING;
    });
}

// --- libraries ------------------------------------------------------------------------------------------------------------

CUresult CUDAAPI cuLibraryLoadData(CUlibrary* out, const void* code, CUjit_option* options, void** values, unsigned int count,
                                   CUlibraryOption*, void**, unsigned int) {
    return enter("cuLibraryLoadData", [&] {
        require(out, "no place for the library");
        publish(out, load(code, std::nullopt, Logs(count, options, values)));
    });
}

CUresult CUDAAPI cuLibraryLoadFromFile(CUlibrary* out, const char* path, CUjit_option* options, void** values, unsigned int count,
                                       CUlibraryOption*, void**, unsigned int) {
    return enter("cuLibraryLoadFromFile", [&] {
        require(out, "no place for the library");
        publish(out, load_file(path, Logs(count, options, values)));
    });
}

CUresult CUDAAPI cuLibraryUnload(CUlibrary handle) {
    return enter("cuLibraryUnload", [&] { unload(library_of(handle)); });
}

CUresult CUDAAPI cuLibraryGetKernel(CUkernel* out, CUlibrary handle, const char* name) {
    return enter("cuLibraryGetKernel", [&] {
        require(out, "no place for the kernel");
        *out = reinterpret_cast<CUkernel>(find(library_of(handle), name));
    });
}

CUresult CUDAAPI cuLibraryGetKernelCount(unsigned int* count, CUlibrary handle) {
    return enter("cuLibraryGetKernelCount", [&] {
        require(count, "no place for the number");
        *count = static_cast<unsigned>(library_of(handle)->functions.size());
    });
}

CUresult CUDAAPI cuLibraryEnumerateKernels(CUkernel* out, unsigned int count, CUlibrary handle) {
    return enter("cuLibraryEnumerateKernels", [&] { enumerate(out, count, library_of(handle)); });
}

CUresult CUDAAPI cuLibraryGetModule(CUmodule* out, CUlibrary handle) {
    return in_context("cuLibraryGetModule", [&](const std::shared_ptr<Context>&) {
        require(out, "no place for the module");
        const auto module = library_of(handle);
        if (!module->handle) publish(out, module);
        *out = module->handle;
    });
}

CUresult CUDAAPI cuLibraryGetGlobal(CUdeviceptr* out, size_t* bytes, CUlibrary handle, const char* name) {
    return in_context("cuLibraryGetGlobal",
                      [&](const std::shared_ptr<Context>&) { find_global(out, bytes, library_of(handle), name); });
}

CUresult CUDAAPI cuKernelGetFunction(CUfunction* out, CUkernel kernel) {
    return in_context("cuKernelGetFunction", [&](const std::shared_ptr<Context>&) {
        require(out, "no place for the function");
        *out = function_of(kernel)->handle;
    });
}

CUresult CUDAAPI cuKernelGetAttribute(int* out, CUfunction_attribute attribute, CUkernel kernel, CUdevice) {
    return enter("cuKernelGetAttribute", [&] { get_attribute(out, attribute, *function_of(kernel)); });
}

CUresult CUDAAPI cuKernelSetAttribute(CUfunction_attribute attribute, int value, CUkernel kernel, CUdevice) {
    return enter("cuKernelSetAttribute", [&] { set_attribute(*function_of(kernel), attribute, value); });
}

CUresult CUDAAPI cuKernelGetName(const char** name, CUkernel kernel) {
    return enter("cuKernelGetName", [&] {
        require(name, "no place for the name");
        *name = function_of(kernel)->name.c_str();
    });
}

CUresult CUDAAPI cuKernelGetParamInfo(CUkernel kernel, size_t index, size_t* offset, size_t* bytes) {
    return enter("cuKernelGetParamInfo", [&] { parameter_info(*function_of(kernel), index, offset, bytes); });
}

// --- functions ------------------------------------------------------------------------------------------------------------

CUresult CUDAAPI cuFuncGetAttribute(int* out, CUfunction_attribute attribute, CUfunction function) {
    return in_context("cuFuncGetAttribute",
                      [&](const std::shared_ptr<Context>&) { get_attribute(out, attribute, *function_of(function)); });
}

CUresult CUDAAPI cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    return in_context("cuFuncSetAttribute",
                      [&](const std::shared_ptr<Context>&) { set_attribute(*function_of(function), attribute, value); });
}

CUresult CUDAAPI cuFuncSetCacheConfig(CUfunction function, CUfunc_cache) {
    return in_context("cuFuncSetCacheConfig", [&](const std::shared_ptr<Context>&) { function_of(function); });
}

CUresult CUDAAPI cuFuncGetModule(CUmodule* out, CUfunction function) {
    return in_context("cuFuncGetModule", [&](const std::shared_ptr<Context>&) {
        require(out, "no place for the module");
        const auto module = function_of(function)->module.lock();
        if (module && !module->handle) publish(out, module);
        *out = module ? module->handle : nullptr;
    });
}

CUresult CUDAAPI cuFuncGetName(const char** name, CUfunction function) {
    return in_context("cuFuncGetName", [&](const std::shared_ptr<Context>&) {
        require(name, "no place for the name");
        *name = function_of(function)->name.c_str();
    });
}

CUresult CUDAAPI cuFuncGetParamInfo(CUfunction function, size_t index, size_t* offset, size_t* bytes) {
    return in_context("cuFuncGetParamInfo",
                      [&](const std::shared_ptr<Context>&) { parameter_info(*function_of(function), index, offset, bytes); });
}

CUresult CUDAAPI cuFuncIsLoaded(CUfunctionLoadingState* out, CUfunction function) {
    return in_context("cuFuncIsLoaded", [&](const std::shared_ptr<Context>&) {
        require(out, "no place for the answer");
        *out = function_of(function)->loaded ? CU_FUNCTION_LOADING_STATE_LOADED : CU_FUNCTION_LOADING_STATE_UNLOADED;
    });
}

CUresult CUDAAPI cuFuncLoad(CUfunction handle) {
    return in_context("cuFuncLoad", [&](const std::shared_ptr<Context>&) {
        const auto function = function_of(handle);
        if (function->loaded) return;
        refuse_during_capture("cuFuncLoad");
        function->loaded = true;
    });
}

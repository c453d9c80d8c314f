// Launches: all that a driver checks before a kernel starts.
#include <algorithm>
#include <cstring>

#include "driver/graph.h"

namespace vgpu::driver {

uint32_t Function::max_threads() const {
    const auto product = [](const uint32_t size[3]) { return size[0] * size[1] * size[2]; };
    const uint32_t given = info.required_threads[0] ? product(info.required_threads) : product(info.max_threads);
    const auto most = static_cast<uint32_t>(card().max_threads_per_block);
    return given ? std::min(given, most) : most;
}

namespace {

uint64_t rounded_up(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

// Registers of a block: a warp gets them by 256.
uint64_t registers_of(const Function& function, uint32_t threads) {
    return rounded_up(static_cast<uint64_t>(function.registers) * 32, 256) * rounded_up(threads, 32) / 32;
}

std::string text(const uint32_t size[3]) {
    return std::to_string(size[0]) + " x " + std::to_string(size[1]) + " x " + std::to_string(size[2]);
}

void check_shape(const Function& function, const Shape& shape) {
    const Profile& p = card();
    const auto wrong = [&](const std::string& why) { refuse(CUDA_ERROR_INVALID_VALUE, function.name + ": " + why); };
    constexpr uint32_t kMostBlocks[3] = {2147483647, 65535, 65535}, kMostThreads[3] = {1024, 1024, 64};
    for (int i = 0; i < 3; ++i) {
        if (shape.grid[i] == 0 || shape.grid[i] > kMostBlocks[i]) wrong("no grid can be " + text(shape.grid));
        if (shape.block[i] == 0 || shape.block[i] > kMostThreads[i]) wrong("no block can be " + text(shape.block));
    }
    const uint64_t threads = uint64_t{shape.block[0]} * shape.block[1] * shape.block[2];
    if (threads > static_cast<uint64_t>(p.max_threads_per_block))
        wrong("a block of " + std::to_string(threads) + " threads; the card has " + std::to_string(p.max_threads_per_block));
    const uint32_t* required = function.info.required_threads;
    if (required[0] && !std::equal(required, required + 3, shape.block))
        wrong("a block of " + text(shape.block) + " where the kernel requires " + text(required));
    if (threads > function.max_threads())
        wrong("a block of " + std::to_string(threads) + " threads; the kernel's bounds allow " +
              std::to_string(function.max_threads()));
    const uint32_t fixed = function.info.static_shared;
    if (fixed > static_cast<uint32_t>(p.shared_per_block))
        wrong(std::to_string(fixed) + " bytes of static shared memory; there are " + std::to_string(p.shared_per_block));
    if (shape.dynamic_shared > static_cast<uint32_t>(function.max_dynamic_shared))
        wrong(std::to_string(shape.dynamic_shared) + " bytes of dynamic shared memory beside " + std::to_string(fixed) +
              " static ones; CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES allows " +
              std::to_string(function.max_dynamic_shared));
    if (registers_of(function, static_cast<uint32_t>(threads)) > static_cast<uint64_t>(p.registers_per_block))
        refuse(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, function.name + ": " + std::to_string(threads) + " threads of " +
                                                       std::to_string(function.registers) + " registers; a block has " +
                                                       std::to_string(p.registers_per_block));
    if (shape.programmatic && !p.programmatic_launch)
        refuse(CUDA_ERROR_NOT_SUPPORTED, std::string(p.name) + " has no programmatic dependent launch");
    if (shape.cooperative) {
        const int blocks = occupancy(function, static_cast<uint32_t>(threads), shape.dynamic_shared) * p.multiprocessors;
        const uint64_t wanted = uint64_t{shape.grid[0]} * shape.grid[1] * shape.grid[2];
        if (wanted > static_cast<uint64_t>(blocks))
            refuse(CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE, function.name + ": " + std::to_string(wanted) + " blocks; " +
                                                                std::to_string(blocks) + " can be resident at once");
    }
}

std::vector<std::byte> copy_parameters(const Function& function, void** parameters, void** extra) {
    std::vector<std::byte> bytes(function.info.parameter_bytes);
    require(!parameters || !extra, "both parameters and a parameter buffer");
    if (extra) {
        const void* buffer = nullptr;
        const size_t* size = nullptr;
        for (void** at = extra; *at != CU_LAUNCH_PARAM_END; at += 2) {
            if (at[0] == CU_LAUNCH_PARAM_BUFFER_POINTER)
                buffer = at[1];
            else if (at[0] == CU_LAUNCH_PARAM_BUFFER_SIZE)
                size = static_cast<const size_t*>(at[1]);
            else
                refuse(CUDA_ERROR_INVALID_VALUE, "an unknown entry in `extra`");
        }
        if (bytes.empty()) return bytes;
        require(buffer && size, "`extra` has no buffer or no size");
        // The end may be padding.
        if (*size < bytes.size())
            refuse(CUDA_ERROR_INVALID_VALUE, function.name + ": a parameter buffer of " + std::to_string(*size) +
                                                 " bytes where the kernel takes " + std::to_string(bytes.size()));
        std::memcpy(bytes.data(), buffer, bytes.size());
        return bytes;
    }
    if (function.info.parameters.empty()) return bytes;
    require(parameters, "no parameters for a kernel that takes some");
    for (size_t i = 0; i < function.info.parameters.size(); ++i) {
        require(parameters[i], "a null pointer among the parameters");
        const auto& parameter = function.info.parameters[i];
        std::memcpy(bytes.data() + parameter.offset, parameters[i], parameter.bytes);
    }
    return bytes;
}

void launch(const std::shared_ptr<Function>& function, const Shape& shape, CUstream handle, void** parameters, void** extra) {
    const auto context = current();
    const auto stream = stream_of(context, handle);
    const bool captured = capturing(*stream);
    if (const auto module = function->module.lock(); module && module->context.lock() != context)
        refuse(CUDA_ERROR_INVALID_HANDLE, function->name + " is of another context");
    Launch work = check_launch(*function, shape, parameters, extra);
    if (captured) {
        // On a card this would depend on what else the process has loaded; here it never works.
        if (!function->loaded) {
            record("launch", "module load during capture: " + function->name +
                                 " is launched for the first time into a stream that is being captured; cuFuncLoad it before");
            invalidate(*stream->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                       function->name + " is not loaded yet, and loading is not permitted during a capture");
        }
        auto node = std::make_shared<Node>();
        node->work = KernelWork{function, std::move(work)};
        return capture_node(*stream, node, shape.programmatic);
    }
    if (!function->loaded) {
        refuse_during_capture(("the first launch of " + function->name).c_str());
        function->loaded = true;
    }
    issue(*context, *stream, std::move(work));
}

}  // namespace

Launch check_launch(Function& function, const Shape& shape, void** parameters, void** extra) {
    check_shape(function, shape);
    Launch launch;
    launch.kernel = function.kernel;
    std::copy_n(shape.grid, 3, launch.grid);
    std::copy_n(shape.block, 3, launch.block);
    launch.dynamic_shared = shape.dynamic_shared;
    launch.cooperative = shape.cooperative;
    launch.programmatic = shape.programmatic;
    launch.parameters = copy_parameters(function, parameters, extra);
    return launch;
}

int occupancy(const Function& function, uint32_t threads, uint64_t dynamic_shared) {
    const Profile& p = card();
    const uint64_t shared =
        rounded_up(function.info.static_shared + dynamic_shared, 128) + static_cast<uint64_t>(p.shared_reserved);
    uint64_t blocks = static_cast<uint64_t>(p.max_blocks_per_multiprocessor);
    blocks = std::min(blocks, static_cast<uint64_t>(p.max_threads_per_multiprocessor) / rounded_up(threads, 32));
    blocks = std::min(blocks, static_cast<uint64_t>(p.shared_per_multiprocessor) / shared);
    if (const uint64_t registers = registers_of(function, threads))
        blocks = std::min(blocks, static_cast<uint64_t>(p.registers_per_multiprocessor) / registers);
    return static_cast<int>(blocks);
}

}  // namespace vgpu::driver

using namespace vgpu;
using namespace vgpu::driver;

namespace {

std::shared_ptr<Function> function_of(CUfunction handle) { return state().functions.get(handle, "function"); }

}  // namespace

CUresult CUDAAPI cuLaunchKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                                unsigned int block_x, unsigned int block_y, unsigned int block_z, unsigned int shared,
                                CUstream stream, void** parameters, void** extra) {
    return in_context("cuLaunchKernel", [&](const std::shared_ptr<Context>&) {
        const Shape shape{{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared};
        launch(function_of(function), shape, stream, parameters, extra);
    });
}

CUresult CUDAAPI cuLaunchCooperativeKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                                           unsigned int block_x, unsigned int block_y, unsigned int block_z, unsigned int shared,
                                           CUstream stream, void** parameters) {
    return in_context("cuLaunchCooperativeKernel", [&](const std::shared_ptr<Context>&) {
        const Shape shape{{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared, true};
        launch(function_of(function), shape, stream, parameters, nullptr);
    });
}

CUresult CUDAAPI cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** parameters, void** extra) {
    return in_context("cuLaunchKernelEx", [&](const std::shared_ptr<Context>&) {
        require(config, "no configuration");
        require(config->numAttrs == 0 || config->attrs, "no attributes where some are said to be");
        Shape shape{{config->gridDimX, config->gridDimY, config->gridDimZ},
                    {config->blockDimX, config->blockDimY, config->blockDimZ},
                    config->sharedMemBytes};
        for (unsigned i = 0; i < config->numAttrs; ++i) {
            const CUlaunchAttribute& attribute = config->attrs[i];
            switch (attribute.id) {
                case CU_LAUNCH_ATTRIBUTE_IGNORE:
                case CU_LAUNCH_ATTRIBUTE_PRIORITY:
                case CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE:
                case CU_LAUNCH_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
                    break;
                case CU_LAUNCH_ATTRIBUTE_COOPERATIVE:
                    shape.cooperative = attribute.value.cooperative != 0;
                    break;
                case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION:
                    shape.programmatic = attribute.value.programmaticStreamSerializationAllowed != 0;
                    break;
                case CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION: {
                    const auto& size = attribute.value.clusterDim;
                    if (size.x == 1 && size.y == 1 && size.z == 1) break;
                    if (!card().cluster_launch)
                        refuse(CUDA_ERROR_INVALID_CLUSTER_SIZE, std::string(card().name) + " has no clusters");
                    [[fallthrough]];
                }
                default:
                    record("unknown_call",
                           "cuLaunchKernelEx with attribute " + std::to_string(attribute.id) +
                               (attribute.id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION ? ": a cluster of several blocks" : ""));
                    refuse(CUDA_ERROR_NOT_SUPPORTED, "the virtual GPU does not know this launch attribute");
            }
        }
        launch(function_of(function), shape, config->hStream, parameters, extra);
    });
}

// --- occupancy ------------------------------------------------------------------------------------------------------------

namespace {

void active_blocks(int* out, CUfunction handle, int block_size, size_t dynamic_shared) {
    require(out, "no place for the number");
    const auto function = function_of(handle);
    require(block_size > 0, "no block can have this size");
    const auto threads = static_cast<uint32_t>(block_size);
    const bool fits = threads <= function->max_threads() &&
                      function->info.static_shared + dynamic_shared <= static_cast<size_t>(card().shared_per_block_optin);
    *out = fits ? occupancy(*function, threads, dynamic_shared) : 0;
}

}  // namespace

CUresult CUDAAPI cuOccupancyMaxActiveBlocksPerMultiprocessor(int* out, CUfunction function, int block_size,
                                                             size_t dynamic_shared) {
    return in_context("cuOccupancyMaxActiveBlocksPerMultiprocessor",
                      [&](const std::shared_ptr<Context>&) { active_blocks(out, function, block_size, dynamic_shared); });
}

CUresult CUDAAPI cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* out, CUfunction function, int block_size,
                                                                      size_t dynamic_shared, unsigned int flags) {
    return in_context("cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags", [&](const std::shared_ptr<Context>&) {
        require(flags <= CU_OCCUPANCY_DISABLE_CACHING_OVERRIDE, "unknown flags");
        active_blocks(out, function, block_size, dynamic_shared);
    });
}

CUresult CUDAAPI cuOccupancyAvailableDynamicSMemPerBlock(size_t* out, CUfunction handle, int blocks, int block_size) {
    return in_context("cuOccupancyAvailableDynamicSMemPerBlock", [&](const std::shared_ptr<Context>&) {
        require(out && blocks > 0 && block_size > 0, "no place for the size, or no blocks");
        const auto function = function_of(handle);
        const Profile& p = card();
        const int share = p.shared_per_multiprocessor / blocks / 128 * 128 - p.shared_reserved;
        const int left = std::min(share, p.shared_per_block_optin) - static_cast<int>(function->info.static_shared);
        *out = static_cast<size_t>(std::max(left, 0));
    });
}

CUresult CUDAAPI cuOccupancyMaxPotentialBlockSize(int* grid, int* block, CUfunction handle, CUoccupancyB2DSize shared_of,
                                                  size_t dynamic_shared, int limit) {
    return in_context("cuOccupancyMaxPotentialBlockSize", [&](const std::shared_ptr<Context>&) {
        require(grid && block, "no place for the sizes");
        const auto function = function_of(handle);
        int most = static_cast<int>(function->max_threads());
        if (limit > 0) most = std::min(most, limit);
        int best = 0;
        for (int threads = (most + 31) / 32 * 32; threads > 0; threads -= 32) {
            const int size = std::min(threads, most);
            int blocks = 0;
            active_blocks(&blocks, handle, size, shared_of ? shared_of(size) : dynamic_shared);
            if (blocks * size > best) {
                best = blocks * size;
                *block = size;
                *grid = blocks * card().multiprocessors;
            }
        }
        if (best == 0) refuse(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, function->name + " fits in no block");
    });
}

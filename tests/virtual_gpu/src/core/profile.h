// The cards that the virtual GPU can be: what a launch may ask of each. CUDA C++ Programming Guide, "Compute Capabilities".
#pragma once

#include <cstdint>
#include <string_view>

namespace vgpu {

struct Profile {
    std::string_view name;  // "sm_90"
    int major, minor;
    std::string_view card;  // "virtual H100 (sm_90)"
    int multiprocessors;
    int max_threads_per_multiprocessor, max_blocks_per_multiprocessor;
    int shared_per_multiprocessor, shared_per_block, shared_per_block_optin, shared_reserved;
    int registers_per_multiprocessor, registers_per_block;
    int max_threads_per_block = 1024;
    uint64_t memory;  // bytes
    bool cluster_launch, programmatic_launch;
};

// Null for a name that is none of sm_80, sm_86, sm_89, sm_90, sm_100, sm_120.
const Profile* find_profile(std::string_view name);

}  // namespace vgpu

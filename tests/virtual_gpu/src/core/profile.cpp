#include "core/profile.h"

#include <array>

namespace vgpu {

namespace {

constexpr int kKiB = 1024;
constexpr uint64_t kGiB = uint64_t{1} << 30;

// "Technical Specifications per Compute Capability" of the CUDA C++ Programming Guide; the number of multiprocessors and the
// memory are of the card that is named. Every one of them has 64 Ki registers and keeps 1 KiB of shared memory a block.
constexpr std::array<Profile, 6> kProfiles = {{
    {"sm_80", 8, 0, "virtual A100 (sm_80)", 108, 2048, 32, 164 * kKiB, 48 * kKiB, 163 * kKiB, kKiB, 65536, 65536, 1024, 40 * kGiB,
     false, false},
    {"sm_86", 8, 6, "virtual RTX 3090 (sm_86)", 82, 1536, 16, 100 * kKiB, 48 * kKiB, 99 * kKiB, kKiB, 65536, 65536, 1024,
     24 * kGiB, false, false},
    {"sm_89", 8, 9, "virtual RTX 4090 (sm_89)", 128, 1536, 24, 100 * kKiB, 48 * kKiB, 99 * kKiB, kKiB, 65536, 65536, 1024,
     24 * kGiB, false, false},
    {"sm_90", 9, 0, "virtual H100 (sm_90)", 132, 2048, 32, 228 * kKiB, 48 * kKiB, 227 * kKiB, kKiB, 65536, 65536, 1024, 80 * kGiB,
     true, true},
    {"sm_100", 10, 0, "virtual B200 (sm_100)", 148, 2048, 32, 228 * kKiB, 48 * kKiB, 227 * kKiB, kKiB, 65536, 65536, 1024,
     180 * kGiB, true, true},
    {"sm_120", 12, 0, "virtual RTX 5090 (sm_120)", 170, 1536, 24, 100 * kKiB, 48 * kKiB, 99 * kKiB, kKiB, 65536, 65536, 1024,
     32 * kGiB, true, true},
}};

}  // namespace

const Profile* find_profile(std::string_view name) {
    for (const Profile& profile : kProfiles)
        if (profile.name == name) return &profile;
    return nullptr;
}

}  // namespace vgpu

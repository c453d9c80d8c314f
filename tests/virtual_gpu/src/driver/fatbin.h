// What a module is loaded from: PTX text, a fatbin, the wrapper that nvcc puts around one, or a cubin.
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "core/profile.h"

namespace vgpu::driver {

struct Image {
    std::string ptx;
    int version = 0;                       // .version 9.0: 90
    int target = 0;                        // .target sm_90a: 90
    std::map<std::string, int> registers;  // a thread of each kernel, where a cubin for the card is there too
};

// The PTX for the card; refuses what a driver would refuse. `bytes`: the size of the image where it is known; else the image's
// own headers say it, and plain PTX ends with a nought.
Image read_image(const void* image, std::optional<size_t> bytes, const Profile& card, int driver_version);

}  // namespace vgpu::driver

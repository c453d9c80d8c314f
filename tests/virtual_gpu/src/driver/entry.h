// Entry points by name and version.
#pragma once

namespace vgpu::driver {

struct Found {
    bool known = false;        // cuda.h has the name, perhaps from a later version on
    void* function = nullptr;  // of the newest version up to the one asked for
};
Found find_entry(const char* name, int version, bool per_thread);

// A call of an entry point that the virtual GPU does not have: a fault of kind "unknown_call".
int unserved(const char* symbol);

}  // namespace vgpu::driver

// The table of entry points, and what answers for those that are not served. Compiled without
// cuda.h: its declarations would be in the way of functions that are defined by name alone.
#include "driver/entry.h"

#include <cstring>

#define VGPU_WEAK extern "C" __attribute__((weak, visibility("default")))

// Every symbol of cuda.h; those that another file defines take the place of these.
#define ENTRY(symbol, name, version, per_thread) \
    VGPU_WEAK int symbol() { return vgpu::driver::unserved(#symbol); }
#define ERROR(code)
#include "entries.inc"
#undef ENTRY
#undef ERROR

namespace vgpu::driver {

namespace {

struct Entry {
    const char* name;
    int version;  // of CUDA, that it came with
    bool per_thread;
    int (*function)();
};

const Entry kEntries[] = {
#define ENTRY(symbol, name, version, per_thread) {#name, version, per_thread, &symbol},
#define ERROR(code)
#include "entries.inc"
#undef ENTRY
#undef ERROR
};

}  // namespace

Found find_entry(const char* name, int version, bool per_thread) {
    // cuda.h calls it so since 12.0.
    if (version >= 12000 && std::strcmp(name, "cuGraphInstantiate") == 0) name = "cuGraphInstantiateWithFlags";
    Found found;
    int best = -1;
    for (const Entry& entry : kEntries) {
        if (std::strcmp(entry.name, name) != 0 || (entry.per_thread && !per_thread)) continue;
        found.known = true;
        // A per-thread entry point before one of the same version without.
        if (entry.version > version || entry.version * 2 + entry.per_thread <= best) continue;
        best = entry.version * 2 + entry.per_thread;
        found.function = reinterpret_cast<void*>(entry.function);
    }
    return found;
}

}  // namespace vgpu::driver

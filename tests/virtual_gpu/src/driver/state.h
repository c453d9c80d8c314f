// What the driver API is about: contexts, streams, events, modules, graphs, and the one state that holds them. Handles are
// numbers that are never given out twice, so a destroyed one is always known for what it is.
#pragma once

#define __CUDA_API_PUSH_VISIBILITY_DEFAULT
#include <cuda.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "core/device.h"

// An entry point that today's cuda.h does not declare: an older ABI, or ours.
#define VGPU_EXPORT extern "C" __attribute__((visibility("default")))

namespace vgpu::driver {

// Why a call is not served; the entry point returns the code and keeps the words for vgpuLastError.
struct Refusal {
    CUresult code;
    std::string why;
};
[[noreturn]] void refuse(CUresult code, std::string why);
// INVALID_VALUE unless `holds`.
void require(bool holds, const char* why);

template <typename Object, typename Handle>
class Registry {
public:
    Handle add(std::shared_ptr<Object> object) {
        // Low addresses: whoever looks behind a handle is stopped.
        const Handle handle = reinterpret_cast<Handle>(next_ += 16);
        objects_.emplace(handle, std::move(object));
        return handle;
    }
    std::shared_ptr<Object> find(Handle handle) const {
        const auto at = objects_.find(handle);
        return at == objects_.end() ? nullptr : at->second;
    }
    std::shared_ptr<Object> get(Handle handle, const char* what) const {
        std::shared_ptr<Object> object = find(handle);
        if (!object) refuse(CUDA_ERROR_INVALID_HANDLE, std::string("no ") + what + " has this handle");
        return object;
    }
    void erase(Handle handle) { objects_.erase(handle); }
    template <typename Condition>
    void erase_if(Condition condition) {
        std::erase_if(objects_, [&](const auto& entry) { return condition(*entry.second); });
    }
    void clear() { objects_.clear(); }
    const std::unordered_map<Handle, std::shared_ptr<Object>>& all() const { return objects_; }

private:
    static inline uintptr_t next_ = 0x1000;
    std::unordered_map<Handle, std::shared_ptr<Object>> objects_;
};

// clock[s]: all launches of stream number s up to this one are over.
using Clock = std::vector<uint64_t>;
void join(Clock& clock, const Clock& other);
void raise(Clock& clock, uint32_t stream, uint64_t launch);

struct Context;
struct Module;
struct Graph;
struct Node;
struct Capture;

struct Function {
    std::string name;
    std::shared_ptr<LoadedModule> code;
    const Kernel* kernel = nullptr;
    KernelInfo info;
    std::weak_ptr<Module> module;
    CUfunction handle = nullptr;
    bool loaded = false;     // lazy loading: a launch or cuFuncLoad does it
    int registers = 0;       // a thread; 0: no cubin for this card says
    int max_dynamic_shared;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    int carveout = -1;
    int ptx_version = 0;
    uint32_t max_threads() const;  // a block
};

struct Module {
    std::shared_ptr<LoadedModule> code;
    std::weak_ptr<Context> context;
    std::map<std::string, CUfunction, std::less<>> functions;
    CUmodule handle = nullptr;
    CUlibrary library = nullptr;
};

// What a node depends on, or the tail of a stream that is being captured.
struct Edge {
    std::shared_ptr<Node> from;
    bool programmatic = false;
    uint8_t port = 0;
};

struct Stream {
    std::weak_ptr<Context> context;
    CUstream handle = nullptr;
    uint64_t id = 0;
    unsigned flags = 0;
    int priority = 0;
    bool legacy = false;
    bool blocking() const { return !legacy && !(flags & CU_STREAM_NON_BLOCKING); }

    uint32_t number = 0;             // Launch::stream
    Clock clock;                     // what the next operation is ordered after
    uint64_t over_before_chain = 0;  // the last launch before `pending`
    std::vector<Launch> pending;     // a launch and its programmatic dependents, not run yet

    std::shared_ptr<Capture> capture;
    std::vector<Edge> tips;
    ~Stream();
};

struct Event {
    std::weak_ptr<Context> context;
    unsigned flags = 0;
    bool recorded = false;
    Clock clock;
    double at = 0;                   // milliseconds
    std::weak_ptr<Capture> capture;  // recorded into one
    bool captured = false;
    std::vector<Edge> tips;
};

struct Context {
    CUcontext handle = nullptr;
    uint64_t id = 0;
    bool primary = false;
    unsigned flags = 0;
    CUresult broken = CUDA_SUCCESS;  // a fault sticks
    std::string why_broken;
    std::shared_ptr<Stream> legacy;
    std::map<std::thread::id, std::shared_ptr<Stream>> per_thread;
    std::map<CUlimit, size_t> limits;
    CUfunc_cache cache = CU_FUNC_CACHE_PREFER_NONE;
    std::set<uint64_t> allocations;
};

struct HostBlock {
    size_t bytes = 0;
    unsigned flags = 0;
    bool registered = false;  // not ours to free
    bool mapped = false;      // in the device's address range: kernels reach it
};

struct State {
    std::recursive_mutex mutex;

    bool initialised = false, eager = false;
    const Profile* card = nullptr;
    std::string chosen_card;  // by vgpuSetCard
    std::optional<uint64_t> seed;
    std::unique_ptr<Device> device;
    std::mt19937_64 random;

    Registry<Context, CUcontext> contexts;
    Registry<Stream, CUstream> streams;
    Registry<Event, CUevent> events;
    Registry<Module, CUmodule> modules;
    Registry<Module, CUlibrary> libraries;
    Registry<Function, CUfunction> functions;  // and kernels: a CUkernel is its CUfunction
    Registry<Graph, CUgraph> graphs;
    Registry<Node, CUgraphNode> nodes;
    Registry<struct Exec, CUgraphExec> execs;
    std::vector<std::weak_ptr<Capture>> captures;  // those that are under way
    std::shared_ptr<Context> primary;
    int primary_retained = 0;
    unsigned primary_flags = 0;
    std::map<uintptr_t, HostBlock> host;

    Clock known;                   // what the host has waited for
    std::vector<uint64_t> issued;  // launches of each stream number
    std::vector<uint32_t> free_numbers;
    uint64_t next_id = 1;

    std::string last_error;
    std::string answer;    // of the last vgpu* call
    std::string launches;  // counters for the report file
    std::string report_path;
};

// Never destroyed: threads of the host may outlive main().
State& state();

// The card; made when it is first needed.
Device& device();
const Profile& card();
int driver_version();                                // LLAMA_EXT_VGPU_DRIVER, to be an older one
void record(const char* kind, std::string message);  // a Fault without a place
bool is_device(uint64_t address);                    // in an allocation

// --- contexts: context.cpp
std::shared_ptr<Context> current();  // refuses: none, destroyed, broken
void destroy(const std::shared_ptr<Context>& context);
void forget_everything();  // every context, and the card

// --- streams: stream.cpp
uint32_t take_number();
void drop_number(uint32_t number);
std::shared_ptr<Stream> make_stream(const std::shared_ptr<Context>& context, unsigned flags, int priority);
std::shared_ptr<Stream> stream_of(const std::shared_ptr<Context>& context, CUstream handle);
// Runs what is pending. A fault breaks the context and refuses the call.
void flush(Stream& stream);
void flush_all(Context& context);
// Runs a chain of launches for a context; a fault breaks it.
void run(Context& context, std::span<const Launch> chain);
// The order among the default stream and the blocking ones; done before an operation is put into a stream.
void order(Context& context, Stream& stream);
// Both, before any operation but a launch.
void begin(Context& context, Stream& stream);
void issue(Context& context, Stream& stream, Launch launch);
void synchronize(Context& context, Stream& stream);
void synchronize(Context& context);
void drop_pending();

// --- capture.cpp
void refuse_during_capture(const char* call);  // an unsafe call while a capture forbids them
bool capturing(const Stream& stream);          // refuses when its capture is invalid
[[noreturn]] void invalidate(Capture& capture, CUresult code, std::string why);
void capture_node(Stream& stream, std::shared_ptr<Node> node, bool programmatic = false);
// A recorded event joins a stream to its capture; a capture's to other streams is refused.
void capture_record(Stream& stream, Event& event);
void capture_wait(const std::shared_ptr<Stream>& stream, Event& event);

// --- launch.cpp
struct Shape {
    uint32_t grid[3], block[3];
    uint32_t dynamic_shared = 0;
    bool cooperative = false, programmatic = false;
};
// A launch that the card and the function allow, its parameters copied.
Launch check_launch(Function& function, const Shape& shape, void** parameters, void** extra);
int occupancy(const Function& function, uint32_t threads, uint64_t dynamic_shared);

// --- memory.cpp
struct Copy {
    uint64_t to = 0, from = 0;
    size_t bytes = 0;
    bool to_device = false, from_device = false;
};
void check(const Copy& copy);
void run(Context& context, const Copy& copy);
struct Set {
    uint64_t to = 0;
    uint32_t value = 0, element = 1;
    size_t width = 0, height = 1, pitch = 0;
};
void check(const Set& set);
void run(const Set& set);

CUresult code_of(Outcome outcome);

// --- entry points -------------------------------------------------------------------------------------------------------

// The code and the words of the exception that is being handled.
CUresult refused(const char* call) noexcept;

// Runs an entry point's body under the lock; no exception leaves it.
template <typename Body>
CUresult plain(const char* call, Body&& body) noexcept {
    const std::lock_guard lock(state().mutex);
    try {
        body();
        return CUDA_SUCCESS;
    } catch (...) {
        return refused(call);
    }
}

// The same, once cuInit was called.
template <typename Body>
CUresult enter(const char* call, Body&& body) noexcept {
    return plain(call, [&] {
        if (!state().initialised) refuse(CUDA_ERROR_NOT_INITIALIZED, "cuInit was not called");
        body();
    });
}

// The same, in a context that works: body(context).
template <typename Body>
CUresult in_context(const char* call, Body&& body) noexcept {
    return enter(call, [&] { body(current()); });
}

}  // namespace vgpu::driver

#include "driver/state.h"

#include <cstdlib>
#include <fstream>
#include <new>

#include "driver/graph.h"

namespace vgpu::driver {

void refuse(CUresult code, std::string why) { throw Refusal{code, std::move(why)}; }

void require(bool holds, const char* why) {
    if (!holds) refuse(CUDA_ERROR_INVALID_VALUE, why);
}

void join(Clock& clock, const Clock& other) {
    if (clock.size() < other.size()) clock.resize(other.size());
    for (size_t i = 0; i < other.size(); ++i) clock[i] = std::max(clock[i], other[i]);
}

void raise(Clock& clock, uint32_t stream, uint64_t launch) {
    if (clock.size() <= stream) clock.resize(stream + 1);
    clock[stream] = std::max(clock[stream], launch);
}

State& state() {
    static State* const only = new State;
    return *only;
}

const Profile& card() {
    State& s = state();
    if (!s.card) {
        const char* named = std::getenv("LLAMA_EXT_VGPU_CARD");
        const std::string name = !s.chosen_card.empty() ? s.chosen_card : named && *named ? named : "sm_90";
        s.card = find_profile(name);
        if (!s.card) refuse(CUDA_ERROR_INVALID_DEVICE, "LLAMA_EXT_VGPU_CARD=" + name + " is no card that there is");
    }
    return *s.card;
}

int driver_version() {
    const char* named = std::getenv("LLAMA_EXT_VGPU_DRIVER");
    const int version = named ? std::atoi(named) : 0;
    return version > 0 ? version : 13000;
}

Device& device() {
    State& s = state();
    if (!s.device) {
        s.device = std::make_unique<Device>(card());
        if (!s.seed) {
            const char* named = std::getenv("LLAMA_EXT_VGPU_SEED");
            s.seed = named ? std::strtoull(named, nullptr, 10) : 0;
        }
        s.device->seed(*s.seed);
        s.random.seed(*s.seed);
    }
    return *s.device;
}

void record(const char* kind, std::string message) {
    Fault fault;
    fault.kind = kind;
    fault.message = std::move(message);
    device().faults().add(std::move(fault));
}

CUresult code_of(Outcome outcome) {
    switch (outcome) {
        case Outcome::success:
            return CUDA_SUCCESS;
        case Outcome::illegal_address:
            return CUDA_ERROR_ILLEGAL_ADDRESS;
        case Outcome::misaligned_address:
            return CUDA_ERROR_MISALIGNED_ADDRESS;
        case Outcome::illegal_instruction:
            return CUDA_ERROR_ILLEGAL_INSTRUCTION;
        case Outcome::assertion:
            return CUDA_ERROR_ASSERT;
        case Outcome::timeout:
            return CUDA_ERROR_LAUNCH_TIMEOUT;
        case Outcome::failed:
            break;
    }
    return CUDA_ERROR_LAUNCH_FAILED;
}

CUresult refused(const char* call) noexcept {
    CUresult code = CUDA_ERROR_UNKNOWN;
    try {
        try {
            throw;
        } catch (const Refusal& refusal) {
            code = refusal.code;
            state().last_error = std::string(call) + ": " + refusal.why;
        } catch (const std::bad_alloc&) {
            code = CUDA_ERROR_OUT_OF_MEMORY;
            state().last_error = std::string(call) + ": the host has no memory left";
        } catch (const std::exception& error) {
            state().last_error = std::string(call) + ": " + error.what();
        }
    } catch (...) {
    }
    return code;
}

namespace {

// Every stream's pending work; what fails is in the faults.
void settle() {
    for (const auto& [handle, context] : std::map(state().contexts.all().begin(), state().contexts.all().end())) {
        try {
            flush_all(*context);
        } catch (const Refusal&) {
        }
    }
}

std::string take_launches() {
    State& s = state();
    std::string taken = s.device ? s.device->take_report() : "";
    if (!s.report_path.empty() && !taken.empty()) s.launches += (s.launches.empty() ? "" : ",\n") + taken;
    return taken;
}

template <typename Body>
const char* answer(Body&& body) noexcept {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    try {
        s.answer = body();
        return s.answer.c_str();
    } catch (...) {
        return "[]";
    }
}

}  // namespace

void write_report() {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    if (s.report_path.empty() || !s.device) return;
    settle();
    take_launches();
    std::ofstream file(s.report_path);
    file << "{\"card\": \"" << card().name << "\",\n\"launches\": [" << s.launches
         << "],\n\"faults\": " << s.device->faults().json() << "}\n";
}

}  // namespace vgpu::driver

using namespace vgpu;
using namespace vgpu::driver;

// The order of blocks and warps and of a graph's nodes, from here on.
VGPU_EXPORT void vgpuSetSeed(uint64_t seed) {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    s.seed = seed;
    s.random.seed(seed);
    if (s.device) s.device->seed(seed);
}

// A JSON array of the faults since the last reset, once what is pending has run; good until the next vgpu* call.
VGPU_EXPORT const char* vgpuFaults(void) {
    return answer([] {
        settle();
        return state().device ? state().device->faults().json() : std::string("[]");
    });
}

// A JSON array of the counters of every launch since the last call, once what is pending has run.
VGPU_EXPORT const char* vgpuReport(void) {
    return answer([] {
        settle();
        return "[" + take_launches() + "]";
    });
}

// Why the last refused call was refused.
VGPU_EXPORT const char* vgpuLastError(void) {
    const std::lock_guard lock(state().mutex);
    return state().last_error.c_str();
}

// Drops pending work and captures, clears faults and the errors that stick. Memory and modules stay.
VGPU_EXPORT void vgpuReset(void) {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    try {
        drop_pending();
        for (const auto& weak : s.captures)
            if (const auto capture = weak.lock())
                for (const auto& member : capture->streams)
                    if (const auto stream = member.lock()) {
                        stream->capture = nullptr;
                        stream->tips.clear();
                    }
        s.captures.clear();
        for (const auto& [handle, context] : s.contexts.all()) context->broken = CUDA_SUCCESS;
        if (s.device) s.device->faults().clear();
        s.last_error.clear();
    } catch (...) {
        s.last_error = "vgpuReset failed";
    }
}

// Another card. Contexts, memory and modules are gone after it, and cuInit is due. 0: done.
VGPU_EXPORT int vgpuSetCard(const char* name) {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    try {
        if (!name || !find_profile(name)) {
            s.last_error = std::string("no card is called ") + (name ? name : "(null)");
            return 1;
        }
        take_launches();
        forget_everything();
        s.chosen_card = name;
        return 0;
    } catch (...) {
        s.last_error = "vgpuSetCard failed";
        return 1;
    }
}

#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "cuda/calls/calls.h"
#include "cuda/check.h"
#include "cuda/device.h"
#include "cuda/stream.h"

namespace llama_ext::cuda::calls {
namespace {

struct Loaded {
    DevicePtr device;
    std::shared_ptr<const Module> module;
};

// Made at a device's first call and kept until the process ends, whose driver may be gone by the time of destructors.
const Loaded& loaded(int ordinal) {
    static std::mutex mutex;
    static auto* const all = new std::map<int, Loaded>;
    const std::lock_guard lock(mutex);
    auto found = all->find(ordinal);
    if (found == all->end()) {
        auto device = std::make_shared<const Device>(ordinal);
        found = all->emplace(ordinal, Loaded{device, std::make_shared<const Module>(device)}).first;
    }
    return found->second;
}

// An error goes out as text: no exception crosses from one library into another.
template <typename Work>
const char* told(Work work) noexcept {
    thread_local std::string text;
    try {
        work();
        return nullptr;
    } catch (const std::exception& error) {
        try {
            text = error.what();
            return text.c_str();
        } catch (...) {
            return "out of memory";
        }
    } catch (...) {
        return "an unknown error";
    }
}

// Any address that is as aligned as scratch is, for a plan that is only counted.
constexpr Address kNowhere{uint64_t{1} << 32};

template <typename Call>
const char* scratch_bytes(int32_t device, const Call* call, uint64_t* bytes) {
    return told([=] {
        Scratch scratch(kNowhere);
        plan_of(*call, loaded(device).device->card(), scratch);
        *bytes = scratch.used();
    });
}

template <typename Call>
const char* run(const Place* place, const Call* call) {
    return told([=] {
        const Loaded& on = loaded(place->device);
        Scratch scratch(place->scratch ? Address{place->scratch} : kNowhere);
        Plan plan = plan_of(*call, on.device->card(), scratch);
        if (scratch.used() > 0) require_address("a call", "scratch", {place->scratch}, 256);
        require(place->scratch_bytes >= scratch.used(), "a call", "scratch",
                "of " + std::to_string(place->scratch_bytes) + " bytes", std::to_string(scratch.used()) + " or more");
        Stream(on.device, static_cast<CUstream>(place->stream)).run(Executable(on.module, std::move(plan)));
    });
}

template <typename Call>
constexpr Operation<Call> kOperation{&scratch_bytes<Call>, &run<Call>};

}  // namespace

const Table& table() {
    static constexpr Table kTable{kLayout,
                                  kOperation<RmsNorm>,
                                  kOperation<Rope>,
                                  kOperation<Attention>,
                                  kOperation<Linear>,
                                  kOperation<MoeRoute>,
                                  kOperation<MoeDispatch>,
                                  kOperation<MoeCombine>};
    return kTable;
}

}  // namespace llama_ext::cuda::calls

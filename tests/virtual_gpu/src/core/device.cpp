#include "core/device.h"

#include <sys/mman.h>

#include <cstring>
#include <stdexcept>

#include "core/builder.h"
#include "core/machine.h"

namespace vgpu {
namespace {

// Addresses that no memory lies behind: a window is looked at, never touched.
uint64_t reserve_window() {
    void* at = mmap(nullptr, Windows::kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) throw std::runtime_error("the virtual GPU cannot reserve its address space");
    return reinterpret_cast<uint64_t>(at);
}

class Loaded final : public LoadedModule {
public:
    Loaded(Machine& machine, std::string_view text) : machine_(machine), module_(ptx::parse(text)) {
        const int card = machine.profile.major * 10 + machine.profile.minor;
        if (module_->target > card)
            throw ptx::SyntaxError("PTX for sm_" + std::to_string(module_->target) + " does not run on sm_" +
                                   std::to_string(card));
        if (!module_->target_suffix.empty() && module_->target != card)
            throw ptx::SyntaxError("PTX for sm_" + std::to_string(module_->target) + module_->target_suffix +
                                   " runs on that card alone");
        for (const ptx::Variable& v : module_->variables) place(v, v.name);
        for (const ptx::Function& f : module_->functions)
            for (const ptx::Variable& v : f.variables) place(v, f.name + "::" + v.name);
        for (const ptx::Variable& v : module_->variables) point(v, v.name);
        for (const ptx::Function& f : module_->functions) {
            if (!f.entry || !f.defined) continue;
            try {
                kernels_[f.name] = Builder(*module_, symbols_, machine.windows, reserved()).build(f);
            } catch (const ptx::SyntaxError& error) {
                Fault fault;
                fault.kind = "unknown_instruction";
                fault.message = error.what();
                fault.at.kernel = f.name;
                machine.faults.add(std::move(fault));
                throw;
            }
        }
    }
    ~Loaded() override {
        for (const auto& [name, address] : symbols_) machine_.memory.free(address);
    }
    const Kernel* kernel(std::string_view name) const override {
        const auto found = kernels_.find(std::string(name));
        return found == kernels_.end() ? nullptr : found->second.get();
    }
    std::vector<std::string> kernels() const override {
        std::vector<std::string> names;
        for (const auto& [name, kernel] : kernels_) names.push_back(name);
        return names;
    }
    const KernelInfo& info(const Kernel* kernel) const override { return kernel->info; }
    bool variable(std::string_view name, uint64_t* address, size_t* bytes) const override {
        const auto found = symbols_.find(std::string(name));
        if (found == symbols_.end()) return false;
        *address = found->second;
        *bytes = machine_.memory.at(found->second)->bytes;
        return true;
    }

private:
    int reserved() const { return machine_.profile.shared_reserved; }

    void place(const ptx::Variable& v, const std::string& name) {
        if (v.space != ptx::Space::global && v.space != ptx::Space::constant) return;
        if (v.is_extern || v.bytes() == 0) return;  // whoever uses it is refused: nothing links here
        const uint64_t at = machine_.memory.allocate(v.bytes(), v.name);
        if (!at) throw ptx::SyntaxError("no memory for variable " + v.name);
        // The driver zeroes what has no initialiser.
        std::memset(reinterpret_cast<void*>(at), 0, v.bytes());
        std::memcpy(reinterpret_cast<void*>(at), v.initial.data(), v.initial.size());
        machine_.memory.mark_written(at, v.bytes());
        if (v.space == ptx::Space::constant) machine_.memory.mark_read_only(at, v.bytes());
        symbols_[name] = at;
    }

    void point(const ptx::Variable& v, const std::string& name) {
        for (const ptx::Variable::Address& a : v.addresses) {
            const auto target = symbols_.find(a.symbol);
            if (target == symbols_.end())
                throw ptx::SyntaxError("the initialiser of " + name + " names " + a.symbol + ", which has no address");
            const uint64_t value = target->second + static_cast<uint64_t>(a.addend);
            std::memcpy(reinterpret_cast<void*>(symbols_.at(name) + a.offset), &value, sizeof value);
        }
    }

    Machine& machine_;
    std::unique_ptr<ptx::Module> module_;
    GlobalSymbols symbols_;
    std::map<std::string, std::unique_ptr<Kernel>> kernels_;
};

}  // namespace

Machine::Machine(const Profile& p) : profile(p), memory(p.memory) {
    windows.shared = reserve_window();
    windows.local = reserve_window();
    windows.param = reserve_window();
    windows.global = memory.base();
}

Machine::~Machine() {
    for (const uint64_t window : {windows.shared, windows.local, windows.param})
        munmap(reinterpret_cast<void*>(window), Windows::kBytes);
}

struct Device::Impl {
    explicit Impl(const Profile& profile) : machine(profile) {}
    Machine machine;
};

Device::Device(const Profile& profile) : impl_(std::make_unique<Impl>(profile)) {}
Device::~Device() = default;

const Profile& Device::profile() const { return impl_->machine.profile; }
uint64_t Device::allocate(size_t bytes) { return impl_->machine.memory.allocate(bytes); }
uint64_t Device::allocate_host(size_t bytes) { return impl_->machine.memory.allocate_host(bytes); }
bool Device::free(uint64_t address) { return impl_->machine.memory.free(address); }
size_t Device::allocated() const { return impl_->machine.memory.allocated(); }

bool Device::find(uint64_t address, uint64_t* begin, size_t* bytes) const {
    const Allocation* allocation = impl_->machine.memory.at(address);
    if (!allocation) return false;
    *begin = allocation->begin;
    *bytes = allocation->bytes;
    return true;
}

bool Device::holds(uint64_t address, size_t bytes) const {
    const Allocation* allocation = impl_->machine.memory.at(address);
    return allocation && bytes <= allocation->bytes - (address - allocation->begin);
}

bool Device::of_host(uint64_t address) const {
    const Allocation* allocation = impl_->machine.memory.at(address);
    return allocation && allocation->host;
}

Outcome Device::write(uint64_t to, const void* from, size_t bytes) {
    if (!bytes) return Outcome::success;
    std::memcpy(reinterpret_cast<void*>(to), from, bytes);
    impl_->machine.memory.mark_written(to, bytes);
    return Outcome::success;
}

Outcome Device::read(void* to, uint64_t from, size_t bytes) {
    if (!bytes) return Outcome::success;
    Memory& memory = impl_->machine.memory;
    if (!all_ready(memory.shadow(from), bytes)) {
        uint64_t at = from;
        while ((*memory.shadow(at) & kReady) == kReady) ++at;
        Fault f;
        f.kind = "uninitialised";
        f.message = "a copy to the host of memory that was never written";
        f.has_address = true;
        f.address = at;
        f.space = "global";
        f.access = "read of " + std::to_string(bytes) + " bytes by the host";
        f.allocation = memory.describe(at, 1);
        impl_->machine.faults.add(std::move(f));
        std::memcpy(to, reinterpret_cast<const void*>(from), bytes);
        return Outcome::failed;
    }
    std::memcpy(to, reinterpret_cast<const void*>(from), bytes);
    return Outcome::success;
}

Outcome Device::copy(uint64_t to, uint64_t from, size_t bytes) {
    if (!bytes) return Outcome::success;
    Memory& memory = impl_->machine.memory;
    std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes);
    if (all_ready(memory.shadow(from), bytes)) {
        memory.mark_written(to, bytes);
    } else {
        memory.mark_uninitialised(to, bytes);
        for (size_t i = 0; i < bytes; ++i)
            if (*memory.shadow(from + i) & kInitialised) *memory.shadow(to + i) |= kInitialised;
    }
    return Outcome::success;
}

void Device::fill(uint64_t to, const void* pattern, size_t pattern_bytes, size_t count) {
    auto* at = reinterpret_cast<uint8_t*>(to);
    if (pattern_bytes == 1)
        std::memset(at, *static_cast<const uint8_t*>(pattern), count);
    else
        for (size_t i = 0; i < count; ++i) std::memcpy(at + i * pattern_bytes, pattern, pattern_bytes);
    if (count) impl_->machine.memory.mark_written(to, count * pattern_bytes);
}

std::shared_ptr<LoadedModule> Device::load(std::string_view ptx) { return std::make_shared<Loaded>(impl_->machine, ptx); }

Outcome Device::run(std::span<const Launch> chain) { return impl_->machine.run(chain); }

void Device::seed(uint64_t seed) {
    impl_->machine.seed = seed;
    impl_->machine.random.seed(seed);
}

Faults& Device::faults() { return impl_->machine.faults; }

std::string Device::take_report() { return std::move(impl_->machine.report); }

}  // namespace vgpu

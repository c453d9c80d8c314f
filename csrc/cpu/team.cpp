#include "cpu/team.h"

#include <unistd.h>

#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

namespace llama_ext::cpu {
namespace {

void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Rounding to nearest, subnormals kept, whatever another library has set for the thread: a row's bits must not depend on which
// member computed it.
class DefaultFloatingPoint {
public:
    DefaultFloatingPoint() {
#if defined(__x86_64__) || defined(__i386__)
        saved_ = __builtin_ia32_stmxcsr();
        __builtin_ia32_ldmxcsr(0x1f80);
#elif defined(__aarch64__)
        asm volatile("mrs %0, fpcr" : "=r"(saved_));
        asm volatile("msr fpcr, %0" : : "r"(uint64_t{0}));
#endif
    }
    ~DefaultFloatingPoint() {
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_ldmxcsr(saved_);
#elif defined(__aarch64__)
        asm volatile("msr fpcr, %0" : : "r"(saved_));
#endif
    }
    DefaultFloatingPoint(const DefaultFloatingPoint&) = delete;
    DefaultFloatingPoint& operator=(const DefaultFloatingPoint&) = delete;

private:
#if defined(__x86_64__) || defined(__i386__)
    unsigned saved_;
#elif defined(__aarch64__)
    uint64_t saved_;
#endif
};

}  // namespace

Team::Team(int size) : size_(size), process_(getpid()) {
    if (size < 1) throw std::invalid_argument("threads must be 1 or more, is " + std::to_string(size));
    threads_.reserve(static_cast<size_t>(size - 1));
    try {
        for (int member = 1; member < size; ++member) threads_.emplace_back([this, member] { work(member); });
    } catch (const std::system_error& error) {
        const size_t begun = threads_.size() + 1;
        dismiss();
        throw std::runtime_error("the system gave " + std::to_string(begun) + " of " + std::to_string(size) + " threads (" +
                                 error.what() + "); ask for fewer");
    }
}

Team::~Team() {
    if (getpid() != process_) {
        // A forked child: the threads exist only in the parent, and their handles may name threads of the child's own by now.
        // They are neither joined nor detached but left behind.
        static_cast<void>(new std::vector<std::thread>(std::move(threads_)));
        return;
    }
    dismiss();
}

void Team::dismiss() {
    stop_ = true;
    epoch_.fetch_add(1, std::memory_order_seq_cst);
    epoch_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
}

void Team::wait_while(std::atomic<uint32_t>& word, uint32_t value) {
    // The clock is read only now and then: reading it costs as much as tens of looks at the word.
    for (int i = 0; i < 64; ++i) {
        if (word.load(std::memory_order_acquire) != value) return;
        relax();
    }
    const auto deadline = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int i = 0; i < 64; ++i) {
            if (word.load(std::memory_order_acquire) != value) return;
            relax();
        }
    } while (std::chrono::steady_clock::now() < deadline);
    word.wait(value, std::memory_order_acquire);
}

void Team::barrier() {
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(size_)) {
        arrived_.store(0, std::memory_order_relaxed);
        // Sequentially consistent, as is the epoch: with less, the look for sleepers that notify_all takes could come before the
        // store, and miss one who has just seen the old value.
        phase_.store(phase + 1, std::memory_order_seq_cst);
        phase_.notify_all();
    } else {
        wait_while(phase_, phase);
    }
}

void Team::require_own_process() const {
    if (getpid() != process_)
        throw std::runtime_error(
            "this model was loaded before the process was forked and its threads stayed behind; load it again in the child");
}

void Team::run(const std::function<void(int)>& job) {
    require_own_process();
    const DefaultFloatingPoint floating_point;
    if (size_ == 1) return job(0);
    job_ = &job;
    epoch_.fetch_add(1, std::memory_order_seq_cst);
    epoch_.notify_all();
    job(0);
    barrier();  // everyone is done
}

void Team::work(int member) {
    const DefaultFloatingPoint floating_point;
    for (uint32_t seen = 0;; ++seen) {
        wait_while(epoch_, seen);
        if (stop_) return;
        (*job_)(member);
        barrier();
    }
}

}  // namespace llama_ext::cpu

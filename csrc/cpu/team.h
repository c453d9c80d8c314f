// A team of threads that walk one program together. The caller's thread is member 0. Between instructions the members meet at
// a barrier that spins; a member that has waited kSpin gives its core back and sleeps until it is woken.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace llama_ext::cpu {

class Team {
public:
    explicit Team(int size);  // 1 or more, the caller included
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return size_; }

    // Runs job(member) on every member, 0 .. size - 1, and returns when all have. One run at a time: the caller sees to it.
    // `job` must not throw. Requires the process that made the team.
    void run(const std::function<void(int)>& job);

    // Throws std::runtime_error in a process that was forked off the one that made the team: its threads stayed behind, and
    // locks may be held by them for ever. To be asked before any lock is taken.
    void require_own_process() const;

    // Inside a job: no member returns before every member has called it. What was written before it is visible after it.
    void barrier();

private:
    static constexpr auto kSpin = std::chrono::microseconds(50);

    void dismiss();  // ends the threads and waits for them
    static void wait_while(std::atomic<uint32_t>& word, uint32_t value);
    void work(int member);

    const int size_;
    const pid_t process_;
    // One cache line a word that members spin on.
    alignas(64) std::atomic<uint32_t> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};  // barriers passed
    alignas(64) std::atomic<uint32_t> epoch_{0};  // runs begun
    const std::function<void(int)>* job_ = nullptr;
    bool stop_ = false;
    std::vector<std::thread> threads_;
};

// The half-open range of `count` things that falls to `member` of `size`: contiguous, sizes differing by one at the most.
struct Share {
    int64_t begin, end;
};
inline Share share(int64_t count, int member, int size) { return {count * member / size, count * (member + 1) / size}; }

}  // namespace llama_ext::cpu

// Runs a program on a CUDA device: its instructions turned into launches once, and replayed as a captured graph every step.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cuda/cache.h"
#include "cuda/device.h"
#include "cuda/lower.h"
#include "cuda/sample.h"
#include "cuda/stream.h"
#include "program/draw.h"
#include "program/program.h"

namespace llama_ext::cuda {

class Executor {
public:
    struct Options {
        int ordinal = 0;      // of the device
        int threads = 1;      // that pack weights
        bool poison = false;  // fill every buffer with NaN before each step
        bool graphs = true;   // false: launch by launch
        // Bytes of device memory for weights and buffers; 0: what is free, but for a reserve for keys and values. Experts that
        // do not fit stay in the host's memory, pinned, those used last on the card.
        size_t memory_limit = 0;
        const void* image = nullptr;  // kernels that take the place of those built in (Module)
    };
    // progress(done, total), in bytes of weights packed so far; called on the caller's thread
    Executor(Program program, const Options& options, const std::function<void(size_t, size_t)>& progress);
    ~Executor();

    const Program& program() const { return program_; }
    const Device& device() const { return *device_; }
    size_t weight_bytes() const { return weights_->bytes(); }  // on the card
    size_t host_bytes() const { return host_ ? host_->bytes() : 0; }
    // Of experts in the host's memory: the bytes of their places on the card, how many of them are in use, and how often a chosen
    // one was there.
    struct Residency {
        size_t budget, resident;
        uint64_t hits, misses;
    };
    Residency residency();
    // Graphs captured so far: one for steps of one row, one for drafted rows.
    int captures() const { return captures_; }

    std::unique_ptr<Cache> make_cache(bool poison, int64_t start);

    // As cpu::Executor has them.
    void run(Cache& cache, const int32_t* ids, int rows, int64_t logit_rows, float* logits);
    int32_t run_and_draw(Cache& cache, const int32_t* ids, int rows, const Draw& draw);

    // Seconds that the card takes to read and write `bytes` in all, copying one half of them over the other.
    double read_seconds(size_t bytes);

    // The launches of a step of so many rows.
    Plan plan(int rows) const;

private:
    // What a step brings from the host in one copy; its ids follow.
    struct Control {
        Step step;
        DrawState draw;
    };

    Address take(size_t bytes, bool poisoned = true);
    void make_places();
    void put_experts(size_t limit, size_t total);
    void capture_graphs();
    int32_t step(Cache& cache, const int32_t* ids, int rows, int64_t logit_rows, float* logits, const Draw* draw);
    DrawState on_device(const Draw& draw);
    void run_small(int rows, int64_t logit_rows, float* logits);
    void run_large(int rows, int64_t logit_rows, float* logits);
    std::shared_ptr<const Executable> prefill(int rows);

    const Program program_;
    const bool poison_, graphs_;
    std::mutex mutex_;
    DevicePtr device_;
    std::shared_ptr<const Module> module_;
    std::unique_ptr<Stream> stream_;
    std::unique_ptr<Weights> weights_;
    std::unique_ptr<HostMemory> host_;     // of experts that do not fit
    std::unique_ptr<HostMemory> control_;  // Control, ids, and behind them the id that was drawn
    std::vector<std::unique_ptr<Memory>> memory_;
    std::vector<const Memory*> poisoned_;
    std::unique_ptr<Memory> history_, probe_;
    Places places_;
    const int max_rows_, draft_rows_;  // of a step in one piece; of the form for drafted rows
    const bool tiles_;
    std::map<int, ExpertSet> experts_;
    ExpertPool pool_;
    std::vector<std::unique_ptr<Lowered>> code_, tail_;    // tail_: head and sample
    std::shared_ptr<const Executable> one_, draft_, end_;  // end_: the tail, after a prefill
    std::unique_ptr<Graph> one_graph_, draft_graph_;
    std::list<std::pair<int, std::shared_ptr<const Executable>>> prefills_;  // by rows, the last used first
    uint64_t current_ = 0;                                                   // the cache whose addresses the card has
    std::vector<int32_t> ids_;
    int captures_ = 0;
};

}  // namespace llama_ext::cuda

// Carries plans out: launch by launch, or captured once as a graph that is replayed.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <memory>
#include <vector>

#include "cuda/device.h"
#include "cuda/plan.h"

namespace llama_ext::cuda {

// A plan whose kernels have been looked up: nothing is left to do at a step but to launch.
class Executable {
public:
    Executable(std::shared_ptr<const Module> module, Plan plan);
    // parameters_ points into plan_.
    Executable(const Executable&) = delete;
    Executable& operator=(const Executable&) = delete;

    const Plan& plan() const { return plan_; }
    const Device& device() const { return module_->device(); }

private:
    friend class Stream;

    std::shared_ptr<const Module> module_;
    Plan plan_;
    std::vector<CUfunction> functions_;           // a launch
    std::vector<bool> waits_;                     // a launch: its code waits for its predecessor itself
    std::vector<std::vector<void*>> parameters_;  // a launch: where each argument's value lies
};

// A captured executable: one call launches it all. What changes from step to step is read from device memory.
class Graph {
public:
    ~Graph();
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;

private:
    friend class Stream;
    explicit Graph(std::shared_ptr<const Executable> executable) : executable_(std::move(executable)) {}

    std::shared_ptr<const Executable> executable_;
    CUgraphExec handle_ = nullptr;
};

// Work in order. One thread uses it at a time.
class Stream {
public:
    explicit Stream(DevicePtr device);
    ~Stream();
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;

    const Device& device() const { return *device_; }

    // Both return when the bytes are there, and with them all that was launched before.
    void write(Address to, const void* from, size_t bytes);
    void read(void* to, Address from, size_t bytes);
    void fill(Address to, unsigned char byte, size_t bytes);

    void run(const Executable& executable);
    std::unique_ptr<Graph> capture(std::shared_ptr<const Executable> executable);
    void run(const Graph& graph);
    void synchronize();

private:
    void launch(const Executable& executable);

    DevicePtr device_;
    CUstream handle_ = nullptr;
};

}  // namespace llama_ext::cuda

// Carries plans out: launch by launch, or captured once as a graph that is replayed.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <utility>
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

// Captured work: one call launches it all, again and again. What changes from step to step is read from device memory, or copied
// from pinned memory by the graph itself, which reads it anew at each run.
class Graph {
public:
    ~Graph();
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;

private:
    friend class Stream;
    explicit Graph(DevicePtr device) : device_(std::move(device)) {}

    DevicePtr device_;
    std::shared_ptr<const Executable> executable_;  // if the graph is of one
    CUgraphExec handle_ = nullptr;
};

// A moment in a stream.
class Event {
public:
    explicit Event(DevicePtr device);
    ~Event();
    Event(const Event&) = delete;
    Event& operator=(const Event&) = delete;

    // From `earlier` to this one, on the device's clock. Waits until both are over.
    double milliseconds_since(const Event& earlier) const;

private:
    friend class Stream;

    DevicePtr device_;
    CUevent handle_ = nullptr;
};

// Work in order. One thread uses it at a time.
class Stream {
public:
    explicit Stream(DevicePtr device);
    // Another library's stream (torch's), of the device's primary context; it must outlive this. Null is the default stream,
    // which cannot be captured.
    Stream(DevicePtr device, CUstream foreign);
    ~Stream();
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;

    const Device& device() const { return *device_; }

    // Both return when the bytes are there, and with them all that was launched before.
    void write(Address to, const void* from, size_t bytes);
    void read(void* to, Address from, size_t bytes);

    // These are done when the stream comes to them: the host's side must be pinned (HostMemory) and left alone until then.
    void write_async(Address to, const void* from, size_t bytes);
    void read_async(void* to, Address from, size_t bytes);
    void copy(Address to, Address from, size_t bytes);  // on the device
    void fill(Address to, unsigned char byte, size_t bytes);

    void run(const Executable& executable);
    void run(const Graph& graph);
    void record(const Event& event);
    void synchronize();

    // Captures what `work` puts into this stream: run(executable), copy, fill, write_async and read_async. Executables and memory
    // that it names must outlive the graph. Whatever waits is refused meanwhile.
    std::unique_ptr<Graph> capture(const std::function<void()>& work);
    std::unique_ptr<Graph> capture(std::shared_ptr<const Executable> executable);

private:
    DevicePtr device_;
    CUstream handle_ = nullptr;
    bool owned_;
};

}  // namespace llama_ext::cuda

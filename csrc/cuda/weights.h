// A program's weights in device memory, packed (cuda/kernels/packed.h).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "cuda/device.h"
#include "cuda/pack.h"
#include "cuda/stream.h"
#include "program/program.h"

namespace llama_ext::cuda {

// One matrix out of several of as many columns and one format.
struct Stack {
    enum class Order { behind, interleaved };  // interleaved: row i of the first, row i of the second, ...
    std::vector<WeightPtr> parts;
    Order order = Order::behind;

    bool one_format() const;
    Format format() const { return parts[0]->format; }
    int64_t rows() const;
    int64_t cols() const { return parts[0]->cols; }
    size_t bytes() const;  // packed
};

class Weights {
public:
    // threads: that pack. progress(done, total), in bytes of packed weights, on the caller's thread; it may throw, to stop.
    Weights(DevicePtr device, Stream& stream, int threads, size_t total, const std::function<void(size_t, size_t)>& progress);
    ~Weights();
    Weights(const Weights&) = delete;
    Weights& operator=(const Weights&) = delete;

    // A stack in device memory, in its format or widened to float32. What is asked for again is there already.
    Matrix matrix(const Stack& stack, bool widen = false);
    Matrix matrix(const WeightPtr& weight) { return matrix(Stack{{weight}}); }
    Address vector(const WeightPtr& weight) { return matrix(Stack{{weight}}, true).base; }  // float32

    // A stack into stack.bytes() of memory of the caller's: the device's, or the host's.
    void pack_to_device(const Stack& stack, bool widen, Address to);
    void pack_to_host(const Stack& stack, std::byte* to);
    // Device memory that lives as long as this, on 256 bytes, undefined.
    Address reserve(size_t bytes);

    size_t bytes() const { return bytes_; }  // of device memory

private:
    void report(size_t bytes);

    DevicePtr device_;
    Stream& stream_;
    const int threads_;
    const size_t total_;
    const std::function<void(size_t, size_t)>& progress_;
    size_t done_ = 0, bytes_ = 0;
    std::unique_ptr<HostMemory> staging_;
    std::vector<std::unique_ptr<Memory>> memory_;
    std::map<std::pair<std::vector<const Weight*>, bool>, Matrix> known_;  // parts, widened or not
};

}  // namespace llama_ext::cuda

// The keys and values of one session in device memory. Memory is taken as it is needed, twice as much at a time: the kernels read
// addresses and capacities from a table (CacheState), so no launch and no graph changes.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cuda/device.h"
#include "cuda/kernels/step.h"
#include "cuda/stream.h"
#include "program/sequence.h"

namespace llama_ext::cuda {

class Cache : public Sequence {
public:
    // The stream is the executor's, which outlives its caches.
    // poison: fill every slot that holds no position with NaN, so that reading one shows (for tests)
    // start: Sequence
    Cache(const Program& program, DevicePtr device, Stream& stream, bool poison, int64_t start = 0);

    void rollback(int64_t n);
    void reset();

    // Room for `rows` more positions; true if addresses have changed. The lock is held.
    bool reserve(int64_t rows);
    const std::vector<CacheState>& states() const { return states_; }  // a layer
    uint64_t identity() const { return identity_; }                    // no two caches of a process have the same
    size_t bytes_reserved() const;

private:
    // What a layer's slots consist of: integers or floats, and scales.
    struct Plane {
        std::unique_ptr<Memory> memory;
        size_t slot_bytes;  // of one head
    };
    struct Layer {
        CacheLayer layout;
        int64_t capacity = 0;       // slots that there is memory for
        std::vector<Plane> planes;  // keys, values, and of q8_0 key_scales, value_scales
    };

    void grow(Layer* layer, int64_t capacity);
    void poison_slots(const Layer& layer, int64_t first, int64_t last);

    const uint64_t identity_;
    const DevicePtr device_;
    Stream& stream_;
    const bool poison_;
    std::vector<Layer> layers_;
    std::vector<CacheState> states_;
};

}  // namespace llama_ext::cuda

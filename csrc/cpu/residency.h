// Experts that stay in their file: which of them may lie in memory. The most recently used do, as far as a budget reaches.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <list>
#include <span>
#include <vector>

#include "program/file_map.h"

namespace llama_ext::cpu {

class Residency {
public:
    // An expert's matrices come and go in two parts, those of experts_gate_up and those of experts_down: a step of many rows
    // goes through all experts of a layer with the first before it comes to the second.
    enum class Part : uint8_t { gate_up, down };

    // budget: bytes of file pages that may be resident
    explicit Residency(size_t budget) : budget_(budget) {}
    // Gives back what is resident: the file's map may live on.
    ~Residency();
    Residency(const Residency&) = delete;
    Residency& operator=(const Residency&) = delete;

    // While weights are bound: a matrix of an expert of a layer. Layers and experts count from 0 and may come in any order.
    void add(int layer, Part part, int expert, const std::byte* data, size_t bytes);
    bool empty() const { return units_.empty(); }

    // When all have been added. Throws std::invalid_argument, with the bytes that are missing, if `together` experts of one
    // layer do not fit.
    void prepare(int together);

    // Before their matrices are touched, and only while nobody touches any: makes these experts of a layer the most recently
    // used. Those that are not resident are read ahead, and the least recently used are given back until all fit. More experts
    // than fit are served one after another by as many calls.
    void use(int layer, Part part, std::span<const int32_t> experts);
    // Only begins to read.
    void expect(int layer, Part part, int32_t expert) const;

    size_t budget() const { return budget_; }
    size_t resident() const { return resident_; }
    int64_t hits() const { return hits_; }
    int64_t misses() const { return misses_; }

private:
    struct Unit {
        std::vector<Resident> ranges{};
        size_t bytes = 0;  // the most that is resident for it
        bool resident = false;
        std::list<Unit*>::iterator place{};  // in recent_, while resident
    };

    static size_t index(int layer, Part part) { return 2 * static_cast<size_t>(layer) + static_cast<size_t>(part); }

    const size_t budget_;
    // Read by other threads while a step writes them.
    std::atomic<size_t> resident_ = 0;
    std::atomic<int64_t> hits_ = 0, misses_ = 0;
    std::vector<std::vector<Unit>> units_;  // [layer and part][expert]; never resized once used
    std::list<Unit*> recent_;               // resident ones, the least recently used first
};

}  // namespace llama_ext::cpu

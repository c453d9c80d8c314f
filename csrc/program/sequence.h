// How far a sequence of tokens has come: what every cache of keys and values keeps beside them.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>

#include "program/program.h"

namespace llama_ext {

class Sequence {
public:
    // start: the position of the first token. There is nothing before it: a query sees its mask's keys from `start` on. Throws
    // std::invalid_argument unless it is from 0 to the program's max_context.
    Sequence(const Program& program, int64_t start);

    const Program& program() const { return program_; }
    int64_t start() const { return start_; }
    int64_t position() const { return position_; }
    // The furthest position since the rings were empty: what it overwrote is gone.
    int64_t highest() const { return highest_; }
    int64_t max_rollback() const;
    // Bytes of the slots that hold positions now.
    size_t bytes_used() const;

    // An executor holds this during a step; rollback and reset, perhaps from another thread, wait for it.
    std::unique_lock<std::mutex> lock() { return std::unique_lock(mutex_); }

    // Of a step that an executor may take now. Throws std::invalid_argument for rows that are not 1 to max_rows, logit_rows that
    // are not 0 to rows, an id outside the vocabulary, or a step past max_context. Each id is read once, into `to` [rows].
    void check_step(const int32_t* ids, int rows, int64_t logit_rows, int32_t* to) const;

    // These three hold the lock.
    void advance(int64_t rows);
    // Throws std::invalid_argument when n is negative, more than there are, or more than the rings can take back.
    void take_back(int64_t n);
    void begin_again();

private:
    const Program& program_;
    const int64_t start_;
    std::mutex mutex_;
    std::atomic<int64_t> position_, highest_;
};

}  // namespace llama_ext

#include "program/sequence.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace llama_ext {

Sequence::Sequence(const Program& program, int64_t start) : program_(program), start_(start), position_(start), highest_(start) {
    if (start < 0 || start > program.max_context)
        throw std::invalid_argument("a cache starts at a position from 0 to max_context " + std::to_string(program.max_context) +
                                    ", not " + std::to_string(start));
}

int64_t Sequence::max_rollback() const {
    const int64_t position = position_;
    return std::min(position - start_, program_.max_rollback(position, highest_));
}

size_t Sequence::bytes_used() const {
    size_t bytes = 0;
    for (const CacheLayer& layer : program_.caches)
        bytes += static_cast<size_t>(std::min(position_ - start_, layer.capacity)) * layer.bytes_per_slot();
    return bytes;
}

void Sequence::check_step(const int32_t* ids, int rows, int64_t logit_rows, int32_t* to) const {
    if (rows < 1 || rows > program_.max_rows)
        throw std::invalid_argument("a step takes 1 to " + std::to_string(program_.max_rows) + " rows, not " +
                                    std::to_string(rows));
    if (logit_rows < 0 || logit_rows > rows) throw std::invalid_argument("logit_rows must be between 0 and the step's rows");
    if (position_ + rows > program_.max_context) {
        throw std::invalid_argument("position " + std::to_string(position_) + " plus " + std::to_string(rows) +
                                    " tokens is past max_context " + std::to_string(program_.max_context));
    }
    for (int r = 0; r < rows; ++r) {
        const int32_t id = to[r] = static_cast<const volatile int32_t*>(ids)[r];
        if (id < 0 || id >= program_.vocab) {
            throw std::invalid_argument("token id " + std::to_string(id) + " is outside the vocabulary of " +
                                        std::to_string(program_.vocab));
        }
    }
}

void Sequence::advance(int64_t rows) {
    position_ += rows;
    if (position_ > highest_) highest_ = position();
}

void Sequence::take_back(int64_t n) {
    const int64_t held = position_ - start_;
    if (n < 0 || n > held)
        throw std::invalid_argument("cannot roll back " + std::to_string(n) + " of " + std::to_string(held) + " positions");
    const int64_t furthest = max_rollback();
    if (n > furthest) {
        throw std::invalid_argument("cannot roll back " + std::to_string(n) +
                                    " positions: the rings of this model's chunked or sliding layers keep " +
                                    std::to_string(furthest) + "; reset and prefill again");
    }
    position_ -= n;
}

void Sequence::begin_again() {
    position_ = start_;
    highest_ = start_;
}

}  // namespace llama_ext

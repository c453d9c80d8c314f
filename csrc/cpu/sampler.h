// Sampling on the CPU: the definition of program/sampling.h in O(vocab), with no sort and no allocation after
// construction.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "program/sampling.h"

namespace llama_ext {

class Sampler {
public:
    // Reserves room for vocabularies of up to `capacity` (at most kMaxVocab) tokens: 28 bytes a token.
    explicit Sampler(uint32_t capacity);

    uint32_t capacity() const { return capacity_; }

    // Takes the best kernels up to `level` that this CPU runs; a new sampler takes the best of all. All give
    // the same ids.
    enum class Level { portable, avx2, avx512 };
    static Level level(std::string_view simd);  // of a kernel level's name
    void use(Level level);

    // logits [vocab] float32, 1 <= vocab <= capacity, left as they are; history [history_size], in any order,
    // repeats allowed, read only if there is a penalty. Returns an id, or kSampleNan or kSampleBadHistory.
    int32_t sample(const float* logits, uint32_t vocab, const int32_t* history, size_t history_size,
                   const SamplingConstants& params, uint64_t position, uint64_t draw = 0);

private:
    struct Kernels;

    const float* penalise_history(const float* logits, uint32_t vocab, const int32_t* history, size_t history_size,
                                  float penalty);
    template <bool kWeighted>
    uint64_t select(const uint64_t* list, uint32_t size, uint64_t target);

    uint32_t capacity_;
    const Kernels* kernels_;
    std::unique_ptr<uint64_t[]> weight_;     // [capacity] by id; only what the step at hand wrote is valid
    std::unique_ptr<uint64_t[]> list_;       // [capacity] ranks of the candidates, in increasing id
    std::unique_ptr<uint64_t[]> refined_;    // [capacity] the candidates that `select` still has to tell apart
    std::unique_ptr<float[]> penalised_;     // [capacity]
    std::unique_ptr<int32_t[]> block_key_;   // [blocks] order_key of a block's largest logit
    std::unique_ptr<uint64_t[]> block_sum_;  // [blocks] weight of a block
    std::unique_ptr<uint64_t[]> histogram_;  // [kBuckets]
};

}  // namespace llama_ext

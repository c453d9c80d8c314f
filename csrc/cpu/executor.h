// Runs a program on a thread team. Everything is laid out when the executor is made: weights packed, buffers reserved, each
// instruction bound to its packed weights. A step then only walks the list.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "cpu/cache.h"
#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "cpu/mixture.h"
#include "cpu/residency.h"
#include "cpu/sampler.h"
#include "cpu/team.h"
#include "program/draw.h"
#include "program/program.h"

namespace llama_ext::cpu {

// Steps of so many rows at the most give the bits of single rows, as verifying drafted tokens asks; a prompt's steps may be
// coarse.
inline constexpr int kExactRows = 16;

// Room for one set of rows in every form that some product asks for, and for a row on its way there.
struct ActivationBuffers {
    float* f32;
    Q15Block* q15;
    Bf16Pair* bf16;  // null where a step has one row
};

// What belongs to one member of the team.
struct MemberBuffers {
    ActivationBuffers activation;  // one row, or a row's entries in front of its experts
    float* row;                    // [widest row]
    std::byte* bytes;              // weights on their way: a row of the embedding, groups of an expert's matrix
    float* tile;                   // [2][kGroupsAtOnce][max_rows][16], results of groups on their way out
    float* partials;               // [kQueryTile][head_dim]
};

// One step: what instructions read and write. Shapes as in program/instruction.h.
struct Step {
    const Kernels& kernels;
    const Program& program;
    Team& team;
    Cache* cache = nullptr;
    const int32_t* ids = nullptr;
    int rows = 0;
    bool coarse = false;  // products may take activations of fewer bits
    int64_t position = 0;
    int64_t logit_rows = 0;      // the last ones
    float* logits = nullptr;     // [logit_rows][vocab]
    const Draw* draw = nullptr;  // null: nothing is drawn
    Sampler* sampler = nullptr;
    int32_t id = 0;  // what was drawn, or one of sampling.h's error codes

    float *x = nullptr, *q = nullptr, *k = nullptr, *v = nullptr, *a = nullptr, *n = nullptr;
    float* h = nullptr;         // [rows][intermediate]; of experts [entries][intermediate], see mixture.h
    float* gathered = nullptr;  // [entries][hidden]: n, sorted by expert
    float* y = nullptr;         // [entries][hidden]: results of experts, before they are added up
    Mixture mixture{};
    Residency* residency = nullptr;            // null: all experts are packed
    float* block_values = nullptr;             // [heads][blocks][head_dim]: softmax partials of a one-row step
    Partial* block_partials = nullptr;         // [heads][blocks]
    float *cosine = nullptr, *sine = nullptr;  // [rotations][max_rows][head_dim / 2]
    ActivationBuffers shared{};                // max_rows rows
    std::vector<MemberBuffers> members{};
};

// A rotation table of the step: frequencies, and the chunk that positions wrap in (0: none).
struct Rotation {
    int rope;
    int64_t chunk;
    int64_t offset;  // into Step::cosine and sine
};

// Instructions with their weights packed. `run` is called by every member and may meet the others at barriers; the executor
// adds one after it.
struct BoundInstruction {
    virtual ~BoundInstruction() = default;
    virtual void run(Step& step, int member) const = 0;
};

class Executor {
public:
    struct Options {
        int threads = 1;
        const char* simd = nullptr;  // a level's name; null: LLAMA_EXT_SIMD or the best
        bool poison = false;         // fill every buffer with NaN before each step
        bool exact_prompt = false;   // never take activations of fewer bits, so that rows are the same bits in steps of any size
        // Experts stay in their files (file_map.h), as many bytes of them resident as this at the most; 0: all weights are
        // packed.
        size_t resident_experts = 0;
    };
    // progress(done, total), in bytes of weights packed so far; called on the caller's thread
    Executor(Program program, const Options& options, const std::function<void(size_t, size_t)>& progress);

    // What an executor takes, in bytes: packed weights; weights kept as they are in their file or were made (an embedding); the
    // buffers of its steps, of which long contexts touch more than short ones.
    struct Memory {
        size_t packed, kept, buffers;
    };
    static Memory measure(const Program& program, int threads, bool experts_in_file);

    const Program& program() const { return program_; }
    const char* simd() const { return kernels_.name; }
    int threads() const { return team_.size(); }
    size_t weight_bytes() const { return weights_.bytes(); }
    const Residency* residency() const { return step_.residency; }

    std::unique_ptr<Cache> make_cache(bool poison, int64_t start) const {
        return std::make_unique<Cache>(program_, poison, start);
    }

    // Appends `rows` ids at the cache's position and advances it. logits [logit_rows][vocab] of the last logit_rows rows.
    // Throws std::invalid_argument for an id outside the vocabulary, more rows than max_rows, or past max_context; nothing
    // has changed then. One step at a time; other threads wait.
    void run(Cache& cache, const int32_t* ids, int rows, int64_t logit_rows, float* logits);

    // The same, and draws the next token at once: nothing but its id leaves the executor. Returns the id, or kSampleNan or
    // kSampleBadHistory (sampling.h); the position has advanced in any case.
    int32_t run_and_draw(Cache& cache, const int32_t* ids, int rows, const Draw& draw);

    // Seconds that the team takes to read `bytes` of its packed weights once (or a buffer of the same kind of pages, where
    // there are fewer weights than that).
    double read_seconds(size_t bytes);

private:
    void run_locked(Cache& cache, const int32_t* ids, int rows, int64_t logit_rows, float* logits, const Draw* draw);

    const Program program_;
    const Kernels& kernels_;
    Team team_;
    std::mutex mutex_;
    const bool poison_, exact_prompt_;
    Pages weights_, buffers_, probe_;
    Residency residency_;
    Sampler sampler_;
    std::vector<int32_t> ids_;     // the step's, copied so that what was checked is what is used
    float* own_logits_ = nullptr;  // [vocab]
    Step step_;
    std::vector<Rotation> rotations_;
    std::vector<std::unique_ptr<BoundInstruction>> code_;
};

}  // namespace llama_ext::cpu

#include "cpu/executor.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/layout.h"
#include "cpu/packing.h"

namespace llama_ext::cpu {
namespace {

constexpr size_t kLine = 64;

int most_experts_chosen(const Program& program) {
    int most = 0;
    for (const Instruction& instruction : program.code)
        if (const auto* i = std::get_if<Route>(&instruction)) most = std::max(most, i->top_k);
    return most;
}

// Cosines and sines of the step's positions, from float64 angles.
void rotation_rows(const Step& step, const std::vector<Rotation>& rotations, int member) {
    const Share mine = share(step.rows, member, step.team.size());
    for (const Rotation& rotation : rotations) {
        const std::vector<double>& frequency = step.program.ropes[static_cast<size_t>(rotation.rope)].inverse_frequency;
        const int64_t pairs = static_cast<int64_t>(frequency.size());
        for (int64_t r = mine.begin; r < mine.end; ++r) {
            const int64_t position = step.position + r;
            const double angle_position = static_cast<double>(rotation.chunk ? position % rotation.chunk : position);
            for (int64_t i = 0; i < pairs; ++i) {
                const double angle = angle_position * frequency[static_cast<size_t>(i)];
                step.cosine[rotation.offset + r * pairs + i] = static_cast<float>(std::cos(angle));
                step.sine[rotation.offset + r * pairs + i] = static_cast<float>(std::sin(angle));
            }
        }
    }
}

}  // namespace

Executor::Executor(Program program, const Options& options, const std::function<void(size_t, size_t)>& progress)
    : program_((program.validate(), std::move(program))),
      kernels_(choose_kernels(options.simd)),
      team_(options.threads),
      poison_(options.poison),
      exact_prompt_(options.exact_prompt),
      residency_(options.resident_experts),
      sampler_(static_cast<uint32_t>(program_.vocab)),
      ids_(static_cast<size_t>(program_.max_rows)),
      step_{kernels_, program_, team_} {
    for (const CacheLayer& layer : program_.caches)
        if (layer.format == CacheFormat::fp8)
            throw std::invalid_argument("the CPU serves no fp8 cache, use kv_cache='q8_0' for keys and values of 8 bits");
    const bool in_file = options.resident_experts > 0;
    step_.members.resize(static_cast<size_t>(team_.size()));
    Packing sizes(program_, in_file, &residency_, nullptr);
    sizes.bind_all();
    // Before packing, which takes minutes.
    if (!residency_.empty()) {
        residency_.prepare(most_experts_chosen(program_));
        step_.residency = &residency_;
    }
    weights_ = Pages(sizes.packed_bytes(), Pages::Size::huge);
    const PackingPlace place{team_, weights_, progress};
    Packing packing(program_, in_file, nullptr, &place);
    code_ = packing.bind_all();
    rotations_ = packing.rotations();
    const auto carve = [&](std::byte* base) {
        return lay_out(program_, rotations_, packing.scratch_bytes(), base, &step_, &own_logits_);
    };
    buffers_ = Pages(carve(nullptr), Pages::Size::normal);
    carve(buffers_.data());
    sampler_.use(Sampler::level(kernels_.name));
    step_.sampler = &sampler_;
    step_.ids = ids_.data();
}

Executor::Memory Executor::measure(const Program& program, int threads, bool experts_in_file) {
    constexpr int kMost = 1 << 16;
    if (threads < 1 || threads > kMost)
        throw std::invalid_argument("threads must be 1 to " + std::to_string(kMost) + ", is " + std::to_string(threads));
    program.validate();
    Packing sizes(program, experts_in_file, nullptr, nullptr);
    sizes.bind_all();
    Team team(1);
    Step step{choose_kernels(), program, team};
    step.members.resize(static_cast<size_t>(threads));
    float* own_logits;
    return {sizes.packed_bytes(), sizes.kept_bytes(),
            lay_out(program, sizes.rotations(), sizes.scratch_bytes(), nullptr, &step, &own_logits)};
}

void Executor::run(Cache& cache, const int32_t* ids, int rows, int64_t logit_rows, float* logits) {
    team_.require_own_process();
    const std::lock_guard lock(mutex_);
    run_locked(cache, ids, rows, logit_rows, logits, nullptr);
}

int32_t Executor::run_and_draw(Cache& cache, const int32_t* ids, int rows, const Draw& draw) {
    team_.require_own_process();
    const std::lock_guard lock(mutex_);
    run_locked(cache, ids, rows, 1, own_logits_, &draw);
    return step_.id;
}

void Executor::run_locked(Cache& cache, const int32_t* ids, int rows, int64_t logit_rows, float* logits, const Draw* draw) {
    if (&cache.program() != &program_) throw std::invalid_argument("this cache was made for another executor");
    const auto guard = cache.lock();
    cache.check_step(ids, rows, logit_rows, ids_.data());
    step_.cache = &cache;
    step_.rows = rows;
    step_.coarse = rows > kExactRows && !exact_prompt_;
    step_.position = cache.position();
    step_.logit_rows = logit_rows;
    step_.logits = logits;
    step_.draw = draw;
    if (poison_) std::memset(buffers_.data(), 0xff, buffers_.bytes());
    team_.run([this](int member) {
        rotation_rows(step_, rotations_, member);
        for (const auto& instruction : code_) {
            instruction->run(step_, member);
            team_.barrier();
        }
    });
    cache.advance(rows);
}

double Executor::read_seconds(size_t bytes) {
    constexpr size_t kMost = size_t{16} << 30;
    if (bytes < kLine || bytes > kMost)
        throw std::invalid_argument("bytes to read must be 64 to " + std::to_string(kMost) + ", is " + std::to_string(bytes));
    team_.require_own_process();
    const std::lock_guard lock(mutex_);
    const Pages* source = &weights_;
    if (weights_.bytes() < bytes) {
        if (probe_.bytes() < bytes) {
            probe_ = Pages(bytes, Pages::Size::huge);
            std::memset(probe_.data(), 1, probe_.bytes());
        }
        source = &probe_;
    }
    std::atomic<uint64_t> total{0};
    const auto start = std::chrono::steady_clock::now();
    team_.run([&](int member) {
        const Share mine = share(static_cast<int64_t>(bytes / kLine), member, team_.size());
        total += kernels_.sum_lines(source->data() + static_cast<size_t>(mine.begin) * kLine, mine.end - mine.begin);
    });
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace llama_ext::cpu

#include "cuda/sample.h"

#include "cuda/check.h"

namespace llama_ext::cuda {
namespace {

// Offsets in the scratch memory; each part lies on 256 bytes.
struct Parts {
    size_t sums, list, penalised, bytes;
};

Parts parts(int64_t vocab) {
    const auto up = [](size_t bytes) { return (bytes + 255) / 256 * 256; };
    const size_t slices = sample_slices(static_cast<uint32_t>(vocab));
    Parts at{};
    at.sums = up(sizeof(SampleState));
    at.list = at.sums + up(slices * sizeof(uint64_t));
    at.penalised = at.list + up(static_cast<size_t>(vocab) * sizeof(uint64_t));
    at.bytes = at.penalised + up(static_cast<size_t>(vocab) * sizeof(float));
    return at;
}

}  // namespace

size_t sample_scratch_bytes(int64_t vocab) {
    require_range("sample", "vocab", vocab, 1, kSampleMaxVocab);
    return parts(vocab).bytes;
}

Plan sample(const SampleCall& call, const Card&) {
    require_range("sample", "vocab", call.vocab, 1, kSampleMaxVocab);
    require_address("sample", "logits", call.logits, 4);
    require_address("sample", "step", call.step, 8);
    require_address("sample", "draw", call.draw, 8);
    require_address("sample", "scratch", call.scratch, 16);
    require_address("sample", "id", call.id, 4);

    const Parts at = parts(call.vocab);
    return {{{"sample",
              {kSampleStages * sample_slices(static_cast<uint32_t>(call.vocab)), 1, 1},
              {kSampleThreads, 1, 1},
              0,
              {{"logits", call.logits},
               {"vocab", static_cast<int32_t>(call.vocab)},
               {"step", call.step},
               {"draw", call.draw},
               {"state", call.scratch},
               {"sums", Address{call.scratch.value + at.sums}},
               {"list", Address{call.scratch.value + at.list}},
               {"penalised", Address{call.scratch.value + at.penalised}},
               {"id", call.id}},
              true}},
            {}};
}

}  // namespace llama_ext::cuda

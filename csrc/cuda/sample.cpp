#include "cuda/sample.h"

#include "cuda/check.h"

namespace llama_ext::cuda {

// A bit an id: whether the history holds it.
size_t sample_scratch_bytes(int64_t vocab) { return static_cast<size_t>((vocab + 31) / 32) * sizeof(uint32_t); }

Plan sample(const SampleCall& call) {
    require_range("sample", "vocab", call.vocab, 1, kMaxVocab);
    require_address("sample", "logits", call.logits, 4);
    require_address("sample", "step", call.step, 8);
    require_address("sample", "draw", call.draw, 8);
    require_address("sample", "scratch", call.scratch, 4);
    require_address("sample", "id", call.id, 4);
    return {{{"sample",
              {1, 1, 1},
              {kSampleThreads, 1, 1},
              0,
              {{"logits", call.logits},
               {"vocab", static_cast<int32_t>(call.vocab)},
               {"step", call.step},
               {"draw", call.draw},
               {"seen", call.scratch},
               {"id", call.id}},
              true}},
            {}};
}

}  // namespace llama_ext::cuda

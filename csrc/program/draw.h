#pragma once

#include <cstddef>
#include <cstdint>

#include "program/sampling.h"

namespace llama_ext {

// How a step's sample instruction draws the token that follows its last row.
struct Draw {
    SamplingConstants params;
    const int32_t* history;  // [history_size] ids for the repetition penalty
    size_t history_size;
};

}  // namespace llama_ext

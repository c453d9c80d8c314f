// What a mixture of experts passes from its route to its experts_gate_up and experts_down.
#pragma once

#include <cstdint>

namespace llama_ext::cpu {

// The rows of a step sorted by expert. Entry n is one row in front of one expert; a row has top_k of them and, in a layer with a
// shared expert, one more, whose expert has the index behind the last.
struct Mixture {
    float* logits;     // [rows][experts]
    int32_t* chosen;   // [rows][top_k]
    float* scores;     // [rows][top_k]
    int32_t* first;    // [experts + 2]: expert e's entries are first[e] .. first[e + 1]
    int32_t* row;      // [entries]: whose row an entry is
    float* score;      // [entries]; of the shared expert's 1
    int32_t* entry;    // [rows][passes]: a row's entries, in the order in which they are added up
    int32_t* active;   // [active_count]: the experts that have entries, ascending
    int active_count;  // the shared one included
    int experts;       // without the shared one
    int passes;        // entries a row
};

}  // namespace llama_ext::cpu

// What the products share: their preconditions and the arguments of their kernels.
#pragma once

#include <vector>

#include "cuda/product.h"

namespace llama_ext::cuda {

// What any product of at most `most_rows` rows asks of its call.
void check_product(const char* operation, const ProductCall& call, int most_rows);

// A kernel's arguments: of the weight; `tiles`, the kernel's own; of the step and x, of which some kernels take a norm and eps
// as well; of y, which some may rotate; of the groups.
struct ProductArguments {
    bool norm, rotation;
};
std::vector<Argument> product_arguments(const ProductCall& call, Argument tiles, ProductArguments has);

}  // namespace llama_ext::cuda

#include <initializer_list>

#include "cuda/calls/calls.h"
#include "cuda/check.h"
#include "cuda/kernels/call.h"
#include "cuda/kernels/convert.h"

namespace llama_ext::cuda::calls {
namespace {

void convert(Plan* plan, const char* kernel, Address x, Address y, int64_t n) {
    require_address(kernel, "x", x, 16);
    require_address(kernel, "y", y, 16);
    plan->launches.push_back({kernel,
                              {blocks(kernel, n, int64_t{kConvertThreads} * kConvertEach), 1, 1},
                              {kConvertThreads, 1, 1},
                              0,
                              {{"x", x}, {"y", y}, {"n", n}},
                              true});
}

}  // namespace

void append(Plan* plan, Plan next) {
    for (Launch& launch : next.launches) plan->launches.push_back(std::move(launch));
}

void from_bf16(Plan* plan, Address x, Address y, int64_t n) { convert(plan, "convert_from_bf16", x, y, n); }
void to_bf16(Plan* plan, Address x, Address y, int64_t n) { convert(plan, "convert_to_bf16", x, y, n); }

void write_step(Plan* plan, Address step, int64_t position, int64_t rows) {
    plan->launches.push_back({"call_step",
                              {1, 1, 1},
                              {1, 1, 1},
                              0,
                              {{"step", step}, {"position", position}, {"rows", static_cast<int32_t>(rows)}},
                              true});
}

void zero(Plan* plan, Address x, int64_t bytes) {
    plan->launches.push_back({"call_zero",
                              {blocks("call_zero", bytes / 16, kCallThreads), 1, 1},
                              {kCallThreads, 1, 1},
                              0,
                              {{"x", x}, {"pieces", bytes / 16}},
                              true});
}

uint32_t blocks(const char* operation, int64_t count, int64_t each) {
    const int64_t all = (count + each - 1) / each;
    require(1 <= all && all <= INT32_MAX, operation, "its size", std::to_string(count),
            "1 to " + std::to_string(each * INT32_MAX));
    return static_cast<uint32_t>(all);
}

int64_t product_of(const char* operation, const char* argument, std::initializer_list<int64_t> sizes) {
    int64_t product = 1;
    for (const int64_t size : sizes)
        require(size >= 0 && !__builtin_mul_overflow(product, size, &product) && product <= INT64_MAX / 256, operation, argument,
                "of a size of " + std::to_string(size), "0 or more, and not too large for any memory");
    return product;
}

}  // namespace llama_ext::cuda::calls

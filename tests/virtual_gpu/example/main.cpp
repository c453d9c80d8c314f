// A CUDA program like any other: NVIDIA's cuda.h, -lcuda, kernels as PTX. It knows nothing of a virtual GPU.
//
//     saxpy kernels.ptx
#include <cuda.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace {

void check(CUresult result, const char* what) {
    if (result == CUDA_SUCCESS) return;
    const char* name = nullptr;
    cuGetErrorName(result, &name);
    std::fprintf(stderr, "%s: %s\n", what, name ? name : "unknown error");
    std::exit(1);
}

#define CHECK(call) check(call, #call)

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) {
        std::fprintf(stderr, "usage: %s kernels.ptx\n", argv[0]);
        return 2;
    }
    std::ifstream file(argv[1]);
    const std::string ptx{std::istreambuf_iterator<char>(file), {}};

    CHECK(cuInit(0));
    CUdevice device;
    CHECK(cuDeviceGet(&device, 0));
    char name[128];
    CHECK(cuDeviceGetName(name, sizeof name, device));
    std::printf("on %s\n", name);
    CUcontext context;
    CHECK(cuDevicePrimaryCtxRetain(&context, device));
    CHECK(cuCtxSetCurrent(context));
    CUmodule module;
    CHECK(cuModuleLoadData(&module, ptx.c_str()));
    CUfunction saxpy, block_sum;
    CHECK(cuModuleGetFunction(&saxpy, module, "saxpy"));
    CHECK(cuModuleGetFunction(&block_sum, module, "block_sum"));
    CUstream stream;
    CHECK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));

    constexpr unsigned kThreads = 256, kBlocks = 16;
    int n = 10'000;
    const size_t bytes = static_cast<size_t>(n) * sizeof(float);
    std::vector<float> x(static_cast<size_t>(n)), y(x.size());
    double expected = 0.0;
    float a = 0.5f;
    for (size_t i = 0; i < x.size(); ++i) {
        x[i] = static_cast<float>(i % 7);
        y[i] = static_cast<float>(i % 5);
        expected += static_cast<double>(a) * x[i] + y[i];
    }
    CUdeviceptr on_card_x, on_card_y, sums, total;
    CHECK(cuMemAlloc(&on_card_x, bytes));
    CHECK(cuMemAlloc(&on_card_y, bytes));
    CHECK(cuMemAlloc(&sums, kBlocks * sizeof(float)));
    CHECK(cuMemAlloc(&total, sizeof(float)));
    CHECK(cuMemcpyHtoDAsync(on_card_x, x.data(), bytes, stream));
    CHECK(cuMemcpyHtoDAsync(on_card_y, y.data(), bytes, stream));

    const unsigned grid = (static_cast<unsigned>(n) + kThreads - 1) / kThreads;
    void* saxpy_arguments[] = {&a, &on_card_x, &on_card_y, &n};
    CHECK(cuLaunchKernel(saxpy, grid, 1, 1, kThreads, 1, 1, 0, stream, saxpy_arguments, nullptr));
    void* sum_arguments[] = {&on_card_y, &sums, &n};
    const unsigned shared = kThreads * sizeof(float);
    CHECK(cuLaunchKernel(block_sum, kBlocks, 1, 1, kThreads, 1, 1, shared, stream, sum_arguments, nullptr));
    int blocks = kBlocks;
    void* total_arguments[] = {&sums, &total, &blocks};
    CHECK(cuLaunchKernel(block_sum, 1, 1, 1, kThreads, 1, 1, shared, stream, total_arguments, nullptr));
    float sum = 0.0f;
    CHECK(cuMemcpyDtoHAsync(&sum, total, sizeof sum, stream));
    CHECK(cuStreamSynchronize(stream));

    for (CUdeviceptr address : {on_card_x, on_card_y, sums, total}) CHECK(cuMemFree(address));
    CHECK(cuStreamDestroy(stream));
    CHECK(cuModuleUnload(module));
    CHECK(cuDevicePrimaryCtxRelease(device));
    std::printf("sum %.1f, expected %.1f\n", static_cast<double>(sum), expected);
    return std::fabs(sum - expected) < 1e-3 * expected ? 0 : 1;
}

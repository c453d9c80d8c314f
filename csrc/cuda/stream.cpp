#include "cuda/stream.h"

#include <stdexcept>
#include <utility>

namespace llama_ext::cuda {
namespace {

// The first code with griddepcontrol. It is the code that counts, not the card: a newer card runs older PTX too, whose kernels do
// not wait.
constexpr int kProgrammaticCode = 90;

}  // namespace

Executable::Executable(std::shared_ptr<const Module> module, Plan plan) : module_(std::move(module)), plan_(std::move(plan)) {
    const Current current(module_->device());
    for (Launch& launch : plan_.launches) {
        functions_.push_back(module_->function(launch.kernel, launch.shared_bytes));
        int code = 0;
        driver().cuFuncGetAttribute(launch.kernel, &code, CU_FUNC_ATTRIBUTE_PTX_VERSION, functions_.back());
        waits_.push_back(code >= kProgrammaticCode);
        std::vector<void*>& parameters = parameters_.emplace_back();
        for (Argument& argument : launch.arguments)
            parameters.push_back(std::visit([](auto& value) -> void* { return &value; }, argument.value));
    }
}

Graph::~Graph() {
    if (handle_) release(*device_, [this] { driver().cuGraphExecDestroy.function(handle_); });
}

Event::Event(DevicePtr device) : device_(std::move(device)) {
    const Current current(*device_);
    driver().cuEventCreate("an event", &handle_, CU_EVENT_DEFAULT);
}

Event::~Event() {
    release(*device_, [this] { driver().cuEventDestroy.function(handle_); });
}

double Event::milliseconds_since(const Event& earlier) const {
    const Current current(*device_);
    float milliseconds = 0;
    driver().cuEventSynchronize("an event", earlier.handle_);
    driver().cuEventSynchronize("an event", handle_);
    driver().cuEventElapsedTime("the time between two events", &milliseconds, earlier.handle_, handle_);
    return milliseconds;
}

Stream::Stream(DevicePtr device) : device_(std::move(device)), owned_(true) {
    const Current current(*device_);
    driver().cuStreamCreate("a stream", &handle_, CU_STREAM_NON_BLOCKING);
}

Stream::Stream(DevicePtr device, CUstream foreign) : device_(std::move(device)), handle_(foreign), owned_(false) {}

Stream::~Stream() {
    if (owned_) release(*device_, [this] { driver().cuStreamDestroy.function(handle_); });
}

void Stream::write(Address to, const void* from, size_t bytes) {
    const Current current(*device_);
    driver().cuMemcpyHtoDAsync("a copy to the device", to.value, from, bytes, handle_);
    driver().cuStreamSynchronize("a copy to the device", handle_);
}

void Stream::read(void* to, Address from, size_t bytes) {
    const Current current(*device_);
    driver().cuMemcpyDtoHAsync("a copy from the device", to, from.value, bytes, handle_);
    driver().cuStreamSynchronize("a copy from the device", handle_);
}

void Stream::write_async(Address to, const void* from, size_t bytes) {
    const Current current(*device_);
    driver().cuMemcpyHtoDAsync("a copy to the device", to.value, from, bytes, handle_);
}

void Stream::read_async(void* to, Address from, size_t bytes) {
    const Current current(*device_);
    driver().cuMemcpyDtoHAsync("a copy from the device", to, from.value, bytes, handle_);
}

void Stream::copy(Address to, Address from, size_t bytes) {
    const Current current(*device_);
    driver().cuMemcpyDtoDAsync("a copy on the device", to.value, from.value, bytes, handle_);
}

void Stream::fill(Address to, unsigned char byte, size_t bytes) {
    const Current current(*device_);
    driver().cuMemsetD8Async("filling memory", to.value, byte, bytes, handle_);
}

void Stream::run(const Executable& executable) {
    const Current current(*device_);
    CUlaunchAttribute programmatic{};
    programmatic.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    programmatic.value.programmaticStreamSerializationAllowed = 1;
    for (size_t i = 0; i < executable.plan_.launches.size(); ++i) {
        const Launch& launch = executable.plan_.launches[i];
        CUlaunchConfig config{};
        config.gridDimX = launch.grid[0], config.gridDimY = launch.grid[1], config.gridDimZ = launch.grid[2];
        config.blockDimX = launch.block[0], config.blockDimY = launch.block[1], config.blockDimZ = launch.block[2];
        config.sharedMemBytes = launch.shared_bytes;
        config.hStream = handle_;
        if (launch.programmatic && executable.waits_[i]) {
            config.attrs = &programmatic;
            config.numAttrs = 1;
        }
        driver().cuLaunchKernelEx(launch.kernel, &config, executable.functions_[i],
                                  const_cast<void**>(executable.parameters_[i].data()), nullptr);
    }
}

std::unique_ptr<Graph> Stream::capture(const std::function<void()>& work) {
    const Current current(*device_);
    std::unique_ptr<Graph> result(new Graph(device_));
    driver().cuStreamBeginCapture("a graph", handle_, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    CUgraph graph = nullptr;
    try {
        work();
    } catch (...) {
        driver().cuStreamEndCapture.function(handle_, &graph);
        if (graph) driver().cuGraphDestroy.function(graph);
        throw;
    }
    driver().cuStreamEndCapture("a graph", handle_, &graph);
    const CUresult code = driver().cuGraphInstantiateWithFlags.function(&result->handle_, graph, 0);
    driver().cuGraphDestroy.function(graph);
    if (code != CUDA_SUCCESS) raise_driver_error(code, "cuGraphInstantiateWithFlags", "a graph");
    return result;
}

std::unique_ptr<Graph> Stream::capture(std::shared_ptr<const Executable> executable) {
    std::unique_ptr<Graph> graph = capture([&] { run(*executable); });
    graph->executable_ = std::move(executable);
    return graph;
}

void Stream::run(const Graph& graph) {
    const Current current(*device_);
    driver().cuGraphLaunch("a graph", graph.handle_, handle_);
}

void Stream::record(const Event& event) {
    const Current current(*device_);
    driver().cuEventRecord("an event", event.handle_, handle_);
}

void Stream::synchronize() {
    const Current current(*device_);
    driver().cuStreamSynchronize("all launched work", handle_);
}

}  // namespace llama_ext::cuda

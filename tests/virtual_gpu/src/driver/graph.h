// Graphs: nodes and the edges between them, made by hand or by capture, and what is instantiated from them.
#pragma once

#include <variant>

#include "driver/state.h"

namespace vgpu::driver {

struct KernelWork {
    std::shared_ptr<Function> function;
    Launch launch;
};
struct HostWork {
    CUhostFn call;
    void* data;
};
struct EmptyWork {};

struct Node {
    std::variant<EmptyWork, KernelWork, Copy, Set, HostWork> work;
    std::vector<Edge> dependencies;
    std::weak_ptr<Graph> graph;
    CUgraphNode handle = nullptr;
    // For cuGraphKernelNodeGetParams, which gives pointers into them.
    std::vector<void*> parameter_pointers;
};

struct Graph : std::enable_shared_from_this<Graph> {
    std::vector<std::shared_ptr<Node>> nodes;
    CUgraph handle = nullptr;
    // Adds a node and gives it its handle.
    void add(const std::shared_ptr<Node>& node);
    ~Graph();
};

struct Exec {
    std::weak_ptr<Context> context;
    std::shared_ptr<Graph> graph;                                        // a copy
    std::unordered_map<CUgraphNode, std::shared_ptr<Node>> by_original;  // the copy's nodes by the handles of the original's
    cuuint64_t flags = 0;
    std::vector<uint32_t> numbers;  // stream numbers of its branches
    Clock over;                     // its last launch
    ~Exec();
};

struct Capture {
    std::shared_ptr<Graph> graph;
    CUstreamCaptureMode mode;
    std::thread::id thread;
    std::weak_ptr<Stream> origin;
    std::weak_ptr<Context> context;
    std::vector<std::weak_ptr<Stream>> streams;
    uint64_t id = 0;
    bool invalid = false;
    std::vector<CUgraphNode> dependencies_out;  // of cuStreamGetCaptureInfo
    std::vector<CUgraphEdgeData> edges_out;
};

// A copy without handles of its own; `by_original` is filled.
std::shared_ptr<Graph> clone(const Graph& graph, std::unordered_map<CUgraphNode, std::shared_ptr<Node>>& by_original);
// Every node after what it depends on, in an order drawn at random; empty: there is a cycle.
std::vector<std::shared_ptr<Node>> topological(const Graph& graph);
void replay(const std::shared_ptr<Context>& context, Exec& exec, Stream& stream);
CUgraphEdgeData edge_data(const Edge& edge);

}  // namespace vgpu::driver

// Graphs by hand: nodes, edges, instantiation.
#include "driver/graph.h"

#include <algorithm>
#include <cstring>

namespace vgpu::driver {

void Graph::add(const std::shared_ptr<Node>& node) {
    node->graph = weak_from_this();
    node->handle = state().nodes.add(node);
    nodes.push_back(node);
}

Graph::~Graph() {
    for (const auto& node : nodes)
        if (node->handle) state().nodes.erase(node->handle);
}

Exec::~Exec() {
    for (const uint32_t number : numbers) drop_number(number);
}

CUgraphEdgeData edge_data(const Edge& edge) {
    CUgraphEdgeData data{};
    data.from_port = edge.port;
    data.type = edge.programmatic ? CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC : CU_GRAPH_DEPENDENCY_TYPE_DEFAULT;
    return data;
}

std::shared_ptr<Graph> clone(const Graph& graph, std::unordered_map<CUgraphNode, std::shared_ptr<Node>>& by_original) {
    auto copy = std::make_shared<Graph>();
    std::unordered_map<const Node*, std::shared_ptr<Node>> twins;
    for (const auto& node : graph.nodes) {
        auto twin = std::make_shared<Node>();
        twin->work = node->work;
        twin->graph = copy;
        twins[node.get()] = twin;
        by_original[node->handle] = twin;
        copy->nodes.push_back(twin);
    }
    for (const auto& node : graph.nodes)
        for (Edge edge : node->dependencies) {
            edge.from = twins.at(edge.from.get());
            twins.at(node.get())->dependencies.push_back(edge);
        }
    return copy;
}

}  // namespace vgpu::driver

using namespace vgpu::driver;

namespace {

using GraphPtr = std::shared_ptr<Graph>;
using NodePtr = std::shared_ptr<vgpu::driver::Node>;

GraphPtr graph_of(CUgraph handle) { return state().graphs.get(handle, "graph"); }

NodePtr node_of(CUgraphNode handle, const GraphPtr& graph) {
    const auto node = state().nodes.find(handle);
    if (!node || node->graph.lock() != graph) refuse(CUDA_ERROR_INVALID_VALUE, "the node is none of this graph");
    return node;
}

Edge edge_of(const NodePtr& from, const NodePtr& to, const CUgraphEdgeData* data) {
    Edge edge{from};
    if (!data) return edge;
    edge.programmatic = data->type == CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC;
    edge.port = data->from_port;
    const auto kernel = [](const NodePtr& node) { return std::holds_alternative<KernelWork>(node->work); };
    require(data->to_port == 0 && data->type <= CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC, "unknown edge data");
    require(edge.programmatic == (edge.port != CU_GRAPH_KERNEL_NODE_PORT_DEFAULT), "the edge's type and port do not go together");
    require(!edge.programmatic || (kernel(from) && kernel(to)), "a programmatic edge joins kernels");
    return edge;
}

template <typename Work>
void add_node(CUgraphNode* out, CUgraph handle, const CUgraphNode* dependencies, size_t count, Work work) {
    require(out, "no place for the node");
    require(count == 0 || dependencies, "no dependencies where some are said to be");
    const GraphPtr graph = graph_of(handle);
    auto node = std::make_shared<vgpu::driver::Node>();
    node->work = std::move(work);
    for (size_t i = 0; i < count; ++i) {
        const NodePtr from = node_of(dependencies[i], graph);
        for (const Edge& edge : node->dependencies) require(edge.from != from, "a dependency is named twice");
        node->dependencies.push_back(Edge{from});
    }
    graph->add(node);
    *out = node->handle;
}

KernelWork kernel_work(const CUDA_KERNEL_NODE_PARAMS* p) {
    require(p, "no parameters");
    const CUfunction handle = p->func ? p->func : reinterpret_cast<CUfunction>(p->kern);
    const auto function = state().functions.get(handle, "function");
    const Shape shape{{p->gridDimX, p->gridDimY, p->gridDimZ}, {p->blockDimX, p->blockDimY, p->blockDimZ}, p->sharedMemBytes};
    return KernelWork{function, check_launch(*function, shape, p->kernelParams, p->extra)};
}

void get_params(vgpu::driver::Node& node, CUDA_KERNEL_NODE_PARAMS* p) {
    require(p, "no place for the parameters");
    auto* work = std::get_if<KernelWork>(&node.work);
    require(work, "the node is no kernel");
    node.parameter_pointers.clear();
    for (const auto& parameter : work->function->info.parameters)
        node.parameter_pointers.push_back(work->launch.parameters.data() + parameter.offset);
    *p = CUDA_KERNEL_NODE_PARAMS{};
    p->func = work->function->handle;
    const auto& launch = work->launch;
    p->gridDimX = launch.grid[0], p->gridDimY = launch.grid[1], p->gridDimZ = launch.grid[2];
    p->blockDimX = launch.block[0], p->blockDimY = launch.block[1], p->blockDimZ = launch.block[2];
    p->sharedMemBytes = launch.dynamic_shared;
    p->kernelParams = node.parameter_pointers.data();
}

// True if `to` is ordered after `from`, or is it.
bool reaches(const vgpu::driver::Node* from, const vgpu::driver::Node* to) {
    std::set<const vgpu::driver::Node*> seen;
    std::vector<const vgpu::driver::Node*> todo{to};
    while (!todo.empty()) {
        const auto* node = todo.back();
        todo.pop_back();
        if (node == from) return true;
        if (!seen.insert(node).second) continue;
        for (const Edge& edge : node->dependencies) todo.push_back(edge.from.get());
    }
    return false;
}

void add_dependencies(CUgraph handle, const CUgraphNode* from, const CUgraphNode* to, const CUgraphEdgeData* data, size_t count) {
    const GraphPtr graph = graph_of(handle);
    require(count == 0 || (from && to), "no nodes");
    for (size_t i = 0; i < count; ++i) {
        const NodePtr a = node_of(from[i], graph), b = node_of(to[i], graph);
        require(!reaches(b.get(), a.get()), "the dependency would close a cycle");
        for (const Edge& edge : b->dependencies) require(edge.from != a, "the dependency is there already");
        b->dependencies.push_back(edge_of(a, b, data ? &data[i] : nullptr));
    }
}

// Fills what there is room for, and the number.
template <typename Fill>
void list(size_t size, size_t* count, bool wanted, Fill&& fill) {
    require(count, "no place for the number");
    if (!wanted) {
        *count = size;
        return;
    }
    for (size_t i = 0; i < *count; ++i) fill(i, i < size);
    if (*count > size) *count = size;
}

struct Link {
    NodePtr from, to;
    CUgraphEdgeData data;
};

std::vector<Link> links(const Graph& graph) {
    std::vector<Link> all;
    for (const auto& node : graph.nodes)
        for (const Edge& edge : node->dependencies) all.push_back({edge.from, node, edge_data(edge)});
    return all;
}

void list_links(const std::vector<Link>& all, CUgraphNode* from, CUgraphNode* to, CUgraphEdgeData* data, size_t* count) {
    if ((from || to) && !data)
        for (const Link& link : all)
            if (link.data.type || link.data.from_port)
                refuse(CUDA_ERROR_LOSSY_QUERY, "there are programmatic edges: ask for edge data");
    list(all.size(), count, from || to, [&](size_t i, bool there) {
        if (from) from[i] = there ? all[i].from->handle : nullptr;
        if (to) to[i] = there ? all[i].to->handle : nullptr;
        if (data) data[i] = there ? all[i].data : CUgraphEdgeData{};
    });
}

void instantiate(CUgraphExec* out, CUgraph handle, unsigned long long flags) {
    const auto context = current();
    require(out, "no place for the graph");
    const GraphPtr graph = graph_of(handle);
    constexpr unsigned long long kKnown = CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH | CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD |
                                          CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY;
    if (flags & CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH)
        refuse(CUDA_ERROR_NOT_SUPPORTED, "a graph to be launched by the device");
    require((flags & ~kKnown) == 0, "unknown flags");
    require(graph->nodes.empty() || !topological(*graph).empty(), "the graph has a cycle");
    auto exec = std::make_shared<Exec>();
    exec->context = context;
    exec->flags = flags;
    exec->graph = clone(*graph, exec->by_original);
    for (const auto& node : exec->graph->nodes)
        if (auto* work = std::get_if<KernelWork>(&node->work)) work->function->loaded = true;
    *out = state().execs.add(exec);
}

}  // namespace

CUresult CUDAAPI cuGraphCreate(CUgraph* out, unsigned int flags) {
    return enter("cuGraphCreate", [&] {
        require(out, "no place for the graph");
        require(flags == 0, "the flags must be 0");
        auto graph = std::make_shared<Graph>();
        *out = graph->handle = state().graphs.add(graph);
    });
}

CUresult CUDAAPI cuGraphDestroy(CUgraph handle) {
    return enter("cuGraphDestroy", [&] {
        graph_of(handle);
        state().graphs.erase(handle);
    });
}

CUresult CUDAAPI cuGraphClone(CUgraph* out, CUgraph original) {
    return enter("cuGraphClone", [&] {
        require(out, "no place for the graph");
        std::unordered_map<CUgraphNode, NodePtr> by_original;
        const GraphPtr copy = clone(*graph_of(original), by_original);
        for (const auto& node : copy->nodes) node->handle = state().nodes.add(node);
        *out = copy->handle = state().graphs.add(copy);
    });
}

CUresult CUDAAPI cuGraphAddEmptyNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies, size_t count) {
    return enter("cuGraphAddEmptyNode", [&] { add_node(out, graph, dependencies, count, EmptyWork{}); });
}

CUresult CUDAAPI cuGraphAddKernelNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies, size_t count,
                                      const CUDA_KERNEL_NODE_PARAMS* parameters) {
    return enter("cuGraphAddKernelNode", [&] { add_node(out, graph, dependencies, count, kernel_work(parameters)); });
}

CUresult CUDAAPI cuGraphAddHostNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies, size_t count,
                                    const CUDA_HOST_NODE_PARAMS* parameters) {
    return enter("cuGraphAddHostNode", [&] {
        require(parameters && parameters->fn, "no function");
        add_node(out, graph, dependencies, count, HostWork{parameters->fn, parameters->userData});
    });
}

CUresult CUDAAPI cuGraphAddMemcpyNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies, size_t count,
                                      const CUDA_MEMCPY3D* p, CUcontext) {
    return enter("cuGraphAddMemcpyNode", [&] {
        require(p, "no parameters");
        if (p->Height > 1 || p->Depth > 1 || p->srcMemoryType == CU_MEMORYTYPE_ARRAY || p->dstMemoryType == CU_MEMORYTYPE_ARRAY) {
            record("unknown_call", "cuGraphAddMemcpyNode of more than one row");
            refuse(CUDA_ERROR_NOT_SUPPORTED, "the virtual GPU copies rows of bytes");
        }
        Copy copy;
        copy.bytes = p->WidthInBytes;
        copy.to_device =
            p->dstMemoryType == CU_MEMORYTYPE_DEVICE || (p->dstMemoryType == CU_MEMORYTYPE_UNIFIED && is_device(p->dstDevice));
        copy.from_device =
            p->srcMemoryType == CU_MEMORYTYPE_DEVICE || (p->srcMemoryType == CU_MEMORYTYPE_UNIFIED && is_device(p->srcDevice));
        const bool to_host = p->dstMemoryType == CU_MEMORYTYPE_HOST, from_host = p->srcMemoryType == CU_MEMORYTYPE_HOST;
        copy.to = (to_host ? reinterpret_cast<uint64_t>(p->dstHost) : p->dstDevice) + p->dstXInBytes;
        copy.from = (from_host ? reinterpret_cast<uint64_t>(p->srcHost) : p->srcDevice) + p->srcXInBytes;
        check(copy);
        add_node(out, graph, dependencies, count, copy);
    });
}

CUresult CUDAAPI cuGraphAddMemsetNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies, size_t count,
                                      const CUDA_MEMSET_NODE_PARAMS* p, CUcontext) {
    return enter("cuGraphAddMemsetNode", [&] {
        require(p, "no parameters");
        const Set set{p->dst, p->value, p->elementSize, p->width, p->height, p->pitch};
        check(set);
        add_node(out, graph, dependencies, count, set);
    });
}

CUresult CUDAAPI cuGraphKernelNodeGetParams(CUgraphNode handle, CUDA_KERNEL_NODE_PARAMS* parameters) {
    return enter("cuGraphKernelNodeGetParams", [&] { get_params(*state().nodes.get(handle, "node"), parameters); });
}

CUresult CUDAAPI cuGraphKernelNodeSetParams(CUgraphNode handle, const CUDA_KERNEL_NODE_PARAMS* parameters) {
    return enter("cuGraphKernelNodeSetParams", [&] {
        const auto node = state().nodes.get(handle, "node");
        require(std::holds_alternative<KernelWork>(node->work), "the node is no kernel");
        node->work = kernel_work(parameters);
    });
}

CUresult CUDAAPI cuGraphNodeGetType(CUgraphNode handle, CUgraphNodeType* type) {
    return enter("cuGraphNodeGetType", [&] {
        require(type, "no place for the type");
        constexpr CUgraphNodeType kTypes[] = {CU_GRAPH_NODE_TYPE_EMPTY, CU_GRAPH_NODE_TYPE_KERNEL, CU_GRAPH_NODE_TYPE_MEMCPY,
                                              CU_GRAPH_NODE_TYPE_MEMSET, CU_GRAPH_NODE_TYPE_HOST};
        *type = kTypes[state().nodes.get(handle, "node")->work.index()];
    });
}

CUresult CUDAAPI cuGraphGetNodes(CUgraph handle, CUgraphNode* nodes, size_t* count) {
    return enter("cuGraphGetNodes", [&] {
        const GraphPtr graph = graph_of(handle);
        list(graph->nodes.size(), count, nodes,
             [&](size_t i, bool there) { nodes[i] = there ? graph->nodes[i]->handle : nullptr; });
    });
}

CUresult CUDAAPI cuGraphGetRootNodes(CUgraph handle, CUgraphNode* nodes, size_t* count) {
    return enter("cuGraphGetRootNodes", [&] {
        std::vector<CUgraphNode> roots;
        for (const auto& node : graph_of(handle)->nodes)
            if (node->dependencies.empty()) roots.push_back(node->handle);
        list(roots.size(), count, nodes, [&](size_t i, bool there) { nodes[i] = there ? roots[i] : nullptr; });
    });
}

CUresult CUDAAPI cuGraphGetEdges(CUgraph handle, CUgraphNode* from, CUgraphNode* to, CUgraphEdgeData* data, size_t* count) {
    return enter("cuGraphGetEdges", [&] { list_links(links(*graph_of(handle)), from, to, data, count); });
}

// Before 12.3, without the data of the edges.
#undef cuGraphGetEdges
VGPU_EXPORT CUresult CUDAAPI cuGraphGetEdges(CUgraph handle, CUgraphNode* from, CUgraphNode* to, size_t* count) {
    return enter("cuGraphGetEdges", [&] { list_links(links(*graph_of(handle)), from, to, nullptr, count); });
}

CUresult CUDAAPI cuGraphNodeGetDependencies(CUgraphNode handle, CUgraphNode* nodes, CUgraphEdgeData* data, size_t* count) {
    return enter("cuGraphNodeGetDependencies", [&] {
        const auto node = state().nodes.get(handle, "node");
        std::vector<Link> all;
        for (const Edge& edge : node->dependencies) all.push_back({edge.from, node, edge_data(edge)});
        list_links(all, nodes, nullptr, data, count);
    });
}

CUresult CUDAAPI cuGraphNodeGetDependentNodes(CUgraphNode handle, CUgraphNode* nodes, CUgraphEdgeData* data, size_t* count) {
    return enter("cuGraphNodeGetDependentNodes", [&] {
        const auto node = state().nodes.get(handle, "node");
        const auto graph = node->graph.lock();
        std::vector<Link> all;
        if (graph)
            for (const Link& link : links(*graph))
                if (link.from == node) all.push_back(link);
        list_links(all, nullptr, nodes, data, count);
    });
}

CUresult CUDAAPI cuGraphAddDependencies(CUgraph handle, const CUgraphNode* from, const CUgraphNode* to,
                                        const CUgraphEdgeData* data, size_t count) {
    return enter("cuGraphAddDependencies", [&] { add_dependencies(handle, from, to, data, count); });
}

#undef cuGraphAddDependencies
VGPU_EXPORT CUresult CUDAAPI cuGraphAddDependencies(CUgraph handle, const CUgraphNode* from, const CUgraphNode* to,
                                                    size_t count) {
    return enter("cuGraphAddDependencies", [&] { add_dependencies(handle, from, to, nullptr, count); });
}

CUresult CUDAAPI cuGraphInstantiateWithFlags(CUgraphExec* out, CUgraph handle, unsigned long long flags) {
    return enter("cuGraphInstantiate", [&] { instantiate(out, handle, flags); });
}

CUresult CUDAAPI cuGraphInstantiateWithParams(CUgraphExec* out, CUgraph handle, CUDA_GRAPH_INSTANTIATE_PARAMS* parameters) {
    return enter("cuGraphInstantiateWithParams", [&] {
        require(parameters, "no parameters");
        parameters->result_out = CUDA_GRAPH_INSTANTIATE_ERROR;
        parameters->hErrNode_out = nullptr;
        instantiate(out, handle, parameters->flags);
        parameters->result_out = CUDA_GRAPH_INSTANTIATE_SUCCESS;
    });
}

CUresult CUDAAPI cuGraphExecGetFlags(CUgraphExec handle, cuuint64_t* flags) {
    return enter("cuGraphExecGetFlags", [&] {
        require(flags, "no place for the flags");
        *flags = state().execs.get(handle, "instantiated graph")->flags;
    });
}

CUresult CUDAAPI cuGraphExecKernelNodeSetParams(CUgraphExec handle, CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS* parameters) {
    return enter("cuGraphExecKernelNodeSetParams", [&] {
        const auto exec = state().execs.get(handle, "instantiated graph");
        const auto at = exec->by_original.find(node);
        require(at != exec->by_original.end(), "the node is none of the graph that this was instantiated from");
        auto* work = std::get_if<KernelWork>(&at->second->work);
        require(work, "the node is no kernel");
        KernelWork changed = kernel_work(parameters);
        changed.launch.cooperative = work->launch.cooperative;
        changed.function->loaded = true;
        *work = std::move(changed);
    });
}

CUresult CUDAAPI cuGraphExecUpdate(CUgraphExec handle, CUgraph graph_handle, CUgraphExecUpdateResultInfo* result) {
    return enter("cuGraphExecUpdate", [&] {
        require(result, "no place for the result");
        *result = CUgraphExecUpdateResultInfo{};
        const auto exec = state().execs.get(handle, "instantiated graph");
        const GraphPtr graph = graph_of(graph_handle);
        const auto fail = [&](CUgraphExecUpdateResult why, const NodePtr& node, const char* words) {
            result->result = why;
            result->errorNode = node ? node->handle : nullptr;
            refuse(CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE, words);
        };
        const auto& old = exec->graph->nodes;
        if (old.size() != graph->nodes.size())
            fail(CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED, nullptr, "another number of nodes");
        std::unordered_map<CUgraphNode, NodePtr> by_original;
        const GraphPtr fresh = clone(*graph, by_original);
        for (size_t i = 0; i < old.size(); ++i) {
            const NodePtr &was = old[i], &now = fresh->nodes[i];
            if (was->work.index() != now->work.index())
                fail(CU_GRAPH_EXEC_UPDATE_ERROR_NODE_TYPE_CHANGED, graph->nodes[i], "a node of another type");
            const auto same = [&](const Edge& a, const Edge& b) {
                const auto place = [](const std::vector<NodePtr>& nodes, const NodePtr& node) {
                    return std::find(nodes.begin(), nodes.end(), node) - nodes.begin();
                };
                return a.programmatic == b.programmatic && place(old, a.from) == place(fresh->nodes, b.from);
            };
            if (!std::equal(was->dependencies.begin(), was->dependencies.end(), now->dependencies.begin(),
                            now->dependencies.end(), same))
                fail(CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED, graph->nodes[i], "other dependencies");
        }
        for (const auto& node : fresh->nodes)
            if (auto* work = std::get_if<KernelWork>(&node->work)) work->function->loaded = true;
        // The nodes of the original keep naming their counterparts.
        for (auto& [original, node] : exec->by_original) {
            const auto at = std::find(old.begin(), old.end(), node) - old.begin();
            node = fresh->nodes[static_cast<size_t>(at)];
        }
        exec->graph = fresh;
        result->result = CU_GRAPH_EXEC_UPDATE_SUCCESS;
    });
}

CUresult CUDAAPI cuGraphExecDestroy(CUgraphExec handle) {
    return enter("cuGraphExecDestroy", [&] {
        state().execs.get(handle, "instantiated graph");
        state().execs.erase(handle);
    });
}

CUresult CUDAAPI cuGraphUpload(CUgraphExec handle, CUstream stream_handle) {
    return in_context("cuGraphUpload", [&](const std::shared_ptr<Context>& context) {
        state().execs.get(handle, "instantiated graph");
        const auto stream = stream_of(context, stream_handle);
        if (capturing(*stream))
            invalidate(*stream->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a graph is uploaded during a capture");
        begin(*context, *stream);
    });
}

CUresult CUDAAPI cuGraphLaunch(CUgraphExec handle, CUstream stream_handle) {
    return in_context("cuGraphLaunch", [&](const std::shared_ptr<Context>& context) {
        const auto exec = state().execs.get(handle, "instantiated graph");
        const auto stream = stream_of(context, stream_handle);
        if (capturing(*stream))
            invalidate(*stream->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                       "the virtual GPU has no child graphs: a graph is launched during a capture");
        replay(context, *exec, *stream);
    });
}

// Capture of streams into graphs: what a stream may do meanwhile, how other streams join, and how it goes wrong.
#include <algorithm>

#include "driver/graph.h"

namespace vgpu::driver {

namespace {

thread_local CUstreamCaptureMode mode_of_thread = CU_STREAM_CAPTURE_MODE_GLOBAL;

// The streams leave the capture.
void end(Capture& capture) {
    for (const auto& weak : capture.streams)
        if (const auto stream = weak.lock()) {
            stream->capture = nullptr;
            stream->tips.clear();
        }
}

void add_tip(std::vector<Edge>& tips, const Edge& edge) {
    const auto same = [&](const Edge& tip) { return tip.from == edge.from; };
    if (std::none_of(tips.begin(), tips.end(), same)) tips.push_back(edge);
}

}  // namespace

void invalidate(Capture& capture, CUresult code, std::string why) {
    capture.invalid = true;
    refuse(code, std::move(why));
}

void refuse_during_capture(const char* call) {
    if (mode_of_thread == CU_STREAM_CAPTURE_MODE_RELAXED) return;
    for (const auto& weak : state().captures) {
        const auto capture = weak.lock();
        if (!capture || capture->mode == CU_STREAM_CAPTURE_MODE_RELAXED) continue;
        const bool mine = capture->thread == std::this_thread::get_id();
        const bool everywhere = capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL && mode_of_thread == CU_STREAM_CAPTURE_MODE_GLOBAL;
        if (mine || everywhere)
            invalidate(*capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                       std::string(call) + " is not permitted while a stream is being captured");
    }
}

bool capturing(const Stream& stream) {
    if (!stream.capture) return false;
    if (stream.capture->invalid) refuse(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "an earlier error has spoilt the capture");
    return true;
}

void capture_node(Stream& stream, std::shared_ptr<Node> node, bool programmatic) {
    for (Edge edge : stream.tips) {
        edge.programmatic = programmatic && std::holds_alternative<KernelWork>(edge.from->work);
        edge.port = edge.programmatic ? CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC : CU_GRAPH_KERNEL_NODE_PORT_DEFAULT;
        node->dependencies.push_back(edge);
    }
    stream.capture->graph->add(node);
    stream.tips = {Edge{node}};
}

void capture_record(Stream& stream, Event& event) {
    event.recorded = true;
    event.captured = true;
    event.capture = stream.capture;
    event.tips = stream.tips;
}

void capture_wait(const std::shared_ptr<Stream>& stream, Event& event) {
    const auto capture = event.captured ? event.capture.lock() : nullptr;
    if (stream->capture) {
        capturing(*stream);
        if (!event.captured)
            invalidate(*stream->capture, CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
                       "a stream that is being captured waits for an event from outside of the capture");
        if (!capture)
            invalidate(*stream->capture, CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "the event is of a capture that has ended");
        if (capture != stream->capture)
            invalidate(*stream->capture, CUDA_ERROR_STREAM_CAPTURE_MERGE, "the event is of another capture");
    } else {
        if (!capture) refuse(CUDA_ERROR_INVALID_VALUE, "the event is of a capture that has ended");
        if (capture->invalid) refuse(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "an earlier error has spoilt the capture");
        if (stream->legacy) invalidate(*capture, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "the default stream cannot be captured");
        flush(*stream);
        stream->capture = capture;
        capture->streams.push_back(stream);
    }
    for (const Edge& tip : event.tips) add_tip(stream->tips, tip);
}

}  // namespace vgpu::driver

using namespace vgpu::driver;

CUresult CUDAAPI cuStreamBeginCapture(CUstream handle, CUstreamCaptureMode mode) {
    return in_context("cuStreamBeginCapture", [&](const std::shared_ptr<Context>& context) {
        const auto stream = stream_of(context, handle);
        require(mode <= CU_STREAM_CAPTURE_MODE_RELAXED, "unknown mode");
        if (stream->legacy) refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the default stream cannot be captured");
        if (stream->capture) refuse(CUDA_ERROR_ILLEGAL_STATE, "the stream is being captured already");
        begin(*context, *stream);
        auto capture = std::make_shared<Capture>();
        capture->graph = std::make_shared<Graph>();
        capture->mode = mode;
        capture->thread = std::this_thread::get_id();
        capture->origin = stream;
        capture->context = context;
        capture->streams = {stream};
        capture->id = state().next_id++;
        stream->capture = capture;
        stream->tips.clear();
        std::erase_if(state().captures, [](const auto& other) { return other.expired(); });
        state().captures.push_back(capture);
    });
}

CUresult CUDAAPI cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
    return enter("cuThreadExchangeStreamCaptureMode", [&] {
        require(mode && *mode <= CU_STREAM_CAPTURE_MODE_RELAXED, "unknown mode");
        std::swap(*mode, mode_of_thread);
    });
}

CUresult CUDAAPI cuStreamEndCapture(CUstream handle, CUgraph* out) {
    return in_context("cuStreamEndCapture", [&](const std::shared_ptr<Context>& context) {
        require(out, "no place for the graph");
        *out = nullptr;
        const auto stream = stream_of(context, handle);
        const auto capture = stream->capture;
        if (!capture) refuse(CUDA_ERROR_ILLEGAL_STATE, "the stream is not being captured");
        if (capture->origin.lock() != stream)
            refuse(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "the capture was begun in another stream");
        if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && capture->thread != std::this_thread::get_id())
            refuse(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "the capture was begun by another thread");
        // What the end of the stream is ordered after.
        std::set<const Node*> joined;
        std::vector<const Node*> todo;
        for (const Edge& tip : stream->tips) todo.push_back(tip.from.get());
        while (!todo.empty()) {
            const Node* node = todo.back();
            todo.pop_back();
            if (!joined.insert(node).second) continue;
            for (const Edge& edge : node->dependencies) todo.push_back(edge.from.get());
        }
        end(*capture);
        std::erase_if(state().captures, [&](const auto& other) { return other.expired() || other.lock() == capture; });
        if (capture->invalid) refuse(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "an earlier error has spoilt the capture");
        if (joined.size() != capture->graph->nodes.size())
            refuse(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "work of another stream was not waited for by the stream it forked from");
        *out = capture->graph->handle = state().graphs.add(capture->graph);
    });
}

namespace {

CUstreamCaptureStatus status_of(Context& context, const vgpu::driver::Stream& stream) {
    if (stream.legacy)
        for (const auto& weak : state().captures)
            if (const auto capture = weak.lock(); capture && capture->context.lock().get() == &context)
                for (const auto& member : capture->streams)
                    if (const auto other = member.lock(); other && other->blocking() && other->capture)
                        refuse(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
                               "a stream that the default stream waits for is being captured");
    if (!stream.capture) return CU_STREAM_CAPTURE_STATUS_NONE;
    return stream.capture->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED : CU_STREAM_CAPTURE_STATUS_ACTIVE;
}

void capture_info(CUstream handle, CUstreamCaptureStatus* status, cuuint64_t* id, CUgraph* graph,
                  const CUgraphNode** dependencies, const CUgraphEdgeData** edges, size_t* count) {
    const auto context = current();
    require(status, "no place for the status");
    const auto stream = stream_of(context, handle);
    *status = status_of(*context, *stream);
    if (*status != CU_STREAM_CAPTURE_STATUS_ACTIVE) return;
    Capture& capture = *stream->capture;
    if (id) *id = capture.id;
    if (graph) {
        if (!capture.graph->handle) capture.graph->handle = state().graphs.add(capture.graph);
        *graph = capture.graph->handle;
    }
    capture.dependencies_out.clear();
    capture.edges_out.clear();
    for (const Edge& tip : stream->tips) {
        capture.dependencies_out.push_back(tip.from->handle);
        capture.edges_out.push_back(edge_data(tip));
    }
    if (dependencies) *dependencies = capture.dependencies_out.data();
    if (edges) *edges = capture.edges_out.data();
    if (count) *count = capture.dependencies_out.size();
}

}  // namespace

CUresult CUDAAPI cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) {
    return enter("cuStreamIsCapturing", [&] { capture_info(handle, status, nullptr, nullptr, nullptr, nullptr, nullptr); });
}

CUresult CUDAAPI cuStreamGetCaptureInfo(CUstream handle, CUstreamCaptureStatus* status, cuuint64_t* id, CUgraph* graph,
                                        const CUgraphNode** dependencies, const CUgraphEdgeData** edges, size_t* count) {
    return enter("cuStreamGetCaptureInfo", [&] { capture_info(handle, status, id, graph, dependencies, edges, count); });
}

// Before 12.3.
VGPU_EXPORT CUresult CUDAAPI cuStreamGetCaptureInfo_v2(CUstream handle, CUstreamCaptureStatus* status, cuuint64_t* id,
                                                       CUgraph* graph, const CUgraphNode** dependencies, size_t* count) {
    return enter("cuStreamGetCaptureInfo", [&] { capture_info(handle, status, id, graph, dependencies, nullptr, count); });
}

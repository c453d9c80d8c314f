// Streams. Work runs at the last moment that is still in order: a launch, and the launches that depend on it programmatically,
// wait until something comes behind them, so that a chain runs as one and a missing synchronisation shows.
#include <algorithm>

#include "driver/graph.h"

namespace vgpu::driver {

uint32_t take_number() {
    State& s = state();
    // A number can serve again when everybody knows that its launches are over.
    for (size_t i = 0; i < s.free_numbers.size(); ++i) {
        const uint32_t number = s.free_numbers[i];
        if (s.issued[number] == 0 || (number < s.known.size() && s.known[number] >= s.issued[number])) {
            s.free_numbers.erase(s.free_numbers.begin() + static_cast<ptrdiff_t>(i));
            return number;
        }
    }
    s.issued.push_back(0);
    return static_cast<uint32_t>(s.issued.size() - 1);
}

void drop_number(uint32_t number) {
    if (number < state().issued.size()) state().free_numbers.push_back(number);
}

Stream::~Stream() { drop_number(number); }

std::shared_ptr<Stream> make_stream(const std::shared_ptr<Context>& context, unsigned flags, int priority) {
    auto stream = std::make_shared<Stream>();
    stream->context = context;
    stream->flags = flags;
    stream->priority = priority;
    stream->number = take_number();
    stream->id = state().next_id++;
    return stream;
}

std::shared_ptr<Stream> stream_of(const std::shared_ptr<Context>& context, CUstream handle) {
    if (handle == nullptr || handle == CU_STREAM_LEGACY) return context->legacy;
    if (handle == CU_STREAM_PER_THREAD) {
        auto& mine = context->per_thread[std::this_thread::get_id()];
        if (!mine) mine = make_stream(context, CU_STREAM_DEFAULT, 0);
        return mine;
    }
    auto stream = state().streams.get(handle, "stream");
    if (stream->context.lock() != context) refuse(CUDA_ERROR_INVALID_HANDLE, "the stream is of another context");
    return stream;
}

namespace {

// Every stream of a context but the legacy one.
template <typename Body>
void each_stream(Context& context, Body&& body) {
    std::vector<std::shared_ptr<Stream>> all;
    for (const auto& [handle, stream] : state().streams.all())
        if (stream->context.lock().get() == &context) all.push_back(stream);
    for (const auto& [thread, stream] : context.per_thread) all.push_back(stream);
    for (const auto& stream : all) body(*stream);
}

void drop(Stream& stream) {
    state().issued[stream.number] -= stream.pending.size();
    if (stream.number < stream.clock.size()) stream.clock[stream.number] = state().issued[stream.number];
    stream.pending.clear();
}

}  // namespace

void run(Context& context, std::span<const Launch> chain) {
    const Outcome outcome = device().run(chain);
    if (outcome == Outcome::success) return;
    context.broken = code_of(outcome);
    const auto& faults = device().faults().all();
    context.why_broken = faults.empty() ? "a launch failed" : faults.back().message;
    refuse(context.broken, context.why_broken);
}

void flush(Stream& stream) {
    if (stream.pending.empty()) return;
    const auto context = stream.context.lock();
    if (!context || context->broken != CUDA_SUCCESS) return drop(stream);
    std::vector<Launch> chain;
    chain.swap(stream.pending);
    try {
        run(*context, chain);
    } catch (...) {
        // Which of them the card has counted is uncertain: go on under another number.
        stream.number = take_number();
        throw;
    }
}

void flush_all(Context& context) {
    flush(*context.legacy);
    each_stream(context, [](Stream& stream) { flush(stream); });
}

void drop_pending() {
    for (const auto& [handle, context] : state().contexts.all()) {
        drop(*context->legacy);
        each_stream(*context, drop);
    }
}

void order(Context& context, Stream& stream) {
    if (stream.legacy) {
        each_stream(context, [&](Stream& other) {
            if (!other.blocking()) return;
            if (other.capture)
                invalidate(*other.capture, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
                           "the default stream would wait for a stream that is being captured");
            flush(other);
            join(stream.clock, other.clock);
        });
    } else if (stream.blocking()) {
        flush(*context.legacy);
        join(stream.clock, context.legacy->clock);
    }
}

void begin(Context& context, Stream& stream) {
    order(context, stream);
    flush(stream);
}

void issue(Context& context, Stream& stream, Launch launch) {
    State& s = state();
    order(context, stream);
    launch.programmatic = launch.programmatic && !stream.pending.empty();
    if (!launch.programmatic) {
        flush(stream);
        stream.over_before_chain = s.issued[stream.number];
    }
    launch.stream = stream.number;
    launch.after = stream.clock;
    join(launch.after, s.known);
    raise(launch.after, stream.number, 0);
    launch.after[stream.number] = stream.over_before_chain;
    raise(stream.clock, stream.number, ++s.issued[stream.number]);
    stream.pending.push_back(std::move(launch));
}

void synchronize(Context& context, Stream& stream) {
    begin(context, stream);
    join(state().known, stream.clock);
}

void synchronize(Context& context) {
    flush_all(context);
    join(state().known, context.legacy->clock);
    each_stream(context, [](Stream& stream) { join(state().known, stream.clock); });
}

}  // namespace vgpu::driver

using namespace vgpu::driver;

namespace {

void create(CUstream* out, unsigned flags, int priority) {
    const auto context = current();
    require(out, "no place for the stream");
    require((flags & ~unsigned{CU_STREAM_NON_BLOCKING}) == 0, "unknown flags");
    // As the driver does: clamped to the range of cuCtxGetStreamPriorityRange.
    auto stream = make_stream(context, flags, std::max(-5, std::min(0, priority)));
    *out = stream->handle = state().streams.add(stream);
}

// Waiting for a stream that is being captured would never end.
void refuse_wait(vgpu::driver::Stream& stream) {
    if (stream.capture)
        invalidate(*stream.capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a stream cannot be waited for while it is captured");
}

}  // namespace

CUresult CUDAAPI cuStreamCreate(CUstream* stream, unsigned int flags) {
    return enter("cuStreamCreate", [&] { create(stream, flags, 0); });
}

CUresult CUDAAPI cuStreamCreateWithPriority(CUstream* stream, unsigned int flags, int priority) {
    return enter("cuStreamCreateWithPriority", [&] { create(stream, flags, priority); });
}

CUresult CUDAAPI cuStreamDestroy(CUstream handle) {
    return in_context("cuStreamDestroy", [&](const std::shared_ptr<Context>& context) {
        const auto stream = state().streams.get(handle, "stream");
        if (stream->capture)
            invalidate(*stream->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a stream is destroyed while it is captured");
        flush(*stream);
        // The default stream goes on being ordered after its work.
        if (stream->blocking()) join(context->legacy->clock, stream->clock);
        state().streams.erase(handle);
    });
}

CUresult CUDAAPI cuStreamSynchronize(CUstream handle) {
    return in_context("cuStreamSynchronize", [&](const std::shared_ptr<Context>& context) {
        const auto stream = stream_of(context, handle);
        refuse_wait(*stream);
        synchronize(*context, *stream);
    });
}

CUresult CUDAAPI cuStreamQuery(CUstream handle) {
    return in_context("cuStreamQuery", [&](const std::shared_ptr<Context>& context) {
        const auto stream = stream_of(context, handle);
        refuse_wait(*stream);
        synchronize(*context, *stream);
    });
}

CUresult CUDAAPI cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned int flags) {
    return in_context("cuStreamWaitEvent", [&](const std::shared_ptr<Context>& context) {
        const auto stream = stream_of(context, handle);
        const auto event = state().events.get(event_handle, "event");
        require((flags & ~unsigned{CU_EVENT_WAIT_EXTERNAL}) == 0, "unknown flags");
        if (event->captured || stream->capture) return capture_wait(stream, *event);
        begin(*context, *stream);
        join(stream->clock, event->clock);
    });
}

CUresult CUDAAPI cuStreamGetPriority(CUstream handle, int* priority) {
    return in_context("cuStreamGetPriority", [&](const std::shared_ptr<Context>& context) {
        require(priority, "no place for the priority");
        *priority = stream_of(context, handle)->priority;
    });
}

CUresult CUDAAPI cuStreamGetFlags(CUstream handle, unsigned int* flags) {
    return in_context("cuStreamGetFlags", [&](const std::shared_ptr<Context>& context) {
        require(flags, "no place for the flags");
        *flags = stream_of(context, handle)->flags;
    });
}

CUresult CUDAAPI cuStreamGetId(CUstream handle, unsigned long long* id) {
    return in_context("cuStreamGetId", [&](const std::shared_ptr<Context>& context) {
        require(id, "no place for the id");
        *id = stream_of(context, handle)->id;
    });
}

CUresult CUDAAPI cuStreamGetDevice(CUstream handle, CUdevice* ordinal) {
    return in_context("cuStreamGetDevice", [&](const std::shared_ptr<Context>& context) {
        require(ordinal, "no place for the device");
        stream_of(context, handle);
        *ordinal = 0;
    });
}

CUresult CUDAAPI cuStreamGetCtx(CUstream handle, CUcontext* out) {
    return in_context("cuStreamGetCtx", [&](const std::shared_ptr<Context>& context) {
        require(out, "no place for the context");
        stream_of(context, handle);
        *out = context->handle;
    });
}

CUresult CUDAAPI cuStreamGetCtx_v2(CUstream handle, CUcontext* out, CUgreenCtx* green) {
    return in_context("cuStreamGetCtx", [&](const std::shared_ptr<Context>& context) {
        require(out, "no place for the context");
        stream_of(context, handle);
        *out = context->handle;
        if (green) *green = nullptr;
    });
}

CUresult CUDAAPI cuLaunchHostFunc(CUstream handle, CUhostFn call, void* data) {
    return in_context("cuLaunchHostFunc", [&](const std::shared_ptr<Context>& context) {
        require(call, "no function");
        const auto stream = stream_of(context, handle);
        if (capturing(*stream)) {
            auto node = std::make_shared<Node>();
            node->work = HostWork{call, data};
            return capture_node(*stream, node);
        }
        begin(*context, *stream);
        call(data);
    });
}

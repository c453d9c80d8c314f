// Events: the clock of a stream at a point of it. The times between them are the host's: they say nothing about a card.
#include <chrono>

#include "driver/graph.h"

using namespace vgpu::driver;

namespace {

double milliseconds() {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void record_event(CUevent event_handle, CUstream handle, unsigned flags) {
    const auto context = current();
    const auto event = state().events.get(event_handle, "event");
    require((flags & ~unsigned{CU_EVENT_RECORD_EXTERNAL}) == 0, "unknown flags");
    const auto stream = stream_of(context, handle);
    if (event->context.lock() != context) refuse(CUDA_ERROR_INVALID_HANDLE, "the event is of another context");
    if (capturing(*stream)) return capture_record(*stream, *event);
    begin(*context, *stream);
    event->recorded = true;
    event->captured = false;
    event->capture.reset();
    event->tips.clear();
    event->clock = stream->clock;
    event->at = milliseconds();
}

std::shared_ptr<vgpu::driver::Event> waited_for(CUevent handle) {
    auto event = state().events.get(handle, "event");
    if (event->captured) {
        const std::string why = "the event was last recorded in a stream that was being captured";
        if (const auto capture = event->capture.lock()) invalidate(*capture, CUDA_ERROR_CAPTURED_EVENT, why);
        refuse(CUDA_ERROR_CAPTURED_EVENT, why);
    }
    return event;
}

void elapsed(float* out, CUevent from, CUevent to) {
    current();
    require(out, "no place for the time");
    const auto start = state().events.get(from, "event"), end = state().events.get(to, "event");
    if (start->captured || end->captured) refuse(CUDA_ERROR_CAPTURED_EVENT, "an event of a capture has no time");
    if (!start->recorded || !end->recorded || ((start->flags | end->flags) & CU_EVENT_DISABLE_TIMING))
        refuse(CUDA_ERROR_INVALID_HANDLE, "an event that was not recorded, or one without timing");
    *out = static_cast<float>(end->at - start->at);
}

}  // namespace

CUresult CUDAAPI cuEventCreate(CUevent* out, unsigned int flags) {
    return in_context("cuEventCreate", [&](const std::shared_ptr<Context>& context) {
        require(out, "no place for the event");
        require(flags < 8, "unknown flags");
        require(!(flags & CU_EVENT_INTERPROCESS) || (flags & CU_EVENT_DISABLE_TIMING), "an interprocess event has no timing");
        auto event = std::make_shared<vgpu::driver::Event>();
        event->context = context;
        event->flags = flags;
        *out = state().events.add(event);
    });
}

CUresult CUDAAPI cuEventDestroy(CUevent handle) {
    return enter("cuEventDestroy", [&] {
        state().events.get(handle, "event");
        state().events.erase(handle);
    });
}

CUresult CUDAAPI cuEventRecord(CUevent event, CUstream stream) {
    return enter("cuEventRecord", [&] { record_event(event, stream, 0); });
}

CUresult CUDAAPI cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned int flags) {
    return enter("cuEventRecordWithFlags", [&] { record_event(event, stream, flags); });
}

CUresult CUDAAPI cuEventSynchronize(CUevent handle) {
    return in_context("cuEventSynchronize",
                      [&](const std::shared_ptr<Context>&) { join(state().known, waited_for(handle)->clock); });
}

CUresult CUDAAPI cuEventQuery(CUevent handle) {
    return in_context("cuEventQuery", [&](const std::shared_ptr<Context>&) {
        refuse_during_capture("cuEventQuery");
        join(state().known, waited_for(handle)->clock);
    });
}

CUresult CUDAAPI cuEventElapsedTime(float* out, CUevent from, CUevent to) {
    return enter("cuEventElapsedTime", [&] { elapsed(out, from, to); });
}

// Before 12.8.
#undef cuEventElapsedTime
VGPU_EXPORT CUresult CUDAAPI cuEventElapsedTime(float* out, CUevent from, CUevent to) {
    return enter("cuEventElapsedTime", [&] { elapsed(out, from, to); });
}

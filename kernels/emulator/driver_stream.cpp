// Streams, events and graphs: handles around stream.h.
#include <chrono>
#include <memory>

#include "driver.h"
#include "stream.h"

using namespace emulator;

namespace {

// Runs body(stream) for the stream of that handle.
template <class Body>
int on_stream(const char* function, Handle handle, Body body) {
  return driver_call(function, [&]() -> Outcome {
    const StreamRef stream = find_stream(handle);
    if (stream == nullptr) return {invalid_handle, "no such stream"};
    return body(stream);
  });
}

Event& event_of(Handle handle) { return *static_cast<Event*>(handle); }

// An instance keeps its graph alive while a launch of it is queued.
struct Instance {
  std::shared_ptr<const Graph> graph;
};

}  // namespace

DRIVER_API cuStreamCreate(Handle* result, unsigned flags) {
  return driver_call("cuStreamCreate", [&] {
    constexpr unsigned non_blocking = 1;
    *result = create_stream((flags & non_blocking) == 0).get();
    return Outcome{};
  });
}
DRIVER_API cuStreamCreateWithPriority(Handle* result, unsigned flags, int) { return cuStreamCreate(result, flags); }
DRIVER_API cuStreamDestroy_v2(Handle handle) {
  return driver_call("cuStreamDestroy_v2", [&] { return destroy_stream(handle); });
}
DRIVER_API cuStreamSynchronize(Handle handle) { return on_stream("cuStreamSynchronize", handle, wait_stream); }
DRIVER_API cuStreamQuery(Handle handle) {
  return on_stream("cuStreamQuery", handle, [](const StreamRef& stream) -> Outcome {
    if (capture_status(stream) != 0) return wait_stream(stream);  // the same error
    return query({stream, stream->queued});
  });
}
DRIVER_API cuStreamWaitEvent(Handle handle, Handle event, unsigned) {
  return on_stream("cuStreamWaitEvent", handle,
                   [&](const StreamRef& stream) { return wait_event(stream, event_of(event)); });
}
DRIVER_API cuLaunchHostFunc(Handle handle, void (*function)(void*), void* argument) {
  return on_stream("cuLaunchHostFunc", handle, [&](const StreamRef& stream) {
    return enqueue(stream, [=](OrderOption) {
      function(argument);
      return Outcome{};
    });
  });
}

DRIVER_API cuEventCreate(Handle* result, unsigned) {
  return driver_call("cuEventCreate", [&] {
    *result = new Event;
    return Outcome{};
  });
}
DRIVER_API cuEventDestroy_v2(Handle event) {
  delete &event_of(event);
  return success;
}
DRIVER_API cuEventRecord(Handle event, Handle handle) {
  return on_stream("cuEventRecord", handle,
                   [&](const StreamRef& stream) { return record_event(event_of(event), stream); });
}
DRIVER_API cuEventSynchronize(Handle event) {
  return driver_call("cuEventSynchronize", [&] { return synchronize_event(event_of(event)); });
}
DRIVER_API cuEventQuery(Handle event) {
  return driver_call("cuEventQuery", [&] {
    if (Outcome forbidden = forbid_while_capturing("cuEventQuery"); !forbidden.ok()) return forbidden;
    return query_event(event_of(event));
  });
}
DRIVER_API cuEventElapsedTime_v2(float* milliseconds, Handle start, Handle end) {
  return driver_call("cuEventElapsedTime_v2", [&]() -> Outcome {
    const Event &a = event_of(start), &b = event_of(end);
    if (a.time == nullptr || b.time == nullptr) return {invalid_handle, "an event was never recorded"};
    for (const Event* event : {&a, &b}) {
      if (event->point.stream->finished < event->point.position) return {not_ready, "an event has not been reached"};
    }
    *milliseconds = std::chrono::duration<float, std::milli>(*b.time - *a.time).count();
    return {};
  });
}

DRIVER_API cuStreamBeginCapture_v2(Handle handle, int mode) {
  return on_stream("cuStreamBeginCapture_v2", handle, [&](const StreamRef& stream) -> Outcome {
    if (mode < 0 || mode > 2) return {invalid_value, "unknown capture mode"};
    return begin_capture(stream, static_cast<CaptureMode>(mode));
  });
}
DRIVER_API cuStreamEndCapture(Handle handle, Handle* result) {
  *result = nullptr;
  return on_stream("cuStreamEndCapture", handle, [&](const StreamRef& stream) {
    std::unique_ptr<Graph> graph;
    Outcome outcome = end_capture(stream, graph);
    if (outcome.ok()) *result = new std::shared_ptr<const Graph>(std::move(graph));
    return outcome;
  });
}
DRIVER_API cuStreamIsCapturing(Handle handle, int* status) {
  return on_stream("cuStreamIsCapturing", handle, [&](const StreamRef& stream) {
    *status = capture_status(stream);
    return Outcome{};
  });
}

DRIVER_API cuGraphInstantiateWithFlags(Handle* result, Handle graph, unsigned long long) {
  return driver_call("cuGraphInstantiateWithFlags", [&] {
    *result = new Instance{*static_cast<std::shared_ptr<const Graph>*>(graph)};
    return Outcome{};
  });
}
DRIVER_API cuGraphLaunch(Handle instance, Handle handle) {
  return on_stream("cuGraphLaunch", handle, [&](const StreamRef& stream) {
    return enqueue(stream, [graph = static_cast<Instance*>(instance)->graph](OrderOption order) {
      return run_graph(*graph, order);
    });
  });
}
DRIVER_API cuGraphUpload(Handle, Handle) { return success; }
DRIVER_API cuGraphGetNodes(Handle graph, Handle* nodes, size_t* count) {
  // Counting is what it is used for; nodes have no handles here.
  *count = (*static_cast<std::shared_ptr<const Graph>*>(graph))->nodes.size();
  return nodes == nullptr ? success : not_supported;
}
DRIVER_API cuGraphDestroy(Handle graph) {
  delete static_cast<std::shared_ptr<const Graph>*>(graph);
  return success;
}
DRIVER_API cuGraphExecDestroy(Handle instance) {
  delete static_cast<Instance*>(instance);
  return success;
}

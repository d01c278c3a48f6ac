// Stream capture and graphs: see stream.h. The rules (which calls a capture forbids, which errors they return) are those
// of the CUDA programming guide, section "Prohibited and unhandled operations".
#include "stream_state.h"
#include "text.h"

namespace emulator {

Outcome begin_capture(const StreamRef& stream, CaptureMode mode) {
  DriverState& state = driver_state();
  const std::lock_guard lock(state.mutex);
  if (stream->null) return {capture_unsupported, "the null stream cannot be captured"};
  if (stream->capture != nullptr) return {invalid_value, "the stream is capturing already"};
  auto capture = std::make_shared<Capture>();
  capture->mode = mode;
  capture->origin = stream.get();
  capture->thread = std::this_thread::get_id();
  capture->frontier[stream.get()] = {};
  stream->capture = capture;
  std::erase_if(state.captures, [](const auto& c) { return c.expired(); });
  state.captures.push_back(capture);
  return {};
}

Outcome add_to_capture(Stream& stream, Work work) {
  Capture& capture = *stream.capture;
  if (!capture.invalidated.empty()) {
    return {capture_invalidated, "the capture was invalidated by: " + capture.invalidated};
  }
  std::set<size_t>& frontier = capture.frontier[&stream];
  capture.graph.nodes.push_back({std::move(work), std::move(frontier)});
  frontier = {capture.graph.nodes.size() - 1};
  return {};
}

// A wait for an event of a capture draws the waiting stream into that capture.
Outcome join_capture(const StreamRef& stream, const Event& event) {
  const std::shared_ptr<Capture> capture = event.capture.lock();
  if (capture == nullptr) return {invalid_value, "the event belongs to a capture that has ended"};
  if (stream->capture != nullptr && stream->capture != capture) {
    return {capture_isolation, "the event belongs to another stream's capture"};
  }
  if (stream->null) return {capture_implicit, "the null stream waits for an event of a capture"};
  stream->capture = capture;
  capture->frontier[stream.get()].insert(event.nodes.begin(), event.nodes.end());
  return {};
}

Outcome end_capture(const StreamRef& stream, std::unique_ptr<Graph>& graph) {
  DriverState& state = driver_state();
  const std::lock_guard lock(state.mutex);
  const std::shared_ptr<Capture> capture = stream->capture;
  if (capture == nullptr) return {invalid_value, "the stream is not capturing"};
  if (capture->origin != stream.get()) return {capture_unmatched, "the capture began on another stream"};
  if (capture->mode != CaptureMode::relaxed && capture->thread != std::this_thread::get_id()) {
    return {capture_wrong_thread, "the capture began on another host thread"};
  }
  const std::set<size_t> joined = capture->frontier[stream.get()];
  for (const StreamRef& other : state.streams) {
    if (other->capture == capture) other->capture = nullptr;
  }
  if (!capture->invalidated.empty()) {
    return {capture_invalidated, "the capture was invalidated by: " + capture->invalidated};
  }
  // Every node must have a successor or lie at the end of the origin stream.
  std::set<size_t> followed = joined;
  for (const Graph::Node& node : capture->graph.nodes) followed.insert(node.after.begin(), node.after.end());
  if (followed.size() < capture->graph.nodes.size()) {
    return {capture_unjoined, "the work of another stream was not joined to the stream that began the capture"};
  }
  graph = std::make_unique<Graph>(std::move(capture->graph));
  return {};
}

int capture_status(const StreamRef& stream) {
  const std::lock_guard lock(driver_state().mutex);
  if (stream->capture == nullptr) return 0;
  return stream->capture->invalidated.empty() ? 1 : 2;
}

Outcome invalidate(Capture& capture, const std::string& call) {
  if (capture.invalidated.empty()) capture.invalidated = call;
  return {capture_unsupported, call + " is not permitted while a stream is capturing"};
}

Outcome forbid_while_capturing(const char* call) {
  const std::lock_guard lock(driver_state().mutex);
  for (const auto& weak : driver_state().captures) {
    const std::shared_ptr<Capture> capture = weak.lock();
    if (capture == nullptr || capture->mode == CaptureMode::relaxed) continue;
    if (capture->mode == CaptureMode::thread_local_ && capture->thread != std::this_thread::get_id()) continue;
    return invalidate(*capture, call);
  }
  return {};
}

Outcome null_stream_while_capturing() {
  for (const auto& weak : driver_state().captures) {
    const std::shared_ptr<Capture> capture = weak.lock();
    if (capture == nullptr || !capture->origin->blocking) continue;
    invalidate(*capture, "using the null stream");
    return {capture_implicit, "the null stream would wait for a blocking stream that is capturing"};
  }
  return {};
}

Outcome run_graph(const Graph& graph, OrderOption order) {
  // Any order that respects the edges: the first, last or a drawn one of the nodes that could run.
  std::vector<bool> done(graph.nodes.size(), false);
  uint32_t random = order.seed * 3266489917u | 1;
  for (size_t run = 0; run < graph.nodes.size(); run++) {
    std::vector<size_t> possible;
    for (size_t i = 0; i < graph.nodes.size(); i++) {
      if (done[i]) continue;
      bool ready = true;
      for (const size_t earlier : graph.nodes[i].after) ready = ready && done[earlier];
      if (ready) possible.push_back(i);
      if (order.order == Order::forward && ready) break;
    }
    size_t next = possible.front();
    if (order.order == Order::reversed) next = possible.back();
    if (order.order == Order::random) {
      random ^= random << 13;
      random ^= random >> 17;
      random ^= random << 5;
      next = possible[random % possible.size()];
    }
    if (Outcome outcome = graph.nodes[next].work(order); !outcome.ok()) return outcome;
    done[next] = true;
  }
  return {};
}

}  // namespace emulator

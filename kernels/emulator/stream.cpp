// Queues and waiting: see stream.h. Captures are in capture.cpp.
#include "stream.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "stream_state.h"
#include "text.h"

namespace emulator {

DriverState& driver_state() {
  static auto& state = *new DriverState;  // leaked: host threads may still call while statics are destroyed
  return state;
}

// Which stream goes next in random order. Of the calling thread and reseeded with its order option, so that a test
// repeats whatever other threads do.
static uint32_t draw(OrderOption option) {
  static thread_local uint32_t seeded_with = 0, state = 0;
  if (state == 0 || seeded_with != option.seed) {
    seeded_with = option.seed;
    state = option.seed * 2246822519u | 1;
  }
  state ^= state << 13;
  state ^= state >> 17;
  state ^= state << 5;
  return state;
}

StreamRef create_stream(bool blocking) {
  const std::lock_guard lock(driver_state().mutex);
  auto stream = std::make_shared<Stream>();
  stream->blocking = blocking;
  stream->owner = std::this_thread::get_id();
  driver_state().streams.push_back(stream);
  return stream;
}

StreamRef find_stream(void* handle) {
  DriverState& state = driver_state();
  const std::lock_guard lock(state.mutex);
  // 1 and 2 are the driver's handles for the legacy and the per-thread default stream.
  if (handle == nullptr || handle == reinterpret_cast<void*>(1)) return state.null_stream;
  const auto found = std::find_if(state.streams.begin(), state.streams.end(),
                                  [&](const StreamRef& s) { return s.get() == handle; });
  return found == state.streams.end() ? nullptr : *found;
}

Outcome destroy_stream(void* handle) {
  const StreamRef stream = find_stream(handle);
  if (stream == nullptr || stream->null) return {invalid_handle, "no such stream"};
  // The driver would let queued work run on; running it now leaves no stream without an owner.
  Outcome result = wait_stream(stream);
  DriverState& state = driver_state();
  const std::lock_guard lock(state.mutex);
  std::erase(state.streams, stream);
  return result;
}

// With the lock held.
static Outcome enqueue_locked(const StreamRef& stream, Work work) {
  DriverState& state = driver_state();
  if (stream->capture != nullptr) return add_to_capture(*stream, std::move(work));
  if (stream->null) {
    if (Outcome forbidden = null_stream_while_capturing(); !forbidden.ok()) return forbidden;
  }
  Operation operation{std::move(work), {}, order_option()};
  // The null stream waits for all blocking streams, and they wait for it.
  if (stream->null) {
    for (const StreamRef& other : state.streams) {
      if (other->blocking && other->finished < other->queued) operation.after.push_back({other, other->queued});
    }
  } else if (stream->blocking && state.null_stream->finished < state.null_stream->queued) {
    operation.after.push_back({state.null_stream, state.null_stream->queued});
  }
  operation.after.insert(operation.after.end(), state.pending_waits[stream.get()].begin(),
                         state.pending_waits[stream.get()].end());
  state.pending_waits.erase(stream.get());
  stream->queue.push_back(std::move(operation));
  stream->queued++;
  return {};
}

Outcome enqueue(const StreamRef& stream, Work work) {
  const std::lock_guard lock(driver_state().mutex);
  return enqueue_locked(stream, std::move(work));
}

static bool has_run(const Point& point) { return point.stream->finished >= point.position; }

static bool can_run(const Stream& stream) {
  if (stream.busy || stream.queue.empty()) return false;
  const auto& after = stream.queue.front().after;
  return std::all_of(after.begin(), after.end(), has_run);
}

// Executes the stream's next operation with the lock released, so that other host threads can work.
static void run_front(const StreamRef& stream, std::unique_lock<std::mutex>& lock) {
  Operation operation = std::move(stream->queue.front());
  stream->queue.pop_front();
  stream->busy = true;
  // After a failure a context is lost on a GPU. Here the loss ends with the stream's work queued so far: the error is
  // returned once, and other tests of the process go on.
  const bool skip = !stream->error.ok();
  lock.unlock();
  Outcome outcome = skip ? Outcome{} : operation.work(operation.order);
  operation.work = nullptr;  // what it holds is released outside of the lock
  lock.lock();
  stream->busy = false;
  stream->finished++;
  if (!outcome.ok()) stream->error = std::move(outcome);
  driver_state().changed.notify_all();
}

// The streams whose next operation the point waits for, directly or through what they depend on.
static void collect_needed(const Point& point, std::set<Stream*>& seen, std::vector<StreamRef>& needed) {
  if (has_run(point) || !seen.insert(point.stream.get()).second) return;
  if (can_run(*point.stream)) needed.push_back(point.stream);
  if (point.stream->queue.empty()) return;
  for (const Point& earlier : point.stream->queue.front().after) collect_needed(earlier, seen, needed);
}

static StreamRef choose(const Point& target, OrderOption option) {
  std::vector<StreamRef> needed;
  std::set<Stream*> seen;
  collect_needed(target, seen, needed);
  if (option.order == Order::forward) return needed.empty() ? nullptr : needed.front();
  std::vector<StreamRef> others;
  for (const StreamRef& stream : driver_state().streams) {
    if (seen.contains(stream.get()) || stream->owner != std::this_thread::get_id()) continue;
    if (can_run(*stream)) others.push_back(stream);
  }
  if (option.order == Order::reversed) {
    if (!others.empty()) return others.back();
    return needed.empty() ? nullptr : needed.back();
  }
  needed.insert(needed.end(), others.begin(), others.end());
  return needed.empty() ? nullptr : needed[draw(option) % needed.size()];
}

static Outcome take_error(Stream& stream) {
  if (!stream.error.ok()) return std::exchange(stream.error, Outcome{});
  // A GPU reports a failure at whatever call comes next; here at the next wait of the thread that owns the stream.
  for (const StreamRef& other : driver_state().streams) {
    if (other->owner == std::this_thread::get_id() && !other->error.ok()) return std::exchange(other->error, Outcome{});
  }
  return {};
}

static void run_to(const Point& target, std::unique_lock<std::mutex>& lock) {
  const OrderOption option = order_option();
  while (!has_run(target)) {
    if (const StreamRef next = choose(target, option)) run_front(next, lock);
    else driver_state().changed.wait(lock);  // another host thread executes what is needed
  }
}

static Outcome run_until(const Point& target, std::unique_lock<std::mutex>& lock) {
  run_to(target, lock);
  return take_error(*target.stream);
}

Outcome wait_stream(const StreamRef& stream) {
  std::unique_lock lock(driver_state().mutex);
  if (stream->capture != nullptr) return invalidate(*stream->capture, "synchronising a stream that is capturing");
  // An event that the stream waits for counts even when nothing was queued behind it.
  if (driver_state().pending_waits.contains(stream.get())) {
    enqueue_locked(stream, [](OrderOption) { return Outcome{}; });
  }
  if (Outcome outcome = run_until({stream, stream->queued}, lock); !outcome.ok()) return outcome;
  // Waiting for the null stream is waiting for the blocking streams too.
  if (!stream->null) return {};
  for (const StreamRef& other : std::vector(driver_state().streams)) {
    if (!other->blocking) continue;
    if (Outcome outcome = run_until({other, other->queued}, lock); !outcome.ok()) return outcome;
  }
  return {};
}

Outcome wait_all() {
  std::unique_lock lock(driver_state().mutex);
  std::vector<StreamRef> all = driver_state().streams;
  all.push_back(driver_state().null_stream);
  for (const StreamRef& stream : all) run_to({stream, stream->queued}, lock);
  // Errors of streams of other host threads stay there for their owners.
  return take_error(*driver_state().null_stream);
}

Outcome query(const Point& point) {
  std::unique_lock lock(driver_state().mutex);
  if (has_run(point)) return take_error(*point.stream);
  if (const StreamRef next = choose(point, order_option())) run_front(next, lock);
  return has_run(point) ? take_error(*point.stream) : Outcome{not_ready, "not all queued work has run"};
}

// ---- events

Outcome record_event(Event& event, const StreamRef& stream) {
  const std::lock_guard lock(driver_state().mutex);
  if (stream->capture != nullptr) {
    event.captured = true;
    event.capture = stream->capture;
    event.nodes = stream->capture->frontier[stream.get()];
    return {};
  }
  auto time = std::make_shared<std::chrono::steady_clock::time_point>();
  Outcome outcome = enqueue_locked(stream, [time](OrderOption) {
    *time = std::chrono::steady_clock::now();
    return Outcome{};
  });
  if (!outcome.ok()) return outcome;
  event.captured = false;
  event.point = {stream, stream->queued};
  event.time = std::move(time);
  return {};
}

Outcome wait_event(const StreamRef& stream, const Event& event) {
  const std::lock_guard lock(driver_state().mutex);
  if (event.captured) return join_capture(stream, event);
  if (event.point.stream == nullptr) return {};  // never recorded: nothing to wait for
  if (stream->capture != nullptr) {
    return {capture_isolation, "a capturing stream waits for an event that was recorded outside of its capture"};
  }
  if (event_waits() && !has_run(event.point)) driver_state().pending_waits[stream.get()].push_back(event.point);
  return {};
}

Outcome synchronize_event(const Event& event) {
  std::unique_lock lock(driver_state().mutex);
  if (event.captured) return {captured_event, "synchronising an event that was recorded in a capture"};
  if (event.point.stream == nullptr) return {};
  return run_until(event.point, lock);
}

Outcome query_event(const Event& event) {
  if (event.captured) return {captured_event, "querying an event that was recorded in a capture"};
  return event.point.stream == nullptr ? Outcome{} : query(event.point);
}

}  // namespace emulator

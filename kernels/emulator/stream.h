// Streams, events and captures.
//
// Nothing asynchronous runs when it is called: it is put into its stream's queue and runs when someone waits, so that a
// missing event or an early look at a result gives wrong data here rather than on some GPU some day. A wait runs what it
// needs: the awaited stream up to the awaited operation, and whatever that depends on. In forward order it runs nothing
// else; in reversed order it first runs all it can of the host thread's other streams; in random order it draws at each
// step from everything that could run. Operations keep the order option of the thread that queued them.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "options.h"
#include "outcome.h"

namespace emulator {

using Work = std::function<Outcome(OrderOption)>;

struct Stream;
using StreamRef = std::shared_ptr<Stream>;

// "Operation number `position` of the stream has run."
struct Point {
  StreamRef stream;
  uint64_t position = 0;
};

struct Operation {
  Work work;
  std::vector<Point> after;
  OrderOption order;
};

// A recorded graph: nodes in the order of their capture, each after some of its elders.
struct Graph {
  struct Node {
    Work work;
    std::set<size_t> after;
  };
  std::vector<Node> nodes;
};
Outcome run_graph(const Graph& graph, OrderOption order);

enum class CaptureMode { global, thread_local_, relaxed };

struct Capture {
  Graph graph;
  CaptureMode mode;
  Stream* origin;
  std::thread::id thread;
  std::string invalidated;  // by which forbidden call; empty while valid
  std::map<Stream*, std::set<size_t>> frontier;  // nodes that a stream's next node comes after
};

struct Stream {
  bool blocking = false;  // takes part in the null stream's implicit ordering
  bool null = false;
  std::thread::id owner;
  std::deque<Operation> queue;
  uint64_t queued = 0, finished = 0;  // numbers of operations
  bool busy = false;                  // its next operation is being executed by some host thread
  Outcome error;                      // of an operation that failed; returned by the next wait
  std::shared_ptr<Capture> capture;
};

struct Event {
  Point point;                        // what was last recorded; stream null: nothing
  std::shared_ptr<std::chrono::steady_clock::time_point> time;
  std::weak_ptr<Capture> capture;     // recorded while capturing: after which nodes
  std::set<size_t> nodes;
  bool captured = false;
};

// All below take the driver's lock themselves.

StreamRef create_stream(bool blocking);
Outcome destroy_stream(void* handle);
// Null handle: the null stream. Empty result: no such stream.
StreamRef find_stream(void* handle);

// Queues work, or adds it to the graph that the stream is capturing.
Outcome enqueue(const StreamRef& stream, Work work);
// Runs the stream's queue to its end as of now. Returns, and forgets, the error of an operation that failed.
Outcome wait_stream(const StreamRef& stream);
Outcome wait_all();
// Whether all has run; lets one operation run, so that a polling loop ends.
Outcome query(const Point& point);

Outcome record_event(Event& event, const StreamRef& stream);
Outcome wait_event(const StreamRef& stream, const Event& event);
Outcome synchronize_event(const Event& event);
Outcome query_event(const Event& event);

Outcome begin_capture(const StreamRef& stream, CaptureMode mode);
Outcome end_capture(const StreamRef& stream, std::unique_ptr<Graph>& graph);
// 0 no, 1 capturing, 2 invalidated: CUstreamCaptureStatus.
int capture_status(const StreamRef& stream);
// For calls that a capture forbids (allocation, synchronous copies...): an error while one is under way that concerns
// the calling thread; the capture is then invalid.
Outcome forbid_while_capturing(const char* call);

}  // namespace emulator

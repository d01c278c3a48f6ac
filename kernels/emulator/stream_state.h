// What stream.cpp and capture.cpp share.
#pragma once

#include <condition_variable>
#include <mutex>

#include "stream.h"

namespace emulator {

struct DriverState {
  std::mutex mutex;
  std::condition_variable changed;  // an operation has finished
  std::vector<StreamRef> streams;   // without the null stream, in the order of their creation
  StreamRef null_stream = [] {
    auto stream = std::make_shared<Stream>();
    stream->null = true;
    return stream;
  }();
  // cuStreamWaitEvent applies to what is queued next.
  std::map<Stream*, std::vector<Point>> pending_waits;
  std::vector<std::weak_ptr<Capture>> captures;
};
DriverState& driver_state();

// The following are called with the lock held.
Outcome add_to_capture(Stream& stream, Work work);
Outcome join_capture(const StreamRef& stream, const Event& event);
Outcome invalidate(Capture& capture, const std::string& call);
Outcome null_stream_while_capturing();

}  // namespace emulator

// Results of driver calls: the driver's error number, and what only an emulator can say about it.
#pragma once

#include <string>

namespace emulator {

// CUresult's numbers.
enum Code : int {
  success = 0,
  invalid_value = 1,
  out_of_memory = 2,
  invalid_device = 101,
  invalid_handle = 400,
  not_found = 500,
  not_ready = 600,
  illegal_address = 700,
  launch_failed = 719,
  not_supported = 801,
  capture_unsupported = 900,
  capture_invalidated = 901,
  capture_unmatched = 903,
  capture_unjoined = 904,
  capture_isolation = 905,
  capture_implicit = 906,
  captured_event = 907,
  capture_wrong_thread = 908,
};

struct Outcome {
  int code = success;
  std::string text;
  bool ok() const { return code == success; }
};

}  // namespace emulator

// printf into a std::string: every diagnostic of the emulator is built with it.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <string>

namespace emulator {

inline std::string format_text(const char* format, va_list arguments) {
  char buffer[1024];
  vsnprintf(buffer, sizeof buffer, format, arguments);
  return buffer;
}

__attribute__((format(printf, 1, 2))) inline std::string text(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::string result = format_text(format, arguments);
  va_end(arguments);
  return result;
}

}  // namespace emulator

// Reading the settings: see options.h. A value that is not understood ends the process with a line that says so; falling
// back to a default would run other tests than those asked for.
#include "options.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>

namespace emulator {

[[noreturn]] static void refuse(const char* variable, const char* value, const char* expected) {
  fprintf(stderr, "emulator: %s=%s is not understood; expected %s\n", variable, value, expected);
  exit(2);
}

static std::optional<unsigned long> number(const std::string& digits) {
  if (digits.empty() || digits.find_first_not_of("0123456789") != std::string::npos) return {};
  return strtoul(digits.c_str(), nullptr, 10);
}

static std::optional<OrderOption> parse_order(const std::string& spec) {
  if (spec == "forward") return OrderOption{Order::forward, 1};
  if (spec == "reversed") return OrderOption{Order::reversed, 1};
  if (spec == "random") return OrderOption{Order::random, 1};
  if (spec.starts_with("random:")) {
    if (const auto seed = number(spec.substr(7))) return OrderOption{Order::random, static_cast<uint32_t>(*seed)};
  }
  return {};
}

static thread_local std::optional<OrderOption> thread_order;

OrderOption order_option() {
  if (thread_order) return *thread_order;
  static const OrderOption from_environment = [] {
    const char* spec = getenv("L2B_EMULATOR_ORDER");
    if (spec == nullptr) return OrderOption{};
    const auto parsed = parse_order(spec);
    if (!parsed) refuse("L2B_EMULATOR_ORDER", spec, "forward, reversed, random or random:SEED");
    return *parsed;
  }();
  return from_environment;
}

bool set_order(const char* spec) {
  if (spec == nullptr) {
    thread_order.reset();
    return true;
  }
  const auto parsed = parse_order(spec);
  if (parsed) thread_order = parsed;
  return parsed.has_value();
}

struct PlannedFailure {
  std::string function;
  unsigned long remaining = 0;  // 0: none planned
  int code = 0;
};

static std::optional<PlannedFailure> parse_failure(const std::string& spec) {
  const size_t colon = spec.find(':');
  if (colon == std::string::npos || colon == 0) return {};
  PlannedFailure plan{spec.substr(0, colon), 0, 0};
  const std::string rest = spec.substr(colon + 1);
  const size_t second = rest.find(':');
  const auto count = number(rest.substr(0, second));
  if (!count || *count == 0) return {};
  plan.remaining = *count;
  plan.code = plan.function.starts_with("cuMemAlloc") || plan.function.starts_with("cuMemHostAlloc") ? 2 : 999;
  if (second != std::string::npos) {
    const auto code = number(rest.substr(second + 1));
    if (!code || *code == 0) return {};
    plan.code = static_cast<int>(*code);
  }
  return plan;
}

static thread_local std::optional<PlannedFailure> thread_failure;

int planned_failure(const char* function) {
  if (!thread_failure) {
    thread_failure = PlannedFailure{};
    if (const char* spec = getenv("L2B_EMULATOR_FAIL")) {
      const auto parsed = parse_failure(spec);
      if (!parsed) refuse("L2B_EMULATOR_FAIL", spec, "FUNCTION:N or FUNCTION:N:CODE");
      thread_failure = parsed;
    }
  }
  PlannedFailure& plan = *thread_failure;
  if (plan.remaining == 0 || plan.function != function) return 0;
  return --plan.remaining == 0 ? plan.code : 0;
}

bool set_failure(const char* spec) {
  if (spec == nullptr) {
    thread_failure = PlannedFailure{};
    return true;
  }
  const auto parsed = parse_failure(spec);
  if (parsed) thread_failure = parsed;
  return parsed.has_value();
}

size_t memory_size() {
  static const size_t bytes = [] {
    const char* spec = getenv("L2B_EMULATOR_MEMORY");
    if (spec == nullptr) return size_t{8} << 30;
    std::string digits = spec;
    unsigned shift = 0;
    if (!digits.empty()) {
      const size_t unit = std::string("KMG").find(digits.back());
      if (unit != std::string::npos) {
        shift = 10 * (static_cast<unsigned>(unit) + 1);
        digits.pop_back();
      }
    }
    const auto value = number(digits);
    if (!value || *value == 0) refuse("L2B_EMULATOR_MEMORY", spec, "bytes, or a number with K, M or G");
    return size_t{*value} << shift;
  }();
  return bytes;
}

void compute_capability(int& major, int& minor) {
  major = 9;
  minor = 0;
  if (const char* spec = getenv("L2B_EMULATOR_CC")) {
    char end;
    if (sscanf(spec, "%d.%d%c", &major, &minor, &end) != 2) refuse("L2B_EMULATOR_CC", spec, "a number like 8.0");
  }
}

unsigned launch_seconds() {
  static const unsigned seconds = [] {
    const char* spec = getenv("L2B_EMULATOR_LAUNCH_SECONDS");
    if (spec == nullptr) return 300u;
    const auto value = number(spec);
    if (!value || *value == 0) refuse("L2B_EMULATOR_LAUNCH_SECONDS", spec, "a number of seconds");
    return static_cast<unsigned>(*value);
  }();
  return seconds;
}

static bool is_on(const char* variable) {
  const char* value = getenv(variable);
  return value != nullptr && strcmp(value, "1") == 0;
}

bool report_leaks() { return is_on("L2B_EMULATOR_LEAKS"); }
bool verbose() { return is_on("L2B_EMULATOR_VERBOSE"); }

}  // namespace emulator

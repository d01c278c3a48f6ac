// Reading the settings: see options.h. The environment is read once; what is not understood makes cuInit fail, because
// falling back to a default would run other tests than those asked for.
#include "options.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>

namespace emulator {

namespace {

std::optional<unsigned long> number(const std::string& digits) {
  if (digits.empty() || digits.find_first_not_of("0123456789") != std::string::npos) return {};
  return strtoul(digits.c_str(), nullptr, 10);
}

std::optional<unsigned long> positive(const std::string& digits) {
  const auto value = number(digits);
  return value && *value > 0 ? value : std::nullopt;
}

std::optional<OrderOption> parse_order(const std::string& spec) {
  if (spec == "forward") return OrderOption{Order::forward, 1};
  if (spec == "reversed") return OrderOption{Order::reversed, 1};
  if (spec == "random") return OrderOption{Order::random, 1};
  if (spec.starts_with("random:")) {
    if (const auto seed = number(spec.substr(7))) return OrderOption{Order::random, static_cast<uint32_t>(*seed)};
  }
  return {};
}

struct PlannedFailure {
  std::string function;
  unsigned long remaining = 0;  // 0: none planned
  int code = 0;
};

std::optional<PlannedFailure> parse_failure(const std::string& spec) {
  const size_t colon = spec.find(':');
  if (colon == std::string::npos || colon == 0) return {};
  PlannedFailure plan{spec.substr(0, colon), 0, 999};
  if (plan.function.starts_with("cuMemAlloc") || plan.function.starts_with("cuMemHostAlloc")) plan.code = 2;
  const std::string rest = spec.substr(colon + 1);
  const size_t second = rest.find(':');
  const auto count = positive(rest.substr(0, second));
  if (!count) return {};
  plan.remaining = *count;
  if (second != std::string::npos) {
    const auto code = positive(rest.substr(second + 1));
    if (!code) return {};
    plan.code = static_cast<int>(*code);
  }
  return plan;
}

std::optional<size_t> parse_size(std::string digits) {
  unsigned shift = 0;
  if (!digits.empty()) {
    const size_t unit = std::string("KMG").find(digits.back());
    if (unit != std::string::npos) {
      shift = 10 * (static_cast<unsigned>(unit) + 1);
      digits.pop_back();
    }
  }
  const auto value = positive(digits);
  return value ? std::optional(size_t{*value} << shift) : std::nullopt;
}

struct Capability {
  int major = 9, minor = 0;
};

std::optional<Capability> parse_capability(const std::string& spec) {
  const size_t dot = spec.find('.');
  if (dot == std::string::npos) return {};
  const auto major = positive(spec.substr(0, dot)), minor = number(spec.substr(dot + 1));
  if (!major || !minor) return {};
  return Capability{static_cast<int>(*major), static_cast<int>(*minor)};
}

std::optional<bool> parse_switch(const std::string& spec) {
  if (spec == "0" || spec == "1") return spec == "1";
  return {};
}

struct Environment {
  OrderOption order;
  PlannedFailure failure;
  size_t memory = size_t{8} << 30;
  Capability capability;
  unsigned long launch_seconds = 300;
  bool leaks = false, verbose = false;
  std::string error;

  Environment() {
    read("L2B_EMULATOR_ORDER", order, parse_order, "forward, reversed, random or random:SEED");
    read("L2B_EMULATOR_FAIL", failure, parse_failure, "FUNCTION:N or FUNCTION:N:CODE");
    read("L2B_EMULATOR_MEMORY", memory, parse_size, "bytes, or a number with K, M or G");
    read("L2B_EMULATOR_CC", capability, parse_capability, "a number like 8.0");
    read("L2B_EMULATOR_LAUNCH_SECONDS", launch_seconds, positive, "a number of seconds");
    read("L2B_EMULATOR_LEAKS", leaks, parse_switch, "0 or 1");
    read("L2B_EMULATOR_VERBOSE", verbose, parse_switch, "0 or 1");
  }

 private:
  template <class T, class Parse>
  void read(const char* variable, T& value, Parse parse, const char* expected) {
    const char* spec = getenv(variable);
    if (spec == nullptr) return;
    if (const auto parsed = parse(std::string(spec))) value = *parsed;
    else error = std::string(variable) + "=" + spec + " is not understood; expected " + expected;
  }
};

const Environment& environment() {
  static const auto& read_once = *new Environment;
  return read_once;
}

thread_local std::optional<OrderOption> thread_order;
thread_local std::optional<PlannedFailure> thread_failure;
thread_local bool thread_event_waits = true;
thread_local bool thread_staging = true;

}  // namespace

const std::string& environment_error() { return environment().error; }

OrderOption order_option() { return thread_order ? *thread_order : environment().order; }

bool set_order(const char* spec) {
  const auto parsed = spec == nullptr ? environment().order : parse_order(spec);
  if (parsed) thread_order = parsed;
  return parsed.has_value();
}

int planned_failure(const char* function) {
  if (!thread_failure) thread_failure = environment().failure;
  PlannedFailure& plan = *thread_failure;
  if (plan.remaining == 0 || plan.function != function) return 0;
  return --plan.remaining == 0 ? plan.code : 0;
}

bool set_failure(const char* spec) {
  const auto parsed = spec == nullptr ? PlannedFailure{} : parse_failure(spec);
  if (parsed) thread_failure = parsed;
  return parsed.has_value();
}

bool event_waits() { return thread_event_waits; }
void set_event_waits(bool kept) { thread_event_waits = kept; }

bool staging() { return thread_staging; }
void set_staging(bool kept) { thread_staging = kept; }

size_t memory_size() { return environment().memory; }
int capability_major() { return environment().capability.major; }
int capability_minor() { return environment().capability.minor; }
unsigned launch_seconds() { return static_cast<unsigned>(environment().launch_seconds); }
bool report_leaks() { return environment().leaks; }
bool verbose() { return environment().verbose; }

}  // namespace emulator

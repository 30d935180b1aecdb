// Structured log: one line is one event with key=value pairs. Never prompts or outputs. A value
// that is not plain stands in quotes, where each byte that is not printable ASCII, the quote and
// the backslash are escaped (\xNN, \", \\), so that no value can look like another field or another
// line. Events and keys are literals of the code.
//
//   LogInfo("server_started", {{"listen", address}, {"model", name}});
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"

namespace jevons {

struct LogField {
  template <typename T>
  LogField(std::string_view key, const T& value) : key(key), value(absl::StrCat(value)) {}
  LogField(std::string_view key, std::string_view value) : key(key), value(value) {}
  std::string_view key;
  std::string value;
};

// Thread-safe. Lines go to stderr.
void LogInfo(std::string_view event, std::initializer_list<LogField> fields = {});
void LogWarning(std::string_view event, std::initializer_list<LogField> fields = {});
void LogError(std::string_view event, std::initializer_list<LogField> fields = {});

// Each line says rank=... from now on. Call before threads start.
void SetLogRank(int32_t rank);

enum class LogLevel { kInfo, kWarning, kError };
// Lines below `level` are dropped. Call before threads start.
void SetLogLevel(LogLevel level);

}  // namespace jevons

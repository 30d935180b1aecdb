#include "base/log.h"

#include <algorithm>
#include <cstdint>
#include <memory>

#include "spdlog/sinks/stdout_color_sinks.h"
#include "spdlog/spdlog.h"

namespace jevons {
namespace {

spdlog::logger& Logger() {
  static std::shared_ptr<spdlog::logger> logger = [] {
    auto made = spdlog::stderr_color_mt("jevons");
    made->set_pattern("%Y-%m-%dT%H:%M:%S.%e %^%l%$ %v");
    return made;
  }();
  return *logger;
}

int32_t log_rank = -1;  // -1: not said

bool IsPrintable(char c) { return c >= ' ' && c <= '~'; }

bool IsPlain(std::string_view value) {
  return !value.empty() && std::all_of(value.begin(), value.end(), [](char c) {
    return IsPrintable(c) && c != ' ' && c != '"' && c != '=' && c != '\\';
  });
}

void AppendQuoted(std::string_view value, std::string& line) {
  constexpr std::string_view kHex = "0123456789abcdef";
  line += '"';
  for (const char c : value) {
    if (!IsPrintable(c)) {
      const auto byte = static_cast<uint8_t>(c);
      line.append("\\x").append(1, kHex[byte >> 4]).append(1, kHex[byte & 15]);
      continue;
    }
    if (c == '"' || c == '\\') line += '\\';
    line += c;
  }
  line += '"';
}

void Write(spdlog::level::level_enum level, std::string_view event,
           std::initializer_list<LogField> fields) {
  if (!Logger().should_log(level)) return;
  std::string line(event);
  if (log_rank >= 0) line += absl::StrCat(" rank=", log_rank);
  for (const LogField& field : fields) {
    line.append(" ").append(field.key).append("=");
    if (IsPlain(field.value)) {
      line += field.value;
    } else {
      AppendQuoted(field.value, line);
    }
  }
  Logger().log(level, "{}", line);
}

}  // namespace

void LogInfo(std::string_view event, std::initializer_list<LogField> fields) {
  Write(spdlog::level::info, event, fields);
}
void LogWarning(std::string_view event, std::initializer_list<LogField> fields) {
  Write(spdlog::level::warn, event, fields);
}
void LogError(std::string_view event, std::initializer_list<LogField> fields) {
  Write(spdlog::level::err, event, fields);
}

void SetLogRank(int32_t rank) { log_rank = rank; }

void SetLogLevel(LogLevel level) {
  Logger().set_level(level == LogLevel::kInfo      ? spdlog::level::info
                     : level == LogLevel::kWarning ? spdlog::level::warn
                                                   : spdlog::level::err);
}

}  // namespace jevons

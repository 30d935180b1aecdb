// Reading JSON event by event, without exceptions and without building the whole value.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "nlohmann/json.hpp"

namespace jevons {

// Takes every event and does nothing. A reader overrides what it needs and returns false to stop.
// Thread-compatible.
class JsonEvents : public nlohmann::json_sax<nlohmann::json> {
 public:
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(int64_t) override { return true; }
  bool number_unsigned(uint64_t) override { return true; }
  bool number_float(double, const std::string&) override { return true; }
  bool string(std::string&) override { return true; }
  bool binary(nlohmann::json::binary_t&) override { return true; }
  bool start_object(std::size_t) override { return true; }
  bool key(std::string&) override { return true; }
  bool end_object() override { return true; }
  bool start_array(std::size_t) override { return true; }
  bool end_array() override { return true; }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return NotJson(position);
  }

  // The text stops being JSON there.
  bool NotJson(size_t offset) {
    error_offset_ = offset;
    return false;
  }

  // Where the text stopped being JSON; nothing if it is well-formed or the reader stopped by
  // itself.
  std::optional<size_t> error_offset() const { return error_offset_; }

 private:
  std::optional<size_t> error_offset_;
};

// Stops at values nested too deep for code that recurses over them. Thread-compatible.
class DepthCheck : public JsonEvents {
 public:
  static constexpr int kMaxDepth = 64;

  bool start_object(std::size_t) override { return ++depth_ <= kMaxDepth; }
  bool start_array(std::size_t) override { return ++depth_ <= kMaxDepth; }
  bool end_object() override { return --depth_ >= 0; }
  bool end_array() override { return --depth_ >= 0; }

 private:
  int depth_ = 0;
};

// Sends the events of `text` to `events`; false if the text is not JSON or `events` stopped.
inline bool ReadJson(std::string_view text, JsonEvents* events) {
  // The parser takes a NUL for the end of the text.
  const size_t nul = text.find('\0');
  if (nul != std::string_view::npos) return events->NotJson(nul);
  return nlohmann::json::sax_parse(text.begin(), text.end(), events);
}

}  // namespace jevons

// Reads typed keys of a JSON object and collects everything that is wrong with them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "nlohmann/json.hpp"

namespace jevons {

// What is wrong with one file.
struct ConfigProblems {
  std::vector<std::string> missing;      // keys
  std::vector<std::string> wrong;        // whole sentences: key, value, limit
  std::vector<std::string> unsupported;  // whole sentences

  bool empty() const { return missing.empty() && wrong.empty() && unsupported.empty(); }
  // INVALID_ARGUMENT with all missing keys and wrong values; without those UNIMPLEMENTED with what
  // is unsupported; else OK. Every text starts with `file`.
  absl::Status ToStatus(const std::string& file) const;
};

struct IntRange {
  int64_t min;
  int64_t max;
};

// [min, max], without min itself where `above_min`.
struct NumberRange {
  double min;
  double max;
  bool above_min = false;
};

// A JSON value for an error text, cut to a line.
std::string ShortJson(const nlohmann::json& value);

// The object that `text` holds; INVALID_ARGUMENT with the offset otherwise.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text);

// null counts as absent. A read that fails notes the problem and returns something harmless.
// `object` and `problems` outlive the reader. Thread-compatible.
class ConfigReader {
 public:
  // `prefix` is put before keys in texts, e.g. "rope_scaling.".
  ConfigReader(const nlohmann::json& object, std::string prefix, ConfigProblems* problems)
      : object_(object), prefix_(std::move(prefix)), problems_(problems) {}

  // Whether the key is there and not null.
  bool Has(const std::string& key) const { return Get(key) != nullptr; }
  const nlohmann::json* Get(const std::string& key) const;

  // Without `fallback` the key must be there.
  int32_t Int(const std::string& key, IntRange range, std::optional<int32_t> fallback = {});
  double Number(const std::string& key, NumberRange range, std::optional<double> fallback = {});
  bool Bool(const std::string& key, std::optional<bool> fallback = {});
  std::string String(const std::string& key, std::optional<std::string> fallback = {});
  // One integer or a list of them; absent is none.
  std::vector<int32_t> IntList(const std::string& key, IntRange range);

  // "rope_scaling.factor"
  std::string Name(const std::string& key) const { return prefix_ + key; }
  void AddWrong(std::string text) { problems_->wrong.push_back(std::move(text)); }
  void AddUnsupported(std::string text) { problems_->unsupported.push_back(std::move(text)); }

 private:
  int32_t CheckedInt(const std::string& key, const nlohmann::json& value, IntRange range);

  const nlohmann::json& object_;
  std::string prefix_;
  ConfigProblems* problems_;
};

}  // namespace jevons

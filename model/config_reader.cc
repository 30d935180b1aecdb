#include "model/config_reader.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "model/json_events.h"

namespace jevons {

using nlohmann::json;

absl::Status ConfigProblems::ToStatus(const std::string& file) const {
  std::vector<std::string> parts;
  if (!missing.empty()) {
    parts.push_back(absl::StrCat("missing keys: ", absl::StrJoin(missing, ", ")));
  }
  parts.insert(parts.end(), wrong.begin(), wrong.end());
  if (!parts.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": ", absl::StrJoin(parts, "; ")));
  }
  if (!unsupported.empty()) {
    return absl::UnimplementedError(absl::StrCat(file, ": ", absl::StrJoin(unsupported, "; ")));
  }
  return absl::OkStatus();
}

std::string ShortJson(const json& value) {
  constexpr size_t kMaxShown = 200;
  const std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  return text.size() <= kMaxShown ? text : text.substr(0, kMaxShown) + "...";
}

absl::StatusOr<json> ParseJsonObject(std::string_view text) {
  DepthCheck events;
  if (!ReadJson(text, &events)) {
    if (!events.error_offset()) {
      return absl::InvalidArgumentError(
          absl::StrCat("more than ", DepthCheck::kMaxDepth, " values in one another"));
    }
    return absl::InvalidArgumentError(absl::StrCat("not JSON at byte ", *events.error_offset()));
  }
  json value = json::parse(text.begin(), text.end(), nullptr, false);
  if (!value.is_object()) return absl::InvalidArgumentError("not a JSON object");
  return value;
}

const json* ConfigReader::Get(const std::string& key) const {
  const auto at = object_.find(key);
  return at == object_.end() || at->is_null() ? nullptr : &*at;
}

int32_t ConfigReader::CheckedInt(const std::string& key, const json& value, IntRange range) {
  if (!value.is_number_integer()) {
    AddWrong(absl::StrCat(Name(key), " is ", ShortJson(value), ", not an integer"));
    return static_cast<int32_t>(range.min);
  }
  const bool huge = value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX;
  const int64_t number = huge ? INT64_MAX : value.get<int64_t>();
  if (number >= range.min && number <= range.max) return static_cast<int32_t>(number);
  AddWrong(absl::StrCat(Name(key), " is ", ShortJson(value), "; allowed are ", range.min, " to ",
                        range.max));
  return static_cast<int32_t>(range.min);
}

int32_t ConfigReader::Int(const std::string& key, IntRange range, std::optional<int32_t> fallback) {
  const json* value = Get(key);
  if (value != nullptr) return CheckedInt(key, *value, range);
  if (!fallback) problems_->missing.push_back(Name(key));
  return fallback.value_or(static_cast<int32_t>(range.min));
}

double ConfigReader::Number(const std::string& key, NumberRange range,
                            std::optional<double> fallback) {
  const json* value = Get(key);
  if (value == nullptr) {
    if (!fallback) problems_->missing.push_back(Name(key));
    return fallback.value_or(range.max);
  }
  if (!value->is_number()) {
    AddWrong(absl::StrCat(Name(key), " is ", ShortJson(*value), ", not a number"));
    return range.max;
  }
  const double number = value->get<double>();
  const bool high_enough = range.above_min ? number > range.min : number >= range.min;
  if (high_enough && number <= range.max) return number;
  AddWrong(absl::StrCat(Name(key), " is ", ShortJson(*value), "; allowed is ",
                        range.above_min ? "above " : "", range.min, " up to ", range.max));
  return range.max;
}

bool ConfigReader::Bool(const std::string& key, std::optional<bool> fallback) {
  const json* value = Get(key);
  if (value == nullptr && !fallback) problems_->missing.push_back(Name(key));
  if (value == nullptr) return fallback.value_or(false);
  if (value->is_boolean()) return value->get<bool>();
  AddWrong(absl::StrCat(Name(key), " is ", ShortJson(*value), ", not true or false"));
  return false;
}

std::string ConfigReader::String(const std::string& key, std::optional<std::string> fallback) {
  const json* value = Get(key);
  if (value == nullptr && !fallback) problems_->missing.push_back(Name(key));
  if (value == nullptr) return fallback.value_or("");
  if (value->is_string()) return value->get<std::string>();
  AddWrong(absl::StrCat(Name(key), " is ", ShortJson(*value), ", not a string"));
  return "";
}

std::vector<int32_t> ConfigReader::IntList(const std::string& key, IntRange range) {
  const json* value = Get(key);
  if (value == nullptr) return {};
  if (!value->is_array()) return {CheckedInt(key, *value, range)};
  std::vector<int32_t> out;
  for (const json& item : *value) out.push_back(CheckedInt(key, item, range));
  return out;
}

}  // namespace jevons

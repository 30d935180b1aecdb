#include "model/jinja.h"

#include "absl/strings/str_cat.h"
#include "model/jinja_eval.h"
#include "model/jinja_parser.h"
#include "model/tokenizer.h"

namespace jevons::jinja {
namespace {

absl::StatusOr<Value> StringFromJson(const std::string& bytes, Origin origin) {
  if (auto offset = FindInvalidUtf8(bytes)) {
    return absl::InvalidArgumentError(
        absl::StrCat("ill-formed UTF-8 at offset ", *offset, " of a string"));
  }
  return Value(Text(bytes, origin));
}

absl::StatusOr<Value> Convert(const nlohmann::ordered_json& json, Origin origin, int depth) {
  if (depth > kMaxValueDepth) {
    return absl::InvalidArgumentError(
        absl::StrCat("JSON nests deeper than ", kMaxValueDepth, " levels"));
  }
  if (json.is_string()) return StringFromJson(json.get_ref<const std::string&>(), origin);
  if (json.is_boolean()) return Value(json.get<bool>());
  if (json.is_number_unsigned()) return Value(static_cast<Int>(json.get<uint64_t>()));
  if (json.is_number_integer()) return Value(static_cast<Int>(json.get<int64_t>()));
  if (json.is_number_float()) return Value(json.get<double>());
  if (json.is_array()) {
    std::vector<Value> items;
    items.reserve(json.size());
    for (const auto& element : json) {
      ASSIGN_OR_RETURN(Value item, Convert(element, origin, depth + 1));
      items.push_back(std::move(item));
    }
    return Value::OfList(std::move(items));
  }
  if (json.is_object()) {
    std::vector<Entry> entries;
    entries.reserve(json.size());
    for (const auto& element : json.items()) {
      ASSIGN_OR_RETURN(Value key, StringFromJson(element.key(), origin));
      ASSIGN_OR_RETURN(Value value, Convert(element.value(), origin, depth + 1));
      entries.emplace_back(std::move(key), std::move(value));
    }
    ASSIGN_OR_RETURN(Value::DictPtr dict, Dict::Make(std::move(entries)));
    return Value(std::move(dict));
  }
  return Value();
}

}  // namespace

absl::StatusOr<Template> Template::Parse(std::string_view source) {
  if (auto offset = FindInvalidUtf8(source)) {
    return absl::InvalidArgumentError(
        absl::StrCat("chat template: ill-formed UTF-8 at offset ", *offset));
  }
  ASSIGN_OR_RETURN(Body body, ParseTemplate(source));
  return Template(std::move(body));
}

absl::StatusOr<Text> Template::Render(Variables variables, std::function<std::tm()> now) const {
  Evaluator eval(std::move(variables), std::move(now));
  return eval.Run(body_);
}

absl::StatusOr<Value> FromJson(const nlohmann::ordered_json& json, Origin origin) {
  return Convert(json, origin, 1);
}

}  // namespace jevons::jinja

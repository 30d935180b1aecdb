// A small Jinja2: what chat templates use, with the settings of transformers.
#pragma once

#include <ctime>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "model/jinja_ast.h"
#include "model/jinja_text.h"
#include "model/jinja_value.h"
#include "nlohmann/json.hpp"

namespace jevons::jinja {

using Variables = std::vector<std::pair<std::string, Value>>;

// Semantics of Jinja2 3.1 in the immutable sandbox, with trim_blocks, lstrip_blocks, loop controls,
// the generation tag, and tojson, raise_exception and strftime_now of transformers. Filters and
// tests run at once where Jinja2 waits until their result is used. Immutable, thread-safe.
class Template {
 public:
  // INVALID_ARGUMENT for what is no template; UNIMPLEMENTED, with line and what, for what Jinja2
  // knows and we do not.
  static absl::StatusOr<Template> Parse(std::string_view source);

  // INVALID_ARGUMENT, with the line, for what the template raises, for what Python would raise, and
  // for a rendering over the limits of jinja_eval.h. `now` is the local time that strftime_now
  // tells.
  absl::StatusOr<Text> Render(Variables variables, std::function<std::tm()> now) const;

 private:
  explicit Template(Body body) : body_(std::move(body)) {}

  Body body_;
};

// A JSON value whose strings, keys included, have `origin`. INVALID_ARGUMENT for nesting beyond
// kMaxValueDepth and for ill-formed UTF-8.
absl::StatusOr<Value> FromJson(const nlohmann::ordered_json& json, Origin origin);

}  // namespace jevons::jinja

// Filters, tests, methods and functions that a template can call.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "model/jinja_value.h"

namespace jevons::jinja {

class Evaluator;

struct CallArgs {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

enum class Support : uint8_t {
  kSupported,
  kUnsupported,  // Jinja2 or Python has it, we do not
  kUnknown,      // nobody has it
};
Support FilterSupport(std::string_view name);
Support TestSupport(std::string_view name);
// Of any object; kUnknown may still be the name of a key.
Support MethodSupport(std::string_view name);
Support FunctionSupport(std::string_view name);

// The errors are INVALID_ARGUMENT in Jinja2's words where it would raise, UNIMPLEMENTED where we
// cannot say.
absl::StatusOr<Value> CallFilter(Evaluator& eval, std::string_view name, const Value& input,
                                 CallArgs args);
absl::StatusOr<bool> CallTest(Evaluator& eval, std::string_view name, const Value& input,
                              CallArgs args);
absl::StatusOr<Value> CallMethod(Evaluator& eval, const Value& self, std::string_view name,
                                 CallArgs args);
absl::StatusOr<Value> CallFunction(Evaluator& eval, std::string_view name, CallArgs args);

// What `value.name` is where it is a method: kUnknown if it is none of this type.
Support MethodOf(const Value& value, std::string_view name);
// Methods that would change the value, which the sandbox of transformers forbids.
bool IsForbiddenMethod(const Value& value, std::string_view name);

// One argument of the type that `callee` wants; `absent` where the call left it out.
absl::StatusOr<std::string> StringArg(const Value& value, std::string_view callee);
absl::StatusOr<Int> IntArg(const std::optional<Value>& value, Int absent, std::string_view callee);

// Declares the parameters of a builtin, and sorts a call's arguments into them.
struct Signature {
  std::vector<std::string_view> params;
  size_t num_required = 0;
};
absl::StatusOr<std::vector<std::optional<Value>>> BindArgs(std::string_view callee,
                                                           const Signature& signature,
                                                           CallArgs args);

// json.dumps as transformers calls it.
struct JsonStyle {
  bool ensure_ascii = false;
  std::optional<std::string> indent;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool sort_keys = false;
};
absl::Status AppendJson(const Value& value, const JsonStyle& style, Text* out);

// Operators that builtins share with the evaluator.
absl::StatusOr<bool> Contains(const Value& container, const Value& item);
absl::StatusOr<size_t> LengthOf(const Value& value);
absl::StatusOr<Value> GetItem(const Value& object, const Value& key);
absl::StatusOr<Value> GetAttr(const Value& object, std::string_view name);
Text EscapeHtml(const Text& text);

// str.upper, lower, capitalize and title of Python.
enum class LetterCase : uint8_t { kUpper, kLower, kCapitalize, kTitle };
absl::StatusOr<Text> ChangeCase(const Text& text, LetterCase letter_case);

// Text methods; each piece keeps its origin. `max_splits` < 0 means no limit.
std::vector<Text> SplitText(const Text& text, const std::optional<std::string>& separator,
                            Int max_splits, bool from_right);
std::vector<Text> SplitLines(const Text& text, bool keep_ends);
Text ReplaceText(const Text& text, std::string_view from, const Text& to, Int max_count);

}  // namespace jevons::jinja

// Tests: `value is name`.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "model/jinja_builtins.h"
#include "model/jinja_eval.h"

namespace jevons::jinja {
namespace {

using TestFn = absl::StatusOr<bool> (*)(const Value& value, const Value& arg);

absl::StatusOr<bool> Ordered(const Value& a, const Value& b, std::string_view op) {
  ASSIGN_OR_RETURN(int sign, Compare(a, b, op));
  if (op == "<") return sign == -1;
  if (op == "<=") return sign == -1 || sign == 0;
  if (op == ">") return sign == 1;
  return sign == 1 || sign == 0;
}

absl::StatusOr<Int> Remainder(const Value& value, const Value& divisor) {
  ASSIGN_OR_RETURN(Value rest, Arithmetic("%", value, divisor));
  return rest.is_float() ? (rest.AsDouble() == 0   ? Int{0}
                            : rest.AsDouble() == 1 ? Int{1}
                                                   : Int{2})
                         : rest.AsInt();
}

bool IsIterable(const Value& v) {
  return v.text() || v.list() || v.dict() || v.loop() || v.is_undefined();
}

absl::StatusOr<bool> HasOnlyCase(const Value& value, LetterCase letter_case) {
  ASSIGN_OR_RETURN(Text text, ToText(value));
  ASSIGN_OR_RETURN(Text upper, ChangeCase(text, LetterCase::kUpper));
  ASSIGN_OR_RETURN(Text lower, ChangeCase(text, LetterCase::kLower));
  const Text& same = letter_case == LetterCase::kUpper ? upper : lower;
  return text.bytes() == same.bytes() && upper.bytes() != lower.bytes();
}

struct TestDef {
  std::string_view name;
  size_t num_args;
  TestFn fn;
};

constexpr TestDef kTests[] = {
    {"defined", 0,
     [](const Value& v, const Value&) -> absl::StatusOr<bool> { return !v.is_undefined(); }},
    {"undefined", 0,
     [](const Value& v, const Value&) -> absl::StatusOr<bool> { return v.is_undefined(); }},
    {"none", 0, [](const Value& v, const Value&) -> absl::StatusOr<bool> { return v.is_none(); }},
    {"string", 0,
     [](const Value& v, const Value&) -> absl::StatusOr<bool> { return v.text() != nullptr; }},
    {"mapping", 0,
     [](const Value& v, const Value&) -> absl::StatusOr<bool> { return v.dict() != nullptr; }},
    {"iterable", 0,
     [](const Value& v, const Value&) -> absl::StatusOr<bool> { return IsIterable(v); }},
    {"sequence", 0,
     [](const Value& v, const Value&) -> absl::StatusOr<bool> {
       return v.text() || v.sequence() || v.dict() || v.is_undefined();
     }},
    {"number", 0,
     [](const Value& v, const Value&) -> absl::StatusOr<bool> { return v.is_number(); }},
    {"boolean", 0,
     [](const Value& v, const Value&) -> absl::StatusOr<bool> { return v.is_bool(); }},
    {"true", 0,
     [](const Value& v, const Value&) -> absl::StatusOr<bool> {
       return v.is_bool() && v.AsBool();
     }},
    {"false", 0,
     [](const Value& v, const Value&) -> absl::StatusOr<bool> {
       return v.is_bool() && !v.AsBool();
     }},
    {"integer", 0, [](const Value& v, const Value&) -> absl::StatusOr<bool> { return v.is_int(); }},
    {"float", 0, [](const Value& v, const Value&) -> absl::StatusOr<bool> { return v.is_float(); }},
    {"callable", 0,
     [](const Value& v, const Value&) -> absl::StatusOr<bool> {
       return v.callable() || v.is_undefined();
     }},
    {"escaped", 0,
     [](const Value& v, const Value&) -> absl::StatusOr<bool> {
       return v.text() && v.text()->is_markup();
     }},
    {"odd", 0,
     [](const Value& v, const Value&) -> absl::StatusOr<bool> {
       ASSIGN_OR_RETURN(Int rest, Remainder(v, Value(Int{2})));
       return rest == 1;
     }},
    {"even", 0,
     [](const Value& v, const Value&) -> absl::StatusOr<bool> {
       ASSIGN_OR_RETURN(Int rest, Remainder(v, Value(Int{2})));
       return rest == 0;
     }},
    {"divisibleby", 1,
     [](const Value& v, const Value& a) -> absl::StatusOr<bool> {
       ASSIGN_OR_RETURN(Int rest, Remainder(v, a));
       return rest == 0;
     }},
    {"lower", 0,
     [](const Value& v, const Value&) -> absl::StatusOr<bool> {
       return HasOnlyCase(v, LetterCase::kLower);
     }},
    {"upper", 0,
     [](const Value& v, const Value&) -> absl::StatusOr<bool> {
       return HasOnlyCase(v, LetterCase::kUpper);
     }},
    {"filter", 0,
     [](const Value& v, const Value&) -> absl::StatusOr<bool> {
       return v.text() && FilterSupport(v.text()->bytes()) != Support::kUnknown;
     }},
    {"test", 0,
     [](const Value& v, const Value&) -> absl::StatusOr<bool> {
       return v.text() && TestSupport(v.text()->bytes()) != Support::kUnknown;
     }},
    {"sameas", 1,
     [](const Value& v, const Value& a) -> absl::StatusOr<bool> { return v.SameAs(a); }},
    {"in", 1,
     [](const Value& v, const Value& a) -> absl::StatusOr<bool> { return Contains(a, v); }},
    {"eq", 1, [](const Value& v, const Value& a) -> absl::StatusOr<bool> { return Equals(v, a); }},
    {"ne", 1, [](const Value& v, const Value& a) -> absl::StatusOr<bool> { return !Equals(v, a); }},
    {"lt", 1,
     [](const Value& v, const Value& a) -> absl::StatusOr<bool> { return Ordered(v, a, "<"); }},
    {"le", 1,
     [](const Value& v, const Value& a) -> absl::StatusOr<bool> { return Ordered(v, a, "<="); }},
    {"gt", 1,
     [](const Value& v, const Value& a) -> absl::StatusOr<bool> { return Ordered(v, a, ">"); }},
    {"ge", 1,
     [](const Value& v, const Value& a) -> absl::StatusOr<bool> { return Ordered(v, a, ">="); }},
};

constexpr std::pair<std::string_view, std::string_view> kAliases[] = {
    {"equalto", "eq"}, {"==", "eq"}, {"!=", "ne"},          {"<", "lt"}, {"lessthan", "lt"},
    {"<=", "le"},      {">", "gt"},  {"greaterthan", "gt"}, {">=", "ge"}};

const TestDef* FindTest(std::string_view name) {
  for (const auto& [alias, real] : kAliases) {
    if (alias == name) name = real;
  }
  auto it = std::find_if(std::begin(kTests), std::end(kTests),
                         [&](const TestDef& def) { return def.name == name; });
  return it == std::end(kTests) ? nullptr : it;
}

}  // namespace

Support TestSupport(std::string_view name) {
  return FindTest(name) ? Support::kSupported : Support::kUnknown;
}

absl::StatusOr<bool> CallTest(Evaluator& eval, std::string_view name, const Value& input,
                              CallArgs args) {
  const TestDef* def = FindTest(name);
  if (def == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrFormat("No test named '%s' found.", std::string(name)));
  }
  if (args.positional.size() != def->num_args || !args.named.empty()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("the test %s takes %d argument(s)", std::string(name), def->num_args));
  }
  eval.Charge(input.HeapBytes());
  return def->fn(input, def->num_args ? args.positional[0] : Value());
}

}  // namespace jevons::jinja

// Global functions, and the arguments of every builtin.
#include <algorithm>
#include <ctime>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "model/jinja_builtins.h"
#include "model/jinja_eval.h"

namespace jevons::jinja {
namespace {

using Bound = std::vector<std::optional<Value>>;

constexpr size_t kMaxNames = 1000;  // of one namespace

constexpr std::string_view kFunctions[] = {"range", "namespace", "raise_exception", "strftime_now",
                                           "dict"};
constexpr std::string_view kOtherFunctions[] = {"joiner", "cycler", "lipsum", "self", "super"};

template <size_t N>
bool IsOneOf(const std::string_view (&names)[N], std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

absl::Status TypeError(std::string_view what) {
  return absl::InvalidArgumentError(std::string(what));
}

absl::StatusOr<Value> Range(CallArgs args) {
  ASSIGN_OR_RETURN(Bound bound, BindArgs("range", {{"start", "stop", "step"}, 1}, std::move(args)));
  ASSIGN_OR_RETURN(Int start, IntArg(bound[0], 0, "range"));
  ASSIGN_OR_RETURN(Int stop, IntArg(bound[1], start, "range"));
  ASSIGN_OR_RETURN(Int step, IntArg(bound[2], 1, "range"));
  if (!bound[1]) start = 0;
  if (step == 0) return TypeError("range() arg 3 must not be zero");
  constexpr Int kFar = Int{1} << 100;
  if (std::max({start, stop, step}) > kFar || std::min({start, stop, step}) < -kFar)
    return TypeError("range too big");
  Int length = step > 0 ? (stop - start + step - 1) / step : (start - stop - step - 1) / -step;
  if (length > kMaxRange) {
    return TypeError(
        absl::StrFormat("Range too big. The sandbox blocks ranges larger than MAX_RANGE (%s).",
                        FormatInt(kMaxRange)));
  }
  std::vector<Value> items;
  for (Int i = 0; i < length; ++i) items.emplace_back(start + i * step);
  return Value::OfList(std::move(items), ListKind::kRange);
}

// namespace(a=1), namespace({'a': 1}) and the same for dict.
absl::StatusOr<std::vector<Entry>> EntriesOf(const CallArgs& args) {
  std::vector<Entry> entries;
  if (args.positional.size() > 1) return TypeError("expected at most 1 argument");
  for (const Value& value : args.positional) {
    if (!value.dict())
      return absl::UnimplementedError("a namespace or dict made from something else than a dict");
    entries = value.dict()->entries();
  }
  for (const auto& [name, value] : args.named) entries.emplace_back(Value::OfString(name), value);
  return entries;
}

absl::StatusOr<Value> MakeNamespace(Evaluator& eval, const CallArgs& args) {
  ASSIGN_OR_RETURN(std::vector<Entry> entries, EntriesOf(args));
  if (entries.size() > kMaxNames) {
    return TypeError(
        absl::StrFormat("a namespace of %d names, at most %d", entries.size(), kMaxNames));
  }
  Namespace* space = eval.NewNamespace();
  for (auto& [key, value] : entries) {
    if (!key.text()) return TypeError("the names of a namespace must be strings");
    space->Set(key.text()->bytes(), std::move(value));
  }
  return Value(space);
}

absl::StatusOr<Value> FormatNow(Evaluator& eval, CallArgs args) {
  ASSIGN_OR_RETURN(Bound bound, BindArgs("strftime_now", {{"format"}, 1}, std::move(args)));
  ASSIGN_OR_RETURN(std::string format, StringArg(*bound[0], "strftime_now"));
  if (format.size() > 1000) return TypeError("strftime_now: a format of more than 1000 bytes");
  std::tm now = eval.Now();
  std::string out(format.size() * 40 + 64, '\0');
  out.resize(std::strftime(out.data(), out.size(), format.c_str(), &now));
  return Value::OfString(std::move(out));
}

}  // namespace

absl::StatusOr<std::string> StringArg(const Value& value, std::string_view callee) {
  if (value.text()) return value.text()->bytes();
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(callee), ": expected str, got ", value.TypeName()));
}

absl::StatusOr<Int> IntArg(const std::optional<Value>& value, Int absent, std::string_view callee) {
  if (!value) return absent;
  if (value->is_integral()) return value->AsInt();
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(callee), ": expected int, got ", value->TypeName()));
}

Support FunctionSupport(std::string_view name) {
  if (IsOneOf(kFunctions, name)) return Support::kSupported;
  return IsOneOf(kOtherFunctions, name) ? Support::kUnsupported : Support::kUnknown;
}

absl::StatusOr<Bound> BindArgs(std::string_view callee, const Signature& signature, CallArgs args) {
  size_t num_params = signature.params.size();
  if (args.positional.size() > num_params) {
    return TypeError(absl::StrFormat("%s takes at most %d argument(s), got %d", std::string(callee),
                                     num_params, args.positional.size()));
  }
  Bound bound(num_params);
  for (size_t i = 0; i < args.positional.size(); ++i) bound[i] = std::move(args.positional[i]);
  for (auto& [name, value] : args.named) {
    auto it = std::find(signature.params.begin(), signature.params.end(), name);
    size_t at = static_cast<size_t>(it - signature.params.begin());
    if (at == num_params || bound[at]) {
      return TypeError(absl::StrFormat("%s: unexpected argument '%s'", std::string(callee), name));
    }
    bound[at] = std::move(value);
  }
  for (size_t i = 0; i < signature.num_required; ++i) {
    if (!bound[i]) {
      return TypeError(absl::StrFormat("%s: missing argument '%s'", std::string(callee),
                                       std::string(signature.params[i])));
    }
  }
  return bound;
}

absl::StatusOr<Value> CallFunction(Evaluator& eval, std::string_view name, CallArgs args) {
  if (name == "range") return Range(std::move(args));
  if (name == "namespace") return MakeNamespace(eval, args);
  if (name == "strftime_now") return FormatNow(eval, std::move(args));
  if (name == "raise_exception") {
    ASSIGN_OR_RETURN(Bound bound, BindArgs("raise_exception", {{"message"}, 1}, std::move(args)));
    ASSIGN_OR_RETURN(Text message, ToText(*bound[0]));
    return absl::InvalidArgumentError(message.bytes());
  }
  ASSIGN_OR_RETURN(std::vector<Entry> entries, EntriesOf(args));
  eval.Charge(entries.size() * sizeof(Entry));
  ASSIGN_OR_RETURN(Value::DictPtr dict, Dict::Make(std::move(entries)));
  return Value(std::move(dict));
}

}  // namespace jevons::jinja

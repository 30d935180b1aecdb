// Methods of str, dict, list and loop.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "model/jinja_builtins.h"
#include "model/jinja_eval.h"

namespace jevons::jinja {
namespace {

using Bound = std::vector<std::optional<Value>>;
using MethodFn = absl::StatusOr<Value> (*)(const Value& self, const Bound& args);

absl::Status TypeError(std::string_view what) {
  return absl::InvalidArgumentError(std::string(what));
}

absl::StatusOr<Value> Strip(const Value& self, const Bound& args, bool left, bool right) {
  const Text& text = *self.text();
  std::optional<std::string_view> chars;
  if (args[0] && !args[0]->is_none()) {
    if (!args[0]->text()) return TypeError("strip arg must be None or str");
    chars = args[0]->text()->bytes();
  }
  ByteRange range = StripRange(text.bytes(), chars, left, right);
  return Value(text.Part(range.begin, range.end));
}

absl::StatusOr<Value> ListOfTexts(std::vector<Text> texts, ListKind kind = ListKind::kList) {
  std::vector<Value> items;
  items.reserve(texts.size());
  for (Text& text : texts) items.emplace_back(std::move(text));
  return Value::OfList(std::move(items), kind);
}

absl::StatusOr<Value> Split(const Value& self, const Bound& args, bool from_right) {
  std::optional<std::string> separator;
  if (args[0] && !args[0]->is_none()) {
    ASSIGN_OR_RETURN(separator, StringArg(*args[0], "split"));
    if (separator->empty()) return TypeError("empty separator");
  }
  ASSIGN_OR_RETURN(Int max_splits, IntArg(args[1], -1, "split"));
  return ListOfTexts(SplitText(*self.text(), separator, max_splits, from_right));
}

absl::StatusOr<Value> Partition(const Value& self, const Bound& args, bool from_right) {
  ASSIGN_OR_RETURN(std::string separator, StringArg(*args[0], "partition"));
  if (separator.empty()) return TypeError("empty separator");
  const Text& text = *self.text();
  size_t at = from_right ? text.bytes().rfind(separator) : text.bytes().find(separator);
  if (at == std::string::npos) {
    return ListOfTexts(from_right ? std::vector<Text>{Text(), Text(), text}
                                  : std::vector<Text>{text, Text(), Text()},
                       ListKind::kTuple);
  }
  return ListOfTexts({text.Part(0, at), text.Part(at, at + separator.size()),
                      text.Part(at + separator.size(), text.size())},
                     ListKind::kTuple);
}

absl::StatusOr<Value> HasEnd(const Value& self, const Bound& args, bool at_start) {
  const std::string& bytes = self.text()->bytes();
  auto matches = [&](const std::string& part) {
    if (part.size() > bytes.size()) return false;
    return bytes.compare(at_start ? 0 : bytes.size() - part.size(), part.size(), part) == 0;
  };
  std::vector<Value> parts{*args[0]};
  if (args[0]->list() && args[0]->list()->kind == ListKind::kTuple) parts = args[0]->list()->items;
  bool found = false;
  for (const Value& part : parts) {
    ASSIGN_OR_RETURN(std::string bytes_of_part,
                     StringArg(part, at_start ? "startswith" : "endswith"));
    found |= matches(bytes_of_part);
  }
  return Value(found);
}

absl::StatusOr<Value> Find(const Value& self, const Bound& args, bool from_right, bool must) {
  ASSIGN_OR_RETURN(std::string part, StringArg(*args[0], "find"));
  const std::string& bytes = self.text()->bytes();
  size_t at = from_right ? bytes.rfind(part) : bytes.find(part);
  if (at != std::string::npos)
    return Value::OfSize(CountChars(std::string_view(bytes).substr(0, at)));
  if (must) return TypeError("substring not found");
  return Value(Int{-1});
}

absl::StatusOr<Value> Replace(const Value& self, const Bound& args) {
  ASSIGN_OR_RETURN(std::string from, StringArg(*args[0], "replace"));
  if (!args[1]->text()) return TypeError("replace: expected str");
  ASSIGN_OR_RETURN(Int max_count, IntArg(args[2], -1, "replace"));
  return Value(ReplaceText(*self.text(), from, *args[1]->text(), max_count));
}

absl::StatusOr<Value> RemoveEnd(const Value& self, const Bound& args, bool at_start) {
  ASSIGN_OR_RETURN(std::string part, StringArg(*args[0], "removeprefix"));
  ASSIGN_OR_RETURN(Value has, HasEnd(self, {args[0]}, at_start));
  const Text& text = *self.text();
  if (!has.AsBool()) return self;
  return Value(at_start ? text.Part(part.size(), text.size())
                        : text.Part(0, text.size() - part.size()));
}

absl::StatusOr<Value> Join(const Value& self, const Bound& args) {
  ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(*args[0]));
  Text out;
  for (size_t i = 0; i < items.size(); ++i) {
    if (!items[i].text()) {
      return TypeError(absl::StrFormat("sequence item %d: expected str instance, %s found", i,
                                       items[i].TypeName()));
    }
    if (i > 0) out.Append(*self.text());
    out.Append(*items[i].text());
  }
  return Value(std::move(out));
}

absl::StatusOr<Value> Case(const Value& self, LetterCase letter_case) {
  ASSIGN_OR_RETURN(Text text, ChangeCase(*self.text(), letter_case));
  return Value(std::move(text));
}

absl::StatusOr<Value> Count(const Value& self, const Bound& args) {
  ASSIGN_OR_RETURN(std::string part, StringArg(*args[0], "count"));
  const std::string& bytes = self.text()->bytes();
  if (part.empty()) return Value::OfSize(CountChars(bytes) + 1);
  size_t count = 0;
  for (size_t at = bytes.find(part); at != std::string::npos;
       at = bytes.find(part, at + part.size()))
    ++count;
  return Value::OfSize(count);
}

template <typename Predicate>
absl::StatusOr<Value> AllAscii(const Value& self, std::string_view name, Predicate holds) {
  const std::string& bytes = self.text()->bytes();
  if (!IsAscii(bytes)) {
    return absl::UnimplementedError(
        absl::StrCat(std::string(name), " beyond ASCII is not supported"));
  }
  return Value(!bytes.empty() && std::all_of(bytes.begin(), bytes.end(), holds));
}

absl::StatusOr<Value> IsAllSpace(const Value& self) {
  const std::string& bytes = self.text()->bytes();
  ByteRange rest = StripRange(bytes, std::nullopt, true, true);
  return Value(!bytes.empty() && rest.begin == rest.end);
}

absl::StatusOr<Value> Get(const Value& self, const Bound& args) {
  ASSIGN_OR_RETURN(const Value* found, self.dict()->Find(*args[0]));
  if (found) return *found;
  return args[1] ? *args[1] : Value();
}

absl::StatusOr<Value> DictView(const Value& self, ListKind kind) {
  std::vector<Value> items;
  for (const auto& [key, value] : self.dict()->entries()) {
    if (kind != ListKind::kItems) {
      items.push_back(kind == ListKind::kKeys ? key : value);
      continue;
    }
    ASSIGN_OR_RETURN(Value pair, Value::OfList({key, value}, ListKind::kTuple));
    items.push_back(std::move(pair));
  }
  return Value::OfList(std::move(items), kind);
}

absl::StatusOr<Value> ListFind(const Value& self, const Bound& args, bool counts) {
  size_t count = 0;
  for (size_t i = 0; i < self.list()->items.size(); ++i) {
    if (!Equals(self.list()->items[i], *args[0])) continue;
    if (!counts) return Value::OfSize(i);
    ++count;
  }
  if (!counts) return TypeError("the value is not in the list");
  return Value::OfSize(count);
}

struct MethodDef {
  std::string_view name;
  Signature signature;
  MethodFn fn;
};

using Defs = std::vector<MethodDef>;
using R = absl::StatusOr<Value>;
using V = const Value&;
using A = const Bound&;

const Defs& StringMethods() {
  static const Defs* const defs = new Defs{
      {"strip", {{"chars"}, 0}, [](V s, A a) -> R { return Strip(s, a, true, true); }},
      {"lstrip", {{"chars"}, 0}, [](V s, A a) -> R { return Strip(s, a, true, false); }},
      {"rstrip", {{"chars"}, 0}, [](V s, A a) -> R { return Strip(s, a, false, true); }},
      {"split", {{"sep", "maxsplit"}, 0}, [](V s, A a) -> R { return Split(s, a, false); }},
      {"rsplit", {{"sep", "maxsplit"}, 0}, [](V s, A a) -> R { return Split(s, a, true); }},
      {"partition", {{"sep"}, 1}, [](V s, A a) -> R { return Partition(s, a, false); }},
      {"rpartition", {{"sep"}, 1}, [](V s, A a) -> R { return Partition(s, a, true); }},
      {"splitlines",
       {{"keepends"}, 0},
       [](V s, A a) -> R { return ListOfTexts(SplitLines(*s.text(), a[0] && a[0]->Truth())); }},
      {"startswith", {{"prefix"}, 1}, [](V s, A a) -> R { return HasEnd(s, a, true); }},
      {"endswith", {{"suffix"}, 1}, [](V s, A a) -> R { return HasEnd(s, a, false); }},
      {"removeprefix", {{"prefix"}, 1}, [](V s, A a) -> R { return RemoveEnd(s, a, true); }},
      {"removesuffix", {{"suffix"}, 1}, [](V s, A a) -> R { return RemoveEnd(s, a, false); }},
      {"find", {{"sub"}, 1}, [](V s, A a) -> R { return Find(s, a, false, false); }},
      {"rfind", {{"sub"}, 1}, [](V s, A a) -> R { return Find(s, a, true, false); }},
      {"index", {{"sub"}, 1}, [](V s, A a) -> R { return Find(s, a, false, true); }},
      {"count", {{"sub"}, 1}, Count},
      {"replace", {{"old", "new", "count"}, 2}, Replace},
      {"join", {{"iterable"}, 1}, Join},
      {"upper", {}, [](V s, A) -> R { return Case(s, LetterCase::kUpper); }},
      {"lower", {}, [](V s, A) -> R { return Case(s, LetterCase::kLower); }},
      {"title", {}, [](V s, A) -> R { return Case(s, LetterCase::kTitle); }},
      {"capitalize", {}, [](V s, A) -> R { return Case(s, LetterCase::kCapitalize); }},
      {"isdigit",
       {},
       [](V s, A) -> R {
         return AllAscii(s, "isdigit", [](char c) { return c >= '0' && c <= '9'; });
       }},
      {"isalpha",
       {},
       [](V s, A) -> R {
         return AllAscii(s, "isalpha",
                         [](char c) { return (c | 0x20) >= 'a' && (c | 0x20) <= 'z'; });
       }},
      {"isalnum",
       {},
       [](V s, A) -> R {
         return AllAscii(s, "isalnum", [](char c) {
           return (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
         });
       }},
      {"isspace", {}, [](V s, A) -> R { return IsAllSpace(s); }},
  };
  return *defs;
}

const Defs& DictMethods() {
  static const Defs* const defs = new Defs{
      {"get", {{"key", "default"}, 1}, Get},
      {"items", {}, [](V s, A) -> R { return DictView(s, ListKind::kItems); }},
      {"keys", {}, [](V s, A) -> R { return DictView(s, ListKind::kKeys); }},
      {"values", {}, [](V s, A) -> R { return DictView(s, ListKind::kValues); }},
      {"copy", {}, [](V s, A) -> R { return s; }},
  };
  return *defs;
}

const Defs& ListMethods() {
  static const Defs* const defs = new Defs{
      {"index", {{"value"}, 1}, [](V s, A a) -> R { return ListFind(s, a, false); }},
      {"count", {{"value"}, 1}, [](V s, A a) -> R { return ListFind(s, a, true); }},
  };
  return *defs;
}

const MethodDef* FindMethod(const Value& value, std::string_view name) {
  const Defs* defs = value.text()       ? &StringMethods()
                     : value.dict()     ? &DictMethods()
                     : value.sequence() ? &ListMethods()
                                        : nullptr;
  if (defs == nullptr) return nullptr;
  auto it =
      std::find_if(defs->begin(), defs->end(), [&](const MethodDef& d) { return d.name == name; });
  return it == defs->end() ? nullptr : &*it;
}

template <size_t N>
bool IsOneOf(const std::string_view (&names)[N], std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

// What Python has and we do not.
constexpr std::string_view kOtherStringMethods[] = {
    "casefold",     "center",  "encode",    "expandtabs",  "format_map", "isascii", "isdecimal",
    "isidentifier", "islower", "isnumeric", "isprintable", "istitle",    "isupper", "ljust",
    "maketrans",    "rindex",  "rjust",     "swapcase",    "translate",  "zfill"};
constexpr std::string_view kOtherNumberMethods[] = {
    "as_integer_ratio", "bit_count", "bit_length", "conjugate", "denominator",
    "from_bytes",       "fromhex",   "hex",        "imag",      "is_integer",
    "numerator",        "real",      "to_bytes"};
constexpr std::string_view kListChanges[] = {"append", "clear", "pop",    "reverse",
                                             "insert", "sort",  "extend", "remove"};
constexpr std::string_view kDictChanges[] = {"clear", "pop", "popitem", "setdefault", "update"};

// str.format for {}, {0} and {name}.
absl::StatusOr<Value> Format(const Text& format, const CallArgs& args) {
  const std::string& bytes = format.bytes();
  Text out;
  size_t plain = 0, next_auto = 0;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] != '{' && bytes[i] != '}') continue;
    out.AppendPart(format, plain, i);
    if (i + 1 < bytes.size() && bytes[i + 1] == bytes[i]) {
      plain = ++i;
      continue;
    }
    size_t end = bytes.find('}', i);
    if (bytes[i] == '}' || end == std::string::npos)
      return TypeError("a single brace in a format string");
    std::string field = bytes.substr(i + 1, end - i - 1);
    std::optional<Value> value;
    if (field.empty()) field = absl::StrCat(next_auto++);
    if (std::all_of(field.begin(), field.end(), [](char c) { return c >= '0' && c <= '9'; })) {
      size_t at =
          field.size() < 6 ? static_cast<size_t>(std::stoul(field)) : args.positional.size();
      if (at < args.positional.size()) value = args.positional[at];
    } else if (field.find_first_of("!:.[") != std::string::npos) {
      return absl::UnimplementedError(
          absl::StrCat("the format field {", field, "} is not supported"));
    }
    for (const auto& [name, named] : args.named) {
      if (name == field) value = named;
    }
    if (!value) return TypeError(absl::StrCat("no argument for the format field {", field, "}"));
    ASSIGN_OR_RETURN(Text text, ToText(*value));
    out.Append(text);
    plain = end + 1;
    i = end;
  }
  out.AppendPart(format, plain, bytes.size());
  return Value(std::move(out));
}

}  // namespace

Support MethodSupport(std::string_view name) {
  bool known = name == "format" || name == "cycle" || IsOneOf(kListChanges, name) ||
               IsOneOf(kDictChanges, name);
  for (const Defs* defs : {&StringMethods(), &DictMethods(), &ListMethods()}) {
    for (const MethodDef& def : *defs) known |= def.name == name;
  }
  if (known) return Support::kSupported;
  bool other = IsOneOf(kOtherStringMethods, name) || IsOneOf(kOtherNumberMethods, name) ||
               name == "fromkeys" || name == "changed";
  return other ? Support::kUnsupported : Support::kUnknown;
}

Support MethodOf(const Value& value, std::string_view name) {
  if (FindMethod(value, name) || (value.text() && name == "format") ||
      (value.loop() && name == "cycle")) {
    return Support::kSupported;
  }
  bool other = (value.text() && IsOneOf(kOtherStringMethods, name)) ||
               (value.is_number() && IsOneOf(kOtherNumberMethods, name)) ||
               (value.dict() && name == "fromkeys") || (value.loop() && name == "changed") ||
               (value.list() && value.list()->kind == ListKind::kList && name == "copy");
  return other ? Support::kUnsupported : Support::kUnknown;
}

bool IsForbiddenMethod(const Value& value, std::string_view name) {
  bool is_list = value.list() && value.list()->kind == ListKind::kList;
  return (is_list && IsOneOf(kListChanges, name)) || (value.dict() && IsOneOf(kDictChanges, name));
}

absl::StatusOr<Value> CallMethod(Evaluator& eval, const Value& self, std::string_view name,
                                 CallArgs args) {
  for (const Value& arg : args.positional) eval.Charge(arg.HeapBytes());
  if (self.text() && name == "format") return Format(*self.text(), args);
  if (self.loop()) {
    if (args.positional.empty()) return TypeError("no items for cycling given");
    return args.positional[self.loop()->idx % args.positional.size()];
  }
  const MethodDef* def = FindMethod(self, name);
  if (def == nullptr) return TypeError(absl::StrCat("no method ", std::string(name)));
  ASSIGN_OR_RETURN(Bound bound, BindArgs(name, def->signature, std::move(args)));
  return def->fn(self, bound);
}

}  // namespace jevons::jinja

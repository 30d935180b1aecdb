// Filters over sequences and mappings.
#include "model/jinja_filters.h"

#include <algorithm>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"

namespace jevons::jinja {
namespace {

using R = absl::StatusOr<Value>;
using A = const FilterArgs&;
using V = const Value&;

// Jinja2 compares strings without their case unless told otherwise.
absl::StatusOr<Value> SortKey(const Value& value, bool case_sensitive) {
  if (case_sensitive || !value.text()) return value;
  ASSIGN_OR_RETURN(Text lower, ChangeCase(*value.text(), LetterCase::kLower));
  return Value(std::move(lower));
}

struct Keyed {
  Value key;
  Value value;
};

// Stable. Sorting ends early, in some order, once a comparison has failed.
absl::Status SortKeyed(std::vector<Keyed>* items, bool reverse) {
  absl::Status failure;
  auto less = [&](const Value& a, const Value& b) {
    if (!failure.ok()) return false;
    auto sign = Compare(a, b, "<");
    if (!sign.ok()) failure = sign.status();
    return sign.ok() && *sign == -1;
  };
  std::stable_sort(items->begin(), items->end(), [&](const Keyed& a, const Keyed& b) {
    return reverse ? less(b.key, a.key) : less(a.key, b.key);
  });
  return failure;
}

R ListOfValues(std::vector<Keyed> items) {
  std::vector<Value> values;
  values.reserve(items.size());
  for (Keyed& item : items) values.push_back(std::move(item.value));
  return Value::OfList(std::move(values));
}

R Sort(Evaluator& eval, V input, A args) {
  ASSIGN_OR_RETURN(std::vector<Value> values, Iterate(input));
  if (args[2] && args[2]->text() && args[2]->text()->bytes().find(',') != std::string::npos) {
    return absl::UnimplementedError("sort by several attributes is not supported");
  }
  std::vector<Keyed> items;
  for (Value& value : values) {
    ASSIGN_OR_RETURN(Value key, AttributeOf(value, args[2], std::nullopt));
    ASSIGN_OR_RETURN(key, SortKey(key, Truth(args[1])));
    eval.Charge(sizeof(Keyed) + key.HeapBytes());
    items.push_back({std::move(key), std::move(value)});
  }
  RETURN_IF_ERROR(SortKeyed(&items, Truth(args[0])));
  return ListOfValues(std::move(items));
}

R DictSort(Evaluator& eval, V input, A args) {
  if (!input.dict())
    return absl::InvalidArgumentError(
        absl::StrCat("dictsort: expected a mapping, got ", input.TypeName()));
  std::string by = args[1] && args[1]->text() ? args[1]->text()->bytes() : "key";
  if (by != "key" && by != "value")
    return absl::InvalidArgumentError("You can only sort by either \"key\" or \"value\"");
  std::vector<Keyed> items;
  for (const auto& [key, value] : input.dict()->entries()) {
    ASSIGN_OR_RETURN(Value sort_key, SortKey(by == "key" ? key : value, Truth(args[0])));
    ASSIGN_OR_RETURN(Value pair, Value::OfList({key, value}, ListKind::kTuple));
    eval.Charge(sizeof(Keyed) + sort_key.HeapBytes());
    items.push_back({std::move(sort_key), std::move(pair)});
  }
  RETURN_IF_ERROR(SortKeyed(&items, Truth(args[2])));
  return ListOfValues(std::move(items));
}

R Join(Evaluator&, V input, A args) {
  ASSIGN_OR_RETURN(Text separator, TextInput(args[0] ? *args[0] : Value(Text())));
  ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(input));
  Text out;
  for (size_t i = 0; i < items.size(); ++i) {
    ASSIGN_OR_RETURN(Value item, AttributeOf(items[i], args[1], std::nullopt));
    ASSIGN_OR_RETURN(Text text, TextInput(item));
    if (i > 0) out.Append(separator);
    if (out.size() + text.size() > kMaxTextBytes)
      return absl::InvalidArgumentError("join: the result is too long");
    out.Append(text);
  }
  return Value(std::move(out));
}

R ToList(Evaluator& eval, V input, A) {
  ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(input));
  eval.Charge(items.size() * sizeof(Value));
  return Value::OfList(std::move(items));
}

R First(Evaluator&, V input, A) {
  ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(input));
  return items.empty() ? Value::OfUndefined("No first item, sequence was empty.") : items.front();
}

R Last(Evaluator&, V input, A) {
  if (input.list() && input.list()->kind == ListKind::kGenerator) {
    return absl::InvalidArgumentError("'generator' object is not reversible");
  }
  ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(input));
  return items.empty() ? Value::OfUndefined("No last item, sequence was empty.") : items.back();
}

R Items(Evaluator&, V input, A) {
  std::vector<Value> items;
  if (!input.is_undefined() && !input.dict()) {
    return absl::InvalidArgumentError("Can only get item pairs from a mapping.");
  }
  for (size_t i = 0; input.dict() && i < input.dict()->entries().size(); ++i) {
    const auto& [key, value] = input.dict()->entries()[i];
    ASSIGN_OR_RETURN(Value pair, Value::OfList({key, value}, ListKind::kTuple));
    items.push_back(std::move(pair));
  }
  return Value::OfList(std::move(items), ListKind::kGenerator);
}

R Reverse(Evaluator&, V input, A) {
  if (const Text* text = input.text()) {
    std::vector<size_t> offsets = CharOffsets(text->bytes());
    Text out;
    for (size_t i = offsets.size() - 1; i > 0; --i)
      out.AppendPart(*text, offsets[i - 1], offsets[i]);
    return Value(std::move(out));
  }
  ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(input));
  std::reverse(items.begin(), items.end());
  return Value::OfList(std::move(items), ListKind::kGenerator);
}

R Unique(Evaluator&, V input, A args) {
  ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(input));
  absl::flat_hash_set<std::string> seen;
  std::vector<Value> kept;
  for (Value& item : items) {
    ASSIGN_OR_RETURN(Value value, AttributeOf(item, args[1], std::nullopt));
    ASSIGN_OR_RETURN(value, SortKey(value, Truth(args[0])));
    std::string key;
    RETURN_IF_ERROR(AppendKey(value, &key));
    if (seen.insert(std::move(key)).second) kept.push_back(std::move(item));
  }
  return Value::OfList(std::move(kept), ListKind::kGenerator);
}

R Extreme(V input, A args, int wanted) {
  ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(input));
  if (items.empty()) return Value::OfUndefined("No aggregated item, sequence was empty.");
  size_t best = 0;
  Value best_key;
  for (size_t i = 0; i < items.size(); ++i) {
    ASSIGN_OR_RETURN(Value key, AttributeOf(items[i], args[1], std::nullopt));
    ASSIGN_OR_RETURN(key, SortKey(key, Truth(args[0])));
    bool better = i == 0;
    if (i > 0) {
      ASSIGN_OR_RETURN(int sign, Compare(key, best_key, wanted < 0 ? "<" : ">"));
      better = sign == wanted;
    }
    if (!better) continue;
    best = i;
    best_key = std::move(key);
  }
  return items[best];
}

R Sum(Evaluator&, V input, A args) {
  ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(input));
  Value total = args[1] ? *args[1] : Value(Int{0});
  if (total.text()) return absl::InvalidArgumentError("sum() can't sum strings");
  for (const Value& item : items) {
    ASSIGN_OR_RETURN(Value value, AttributeOf(item, args[0], std::nullopt));
    ASSIGN_OR_RETURN(total, Arithmetic("+", total, value));
  }
  return total;
}

// What map, select and the like do to one item: the filter or test named by the first argument,
// with the others.
absl::StatusOr<std::string> TakeName(CallArgs* args) {
  if (!args->positional[0].text())
    return absl::InvalidArgumentError("expected the name of a filter or test");
  std::string name = args->positional[0].text()->bytes();
  args->positional.erase(args->positional.begin());
  return name;
}

// Jinja2 walks nothing where the input is not true.
absl::StatusOr<std::vector<Value>> ItemsOrNone(V input) {
  if (!input.Truth()) return std::vector<Value>();
  return Iterate(input);
}

R Map(Evaluator& eval, V input, CallArgs args) {
  ASSIGN_OR_RETURN(std::vector<Value> items, ItemsOrNone(input));
  std::vector<Value> results;
  if (args.positional.empty()) {
    ASSIGN_OR_RETURN(FilterArgs bound,
                     BindArgs("map", {{"attribute", "default"}, 1}, std::move(args)));
    for (const Value& item : items) {
      ASSIGN_OR_RETURN(Value value, AttributeOf(item, bound[0], bound[1]));
      results.push_back(std::move(value));
    }
    return Value::OfList(std::move(results), ListKind::kGenerator);
  }
  ASSIGN_OR_RETURN(std::string name, TakeName(&args));
  for (const Value& item : items) {
    eval.Charge(item.HeapBytes());
    ASSIGN_OR_RETURN(Value value, CallFilter(eval, name, item, args));
    eval.Charge(value.HeapBytes());
    results.push_back(std::move(value));
  }
  return Value::OfList(std::move(results), ListKind::kGenerator);
}

R Select(Evaluator& eval, V input, CallArgs args, bool by_attribute, bool wanted) {
  ASSIGN_OR_RETURN(std::vector<Value> items, ItemsOrNone(input));
  std::optional<Value> path;
  if (by_attribute) {
    if (args.positional.empty())
      return absl::InvalidArgumentError("Missing parameter for attribute name");
    path = args.positional[0];
    args.positional.erase(args.positional.begin());
  }
  std::string test;
  if (!args.positional.empty()) {
    ASSIGN_OR_RETURN(test, TakeName(&args));
  }
  std::vector<Value> kept;
  for (Value& item : items) {
    ASSIGN_OR_RETURN(Value value, AttributeOf(item, path, std::nullopt));
    bool holds = value.Truth();
    if (!test.empty()) {
      ASSIGN_OR_RETURN(holds, CallTest(eval, test, value, args));
    }
    if (holds == wanted) kept.push_back(std::move(item));
  }
  return Value::OfList(std::move(kept), ListKind::kGenerator);
}

constexpr std::string_view kOtherFilters[] = {
    "attr",      "batch",  "center",   "filesizeformat", "forceescape", "format",
    "groupby",   "pprint", "random",   "slice",          "striptags",   "truncate",
    "urlencode", "urlize", "wordwrap", "xmlattr"};

const FilterDef* FindFilter(std::string_view name) {
  for (const auto* filters : {&TextFilters(), &SequenceFilters()}) {
    for (const FilterDef& def : *filters) {
      if (def.name == name) return &def;
    }
  }
  return nullptr;
}

}  // namespace

absl::StatusOr<Value> AttributeOf(const Value& item, const std::optional<Value>& path,
                                  const std::optional<Value>& absent) {
  Value value = item;
  if (!path || path->is_none()) return value;
  std::vector<Value> keys{*path};
  if (const Text* text = path->text()) {
    keys.clear();
    for (absl::string_view part : absl::StrSplit(text->bytes(), '.')) {
      int64_t number = 0;
      bool is_number = !part.empty() &&
                       part.find_first_not_of("0123456789") == absl::string_view::npos &&
                       absl::SimpleAtoi(part, &number);
      keys.push_back(is_number ? Value(static_cast<Int>(number))
                               : Value::OfString(std::string(part)));
    }
  }
  for (const Value& key : keys) {
    ASSIGN_OR_RETURN(value, GetItem(value, key));
    if (absent && !absent->is_none() && value.is_undefined()) value = *absent;
  }
  return value;
}

const std::vector<FilterDef>& SequenceFilters() {
  static const auto* const filters = new std::vector<FilterDef>{
      {"join", {{"d", "attribute"}, 0}, Join},
      {"list", {}, ToList},
      {"first", {}, First},
      {"last", {}, Last},
      {"items", {}, Items},
      {"reverse", {}, Reverse},
      {"sort", {{"reverse", "case_sensitive", "attribute"}, 0}, Sort},
      {"dictsort", {{"case_sensitive", "by", "reverse"}, 0}, DictSort},
      {"unique", {{"case_sensitive", "attribute"}, 0}, Unique},
      {"min",
       {{"case_sensitive", "attribute"}, 0},
       [](Evaluator&, V v, A a) -> R { return Extreme(v, a, -1); }},
      {"max",
       {{"case_sensitive", "attribute"}, 0},
       [](Evaluator&, V v, A a) -> R { return Extreme(v, a, 1); }},
      {"sum", {{"attribute", "start"}, 0}, Sum},
      {"map", {}, nullptr, Map},
      {"select",
       {},
       nullptr,
       [](Evaluator& e, V v, CallArgs a) -> R { return Select(e, v, std::move(a), false, true); }},
      {"reject",
       {},
       nullptr,
       [](Evaluator& e, V v, CallArgs a) -> R { return Select(e, v, std::move(a), false, false); }},
      {"selectattr",
       {},
       nullptr,
       [](Evaluator& e, V v, CallArgs a) -> R { return Select(e, v, std::move(a), true, true); }},
      {"rejectattr",
       {},
       nullptr,
       [](Evaluator& e, V v, CallArgs a) -> R { return Select(e, v, std::move(a), true, false); }},
  };
  return *filters;
}

Support FilterSupport(std::string_view name) {
  if (FindFilter(name)) return Support::kSupported;
  bool other = std::find(std::begin(kOtherFilters), std::end(kOtherFilters), name) !=
               std::end(kOtherFilters);
  return other ? Support::kUnsupported : Support::kUnknown;
}

absl::StatusOr<Value> CallFilter(Evaluator& eval, std::string_view name, const Value& input,
                                 CallArgs args) {
  const FilterDef* def = FindFilter(name);
  if (def == nullptr) {
    if (FilterSupport(name) == Support::kUnsupported) {
      return absl::UnimplementedError(
          absl::StrCat("the filter ", std::string(name), " is not supported"));
    }
    return absl::InvalidArgumentError(
        absl::StrFormat("No filter named '%s' found.", std::string(name)));
  }
  if (def->raw_fn) return def->raw_fn(eval, input, std::move(args));
  ASSIGN_OR_RETURN(FilterArgs bound, BindArgs(name, def->signature, std::move(args)));
  return def->fn(eval, input, bound);
}

}  // namespace jevons::jinja

// How the filters are declared; the tables are in jinja_filters*.cc.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "model/jinja_builtins.h"
#include "model/jinja_eval.h"

namespace jevons::jinja {

using FilterArgs = std::vector<std::optional<Value>>;
using FilterFn = absl::StatusOr<Value> (*)(Evaluator& eval, const Value& input,
                                           const FilterArgs& args);
using RawFilterFn = absl::StatusOr<Value> (*)(Evaluator& eval, const Value& input, CallArgs args);

struct FilterDef {
  std::string_view name;
  Signature signature;
  FilterFn fn = nullptr;
  RawFilterFn raw_fn = nullptr;  // for those that pass arguments on
};

const std::vector<FilterDef>& TextFilters();
const std::vector<FilterDef>& SequenceFilters();

// Input of filters that take any value as text.
absl::StatusOr<Text> TextInput(const Value& value);
absl::StatusOr<Int> IntOr(const std::optional<Value>& value, Int absent);
inline bool Truth(const std::optional<Value>& value) { return value && value->Truth(); }
// The attribute of `item` that "a.b.0" names; nothing means the item itself.
absl::StatusOr<Value> AttributeOf(const Value& item, const std::optional<Value>& path,
                                  const std::optional<Value>& absent);

}  // namespace jevons::jinja

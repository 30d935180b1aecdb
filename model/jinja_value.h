// Values of the template engine, with Python's meaning of truth, equality, order and printing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "base/status.h"
#include "model/jinja_text.h"

namespace jevons::jinja {

// Wide enough for every JSON integer of 64 bits, signed or not. Arithmetic beyond it is an error.
using Int = __int128;

// Containers nest at most this deep, so that no recursion over a value can exhaust the stack.
inline constexpr int kMaxValueDepth = 200;

class Value;
struct MacroStmt;
struct Scope;
struct LoopState;

enum class ListKind : uint8_t {
  kList,
  kTuple,
  kRange,
  kKeys,
  kValues,
  kItems,
  kGenerator,  // map, select, items...: has no length and no index, and can be walked once
};

struct List {
  ListKind kind = ListKind::kList;
  std::vector<Value> items;
  int depth = 1;
  mutable bool consumed = false;  // generators only
};

struct Undefined {
  std::shared_ptr<const std::string> message;  // what using it says
};
struct None {};

class Dict;
struct Namespace;
struct Callable;

// Immutable but for namespaces, which the evaluator owns. Thread-compatible.
class Value {
 public:
  using StringPtr = std::shared_ptr<const Text>;
  using ListPtr = std::shared_ptr<const List>;
  using DictPtr = std::shared_ptr<const Dict>;
  using LoopPtr = std::shared_ptr<const LoopState>;
  using CallablePtr = std::shared_ptr<const Callable>;

  Value() : data_(None{}) {}
  explicit Value(bool value) : data_(value) {}
  explicit Value(Int value) : data_(value) {}
  explicit Value(double value) : data_(value) {}
  explicit Value(Text text) : data_(std::make_shared<const Text>(std::move(text))) {}
  explicit Value(Namespace* value) : data_(value) {}
  explicit Value(LoopPtr value) : data_(std::move(value)) {}
  explicit Value(DictPtr value) : data_(std::move(value)) {}
  static Value OfString(std::string bytes) { return Value(Text(std::move(bytes))); }
  static Value OfSize(size_t value) { return Value(static_cast<Int>(value)); }
  static Value OfUndefined(std::string message);
  static absl::StatusOr<Value> OfList(std::vector<Value> items, ListKind kind = ListKind::kList);
  static absl::StatusOr<Value> OfCallable(Callable callable);

  bool is_undefined() const { return std::holds_alternative<Undefined>(data_); }
  bool is_none() const { return std::holds_alternative<None>(data_); }
  bool is_bool() const { return std::holds_alternative<bool>(data_); }
  bool is_int() const { return std::holds_alternative<Int>(data_); }  // not bool
  bool is_float() const { return std::holds_alternative<double>(data_); }
  bool is_number() const { return is_bool() || is_int() || is_float(); }
  bool is_integral() const { return is_bool() || is_int(); }

  const std::string& undefined_message() const { return *std::get<Undefined>(data_).message; }
  Int AsInt() const { return is_bool() ? (std::get<bool>(data_) ? 1 : 0) : std::get<Int>(data_); }
  bool AsBool() const { return std::get<bool>(data_); }
  double AsDouble() const;  // of any number

  // nullptr where the value is something else.
  const Text* text() const { return Get<StringPtr, Text>(); }
  const List* list() const { return Get<ListPtr, List>(); }
  const Dict* dict() const { return Get<DictPtr, Dict>(); }
  const LoopState* loop() const { return Get<LoopPtr, LoopState>(); }
  const Callable* callable() const { return Get<CallablePtr, Callable>(); }
  Namespace* as_namespace() const {
    auto* p = std::get_if<Namespace*>(&data_);
    return p ? *p : nullptr;
  }
  const List* sequence() const;  // list, tuple or range: what can be indexed

  // Identity as `is` of Python sees it, as far as templates can.
  bool SameAs(const Value& other) const;

  bool Truth() const;
  int Depth() const;             // 0 for scalars
  std::string TypeName() const;  // 'str', 'NoneType', ...
  size_t HeapBytes() const;      // of the value itself, for the meter

 private:
  template <typename Ptr, typename T>
  const T* Get() const {
    auto* p = std::get_if<Ptr>(&data_);
    return p ? p->get() : nullptr;
  }

  std::variant<None, Undefined, bool, Int, double, StringPtr, ListPtr, DictPtr, Namespace*, LoopPtr,
               CallablePtr>
      data_;
};

using Entry = std::pair<Value, Value>;

// A dict: keeps the order of insertion. Keys 1, 1.0 and true are one key.
class Dict {
 public:
  // The last value of a key given twice wins, at the first one's place. INVALID_ARGUMENT for a key
  // that has no hash.
  static absl::StatusOr<std::shared_ptr<const Dict>> Make(std::vector<Entry> entries);

  const std::vector<Entry>& entries() const { return entries_; }
  int depth() const { return depth_; }
  // nullptr if not there.
  absl::StatusOr<const Value*> Find(const Value& key) const;
  const Value* FindString(std::string_view key) const;

 private:
  std::vector<Entry> entries_;
  absl::flat_hash_map<std::string, size_t> index_;
  int depth_ = 1;
};

struct Namespace {
  std::vector<std::pair<std::string, Value>> vars;

  const Value* Find(std::string_view name) const;
  void Set(const std::string& name, Value value);
};

// `loop` inside a for. The evaluator moves it on.
struct LoopState {
  std::vector<Value> items;
  size_t idx = 0;
};

struct Callable {
  enum class Kind : uint8_t { kFunction, kMethod, kMacro };
  Kind kind = Kind::kFunction;
  std::string name;                  // of a function or method
  Value self;                        // of a method
  const MacroStmt* macro = nullptr;  // owned by the template
  Scope* scope = nullptr;            // owned by the evaluator: where the macro was defined
  int depth = 1;
};

// str(value). INVALID_ARGUMENT for what has no stable text (functions, generators, namespaces).
absl::StatusOr<Text> ToText(const Value& value);
// repr(value).
absl::Status AppendRepr(const Value& value, Text* out);
std::string FormatInt(Int value);
std::string FormatFloat(double value);

bool Equals(const Value& a, const Value& b);
// < 0, 0, > 0, or 2 for unordered (NaN). INVALID_ARGUMENT where Python has no order between the
// two; `op` is for the error text.
absl::StatusOr<int> Compare(const Value& a, const Value& b, std::string_view op);
// A text that is equal for equal keys.
absl::Status AppendKey(const Value& value, std::string* out);

// The elements a for loop sees; a generator is used up by it. INVALID_ARGUMENT for what cannot be
// walked.
absl::StatusOr<std::vector<Value>> Iterate(const Value& value);

}  // namespace jevons::jinja

#include "model/jinja_value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace jevons::jinja {
namespace {

constexpr size_t kIndexAbove = 8;  // entries from which a dict keeps a hash index

absl::Status TooDeep() {
  return absl::InvalidArgumentError(
      absl::StrCat("a value nests deeper than ", kMaxValueDepth, " levels"));
}

int SignOf(double a, double b) { return a < b ? -1 : a > b ? 1 : a == b ? 0 : 2; }

int CompareNumbers(const Value& a, const Value& b) {
  if (a.is_float() || b.is_float()) return SignOf(a.AsDouble(), b.AsDouble());
  return a.AsInt() < b.AsInt() ? -1 : a.AsInt() > b.AsInt() ? 1 : 0;
}

bool DictsEqual(const Dict& a, const Dict& b) {
  if (a.entries().size() != b.entries().size()) return false;
  for (const auto& [key, value] : a.entries()) {
    auto found = b.Find(key);
    if (!found.ok() || *found == nullptr || !Equals(value, **found)) return false;
  }
  return true;
}

}  // namespace

Value Value::OfUndefined(std::string message) {
  Value value;
  value.data_ = Undefined{std::make_shared<const std::string>(std::move(message))};
  return value;
}

absl::StatusOr<Value> Value::OfList(std::vector<Value> items, ListKind kind) {
  auto list = std::make_shared<List>();
  list->kind = kind;
  for (const Value& item : items) list->depth = std::max(list->depth, item.Depth() + 1);
  if (list->depth > kMaxValueDepth) return TooDeep();
  list->items = std::move(items);
  Value value;
  value.data_ = ListPtr(std::move(list));
  return value;
}

absl::StatusOr<Value> Value::OfCallable(Callable callable) {
  callable.depth = callable.self.Depth() + 1;
  if (callable.depth > kMaxValueDepth) return TooDeep();
  Value value;
  value.data_ = std::make_shared<const Callable>(std::move(callable));
  return value;
}

double Value::AsDouble() const {
  return is_float() ? std::get<double>(data_) : static_cast<double>(AsInt());
}

const List* Value::sequence() const {
  const List* l = list();
  if (l == nullptr) return nullptr;
  bool indexed =
      l->kind == ListKind::kList || l->kind == ListKind::kTuple || l->kind == ListKind::kRange;
  return indexed ? l : nullptr;
}

bool Value::SameAs(const Value& other) const {
  if (data_.index() != other.data_.index()) return false;
  if (list()) return list() == other.list();
  if (dict()) return dict() == other.dict();
  if (callable()) return callable() == other.callable();
  if (loop()) return loop() == other.loop();
  if (as_namespace()) return as_namespace() == other.as_namespace();
  return Equals(*this, other);
}

bool Value::Truth() const {
  if (is_undefined() || is_none()) return false;
  if (is_integral()) return AsInt() != 0;
  if (is_float()) return AsDouble() != 0;
  if (const Text* t = text()) return !t->empty();
  if (const List* l = list()) return l->kind == ListKind::kGenerator || !l->items.empty();
  if (const Dict* d = dict()) return !d->entries().empty();
  return true;
}

int Value::Depth() const {
  if (const List* l = list()) return l->depth;
  if (const Dict* d = dict()) return d->depth();
  if (const Callable* c = callable()) return c->depth;
  const LoopState* state = loop();
  if (state == nullptr) return 0;
  int depth = 0;
  for (const Value& item : state->items) depth = std::max(depth, item.Depth());
  return depth + 1;
}

std::string Value::TypeName() const {
  if (is_undefined()) return "Undefined";
  if (is_none()) return "NoneType";
  if (is_bool()) return "bool";
  if (is_int()) return "int";
  if (is_float()) return "float";
  if (const Text* t = text()) return t->is_markup() ? "Markup" : "str";
  if (dict()) return "dict";
  if (as_namespace()) return "Namespace";
  if (loop()) return "LoopContext";
  if (callable()) return callable()->kind == Callable::Kind::kMacro ? "Macro" : "function";
  static constexpr const char* kNames[] = {"list",        "tuple",      "range",    "dict_keys",
                                           "dict_values", "dict_items", "generator"};
  return kNames[static_cast<size_t>(list()->kind)];
}

size_t Value::HeapBytes() const {
  if (const Text* t = text()) return t->size();
  if (const List* l = list()) return l->items.size() * sizeof(Value);
  if (const Dict* d = dict()) return d->entries().size() * sizeof(Entry);
  return 0;
}

absl::StatusOr<std::shared_ptr<const Dict>> Dict::Make(std::vector<Entry> entries) {
  auto dict = std::make_shared<Dict>();
  absl::flat_hash_map<std::string, size_t> index;
  index.reserve(entries.size());
  for (auto& entry : entries) {
    std::string key;
    RETURN_IF_ERROR(AppendKey(entry.first, &key));
    auto [it, is_new] = index.try_emplace(std::move(key), dict->entries_.size());
    dict->depth_ = std::max(dict->depth_, std::max(entry.first.Depth(), entry.second.Depth()) + 1);
    if (is_new) {
      dict->entries_.push_back(std::move(entry));
    } else {
      dict->entries_[it->second].second = std::move(entry.second);
    }
  }
  if (dict->depth_ > kMaxValueDepth) return TooDeep();
  if (dict->entries_.size() > kIndexAbove) dict->index_ = std::move(index);
  return std::shared_ptr<const Dict>(std::move(dict));
}

const Value* Dict::FindString(std::string_view key) const {
  if (!index_.empty()) {
    auto it =
        index_.find(absl::StrCat("s", key.size(), ":", absl::string_view(key.data(), key.size())));
    return it == index_.end() ? nullptr : &entries_[it->second].second;
  }
  for (const auto& [name, value] : entries_) {
    if (name.text() && name.text()->bytes() == key) return &value;
  }
  return nullptr;
}

absl::StatusOr<const Value*> Dict::Find(const Value& key) const {
  if (key.text()) return FindString(key.text()->bytes());
  std::string wanted;
  RETURN_IF_ERROR(AppendKey(key, &wanted));
  if (!index_.empty()) {
    auto it = index_.find(wanted);
    return it == index_.end() ? nullptr : &entries_[it->second].second;
  }
  for (const auto& [name, value] : entries_) {
    if (Equals(name, key)) return &value;
  }
  return nullptr;
}

const Value* Namespace::Find(std::string_view name) const {
  for (const auto& [key, value] : vars) {
    if (key == name) return &value;
  }
  return nullptr;
}

void Namespace::Set(const std::string& name, Value value) {
  for (auto& [key, old] : vars) {
    if (key != name) continue;
    old = std::move(value);
    return;
  }
  vars.emplace_back(name, std::move(value));
}

absl::Status AppendKey(const Value& value, std::string* out) {
  if (const Text* t = value.text()) {
    absl::StrAppend(out, "s", t->size(), ":", t->bytes());
  } else if (value.is_integral()) {
    absl::StrAppend(out, "i", FormatInt(value.AsInt()));
  } else if (value.is_float()) {
    double number = value.AsDouble();
    bool whole = std::trunc(number) == number && std::abs(number) < 1e30;
    absl::StrAppend(out, whole ? "i" : "f",
                    whole ? FormatInt(static_cast<Int>(number)) : FormatFloat(number));
  } else if (value.is_none()) {
    absl::StrAppend(out, "n");
  } else if (value.list() && value.list()->kind == ListKind::kTuple) {
    absl::StrAppend(out, "t", value.list()->items.size(), "(");
    for (const Value& item : value.list()->items) RETURN_IF_ERROR(AppendKey(item, out));
    absl::StrAppend(out, ")");
  } else if (value.is_undefined()) {
    absl::StrAppend(out, "u");
  } else {
    return absl::InvalidArgumentError(absl::StrCat("unhashable type: '", value.TypeName(), "'"));
  }
  return absl::OkStatus();
}

bool Equals(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) return CompareNumbers(a, b) == 0;
  if (a.text() && b.text()) return a.text()->bytes() == b.text()->bytes();
  if (a.is_none() || b.is_none()) return a.is_none() && b.is_none();
  if (a.is_undefined() || b.is_undefined()) return a.is_undefined() && b.is_undefined();
  if (a.dict() && b.dict()) return DictsEqual(*a.dict(), *b.dict());
  if (a.list() && b.list()) {
    const List &x = *a.list(), &y = *b.list();
    if (x.kind != y.kind) return false;
    if (x.kind == ListKind::kGenerator || x.kind == ListKind::kValues) return &x == &y;
    return std::equal(x.items.begin(), x.items.end(), y.items.begin(), y.items.end(), Equals);
  }
  if (a.callable() || a.loop() || a.as_namespace()) {
    return a.callable() == b.callable() && a.loop() == b.loop() &&
           a.as_namespace() == b.as_namespace();
  }
  return false;
}

absl::StatusOr<int> Compare(const Value& a, const Value& b, std::string_view op) {
  for (const Value* v : {&a, &b}) {
    if (v->is_undefined()) return absl::InvalidArgumentError(v->undefined_message());
  }
  if (a.is_number() && b.is_number()) return CompareNumbers(a, b);
  if (a.text() && b.text()) {
    int sign = a.text()->bytes().compare(b.text()->bytes());
    return sign < 0 ? -1 : sign > 0 ? 1 : 0;
  }
  const List *x = a.list(), *y = b.list();
  bool ordered =
      x && y && x->kind == y->kind && (x->kind == ListKind::kList || x->kind == ListKind::kTuple);
  if (!ordered) {
    return absl::InvalidArgumentError(
        absl::StrFormat("'%s' not supported between instances of '%s' and '%s'",
                        absl::string_view(op.data(), op.size()), a.TypeName(), b.TypeName()));
  }
  for (size_t i = 0; i < std::min(x->items.size(), y->items.size()); ++i) {
    if (!Equals(x->items[i], y->items[i])) return Compare(x->items[i], y->items[i], op);
  }
  return SignOf(static_cast<double>(x->items.size()), static_cast<double>(y->items.size()));
}

absl::StatusOr<std::vector<Value>> Iterate(const Value& value) {
  if (value.is_undefined()) return std::vector<Value>();
  std::vector<Value> items;
  if (const List* l = value.list()) {
    if (l->kind == ListKind::kGenerator && std::exchange(l->consumed, true)) return items;
    return l->items;
  }
  if (const Dict* d = value.dict()) {
    for (const auto& entry : d->entries()) items.push_back(entry.first);
    return items;
  }
  if (const Text* t = value.text()) {
    std::vector<size_t> offsets = CharOffsets(t->bytes());
    for (size_t i = 0; i + 1 < offsets.size(); ++i) {
      items.emplace_back(t->Part(offsets[i], offsets[i + 1]));
    }
    return items;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("'", value.TypeName(), "' object is not iterable"));
}

}  // namespace jevons::jinja

// Operators on values: arithmetic, subscripts, attributes, containment.
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "model/jinja_builtins.h"
#include "model/jinja_eval.h"

namespace jevons::jinja {
namespace {

absl::Status BadOperands(std::string_view op, const Value& a, const Value& b) {
  return absl::InvalidArgumentError(
      absl::StrFormat("unsupported operand type(s) for %s: '%s' and '%s'", std::string(op),
                      a.TypeName(), b.TypeName()));
}

absl::Status Overflow() { return absl::InvalidArgumentError("an integer has more than 127 bits"); }

absl::StatusOr<Value> PowerOfInts(Int base, Int exponent) {
  if (exponent < 0) {
    if (base == 0) return absl::InvalidArgumentError("0 cannot be raised to a negative power");
    return Value(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  if (base == 0 || base == 1) return Value(exponent == 0 ? Int{1} : base);
  if (exponent > 127) return Overflow();
  Int result = 1;
  for (Int i = 0; i < exponent; ++i) {
    if (__builtin_mul_overflow(result, base, &result)) return Overflow();
  }
  return Value(result);
}

absl::StatusOr<Value> ArithmeticOfInts(std::string_view op, Int a, Int b) {
  Int result = 0;
  if (op == "+")
    return __builtin_add_overflow(a, b, &result) ? absl::StatusOr<Value>(Overflow())
                                                 : Value(result);
  if (op == "-")
    return __builtin_sub_overflow(a, b, &result) ? absl::StatusOr<Value>(Overflow())
                                                 : Value(result);
  if (op == "*")
    return __builtin_mul_overflow(a, b, &result) ? absl::StatusOr<Value>(Overflow())
                                                 : Value(result);
  if (op == "**") return PowerOfInts(a, b);
  if (b == 0) return absl::InvalidArgumentError("division by zero");
  if (op == "/") return Value(static_cast<double>(a) / static_cast<double>(b));
  if (b == -1)
    return op == "%" ? absl::StatusOr<Value>(Value(Int{0})) : ArithmeticOfInts("-", 0, a);
  Int quotient = a / b, rest = a % b;
  if (rest != 0 && (rest < 0) != (b < 0)) {
    --quotient;
    rest += b;
  }
  return Value(op == "%" ? rest : quotient);
}

absl::StatusOr<Value> ArithmeticOfFloats(std::string_view op, double a, double b) {
  if (op == "+") return Value(a + b);
  if (op == "-") return Value(a - b);
  if (op == "*") return Value(a * b);
  if (op == "**") return Value(std::pow(a, b));
  if (b == 0) return absl::InvalidArgumentError("float division by zero");
  if (op == "/") return Value(a / b);
  double rest = std::fmod(a, b);
  if (rest != 0 && (rest < 0) != (b < 0)) rest += b;
  if (op == "%") return Value(rest);
  return Value(std::floor((a - rest) / b + 0.5));
}

absl::StatusOr<Value> AddTexts(const Text& a, const Text& b) {
  bool is_markup = a.is_markup() || b.is_markup();
  Text out;
  out.Append(is_markup && !a.is_markup() ? EscapeHtml(a) : a);
  out.Append(is_markup && !b.is_markup() ? EscapeHtml(b) : b);
  out.set_markup(is_markup);
  return Value(std::move(out));
}

absl::StatusOr<Value> Add(const Value& a, const Value& b) {
  if (a.text() && b.text()) return AddTexts(*a.text(), *b.text());
  if (a.text()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("can only concatenate str (not \"%s\") to str", b.TypeName()));
  }
  const List *x = a.list(), *y = b.list();
  if (x && (x->kind == ListKind::kList || x->kind == ListKind::kTuple)) {
    if (y == nullptr || y->kind != x->kind) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "can only concatenate %s (not \"%s\") to %s", a.TypeName(), b.TypeName(), a.TypeName()));
    }
    std::vector<Value> items = x->items;
    items.insert(items.end(), y->items.begin(), y->items.end());
    return Value::OfList(std::move(items), x->kind);
  }
  return BadOperands("+", a, b);
}

absl::StatusOr<Value> Repeat(const Value& a, const Value& b) {
  const Value& times = a.is_integral() ? a : b;
  const Value& what = a.is_integral() ? b : a;
  const List* list = what.sequence();
  bool repeats = times.is_integral() && (what.text() || (list && list->kind != ListKind::kRange));
  if (!repeats) return BadOperands("*", a, b);
  Int count = std::max<Int>(times.AsInt(), 0);
  size_t unit = std::max<size_t>(what.HeapBytes(), 1);
  if (count > static_cast<Int>(kMaxTextBytes / unit)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "a value repeated %s times has more than %d bytes", FormatInt(count), kMaxTextBytes));
  }
  if (what.text()) {
    Text out;
    for (Int i = 0; i < count; ++i) out.Append(*what.text());
    out.set_markup(what.text()->is_markup());
    return Value(std::move(out));
  }
  std::vector<Value> items;
  if (list->items.empty()) count = 0;
  for (Int i = 0; i < count; ++i) items.insert(items.end(), list->items.begin(), list->items.end());
  return Value::OfList(std::move(items), list->kind);
}

// The object's type in the words of Jinja2's Undefined.
std::string ObjectName(const Value& object) {
  return object.is_none() ? "None" : absl::StrCat(object.TypeName(), " object");
}

Value UnsafeAttribute(const Value& object, std::string_view name) {
  return Value::OfUndefined(absl::StrFormat("access to attribute '%s' of '%s' object is unsafe.",
                                            std::string(name), object.TypeName()));
}

std::optional<Value> LoopAttribute(const LoopState& loop, std::string_view name) {
  size_t length = loop.items.size();
  if (name == "index") return Value::OfSize(loop.idx + 1);
  if (name == "index0") return Value::OfSize(loop.idx);
  if (name == "revindex") return Value::OfSize(length - loop.idx);
  if (name == "revindex0") return Value::OfSize(length - loop.idx - 1);
  if (name == "first") return Value(loop.idx == 0);
  if (name == "last") return Value(loop.idx + 1 == length);
  if (name == "length") return Value::OfSize(length);
  if (name == "depth") return Value(Int{1});
  if (name == "depth0") return Value(Int{0});
  if (name == "previtem") {
    return loop.idx > 0 ? loop.items[loop.idx - 1]
                        : Value::OfUndefined("there is no previous item");
  }
  if (name == "nextitem") {
    return loop.idx + 1 < length ? loop.items[loop.idx + 1]
                                 : Value::OfUndefined("there is no next item");
  }
  return std::nullopt;
}

// What Python's getattr() gives; nothing for an AttributeError.
absl::StatusOr<std::optional<Value>> PythonAttribute(const Value& object, std::string_view name) {
  if (const Namespace* space = object.as_namespace()) {
    const Value* value = space->Find(name);
    return value ? std::optional<Value>(*value) : std::nullopt;
  }
  if (const LoopState* loop = object.loop()) {
    if (auto value = LoopAttribute(*loop, name)) return value;
  }
  if (IsForbiddenMethod(object, name) || (name.size() > 2 && name.substr(0, 2) == "__")) {
    return std::optional<Value>(UnsafeAttribute(object, name));
  }
  Support support = MethodOf(object, name);
  if (support == Support::kUnknown) return std::optional<Value>();
  if (support == Support::kUnsupported) {
    return absl::UnimplementedError(absl::StrFormat("the attribute %s of a %s is not supported",
                                                    std::string(name), object.TypeName()));
  }
  Callable method;
  method.kind = Callable::Kind::kMethod;
  method.name = std::string(name);
  method.self = object;
  ASSIGN_OR_RETURN(Value value, Value::OfCallable(std::move(method)));
  return std::optional<Value>(std::move(value));
}

// Python's object[key]; nothing for a LookupError or TypeError.
std::optional<Value> PythonItem(const Value& object, const Value& key) {
  if (const Dict* dict = object.dict()) {
    auto found = dict->Find(key);
    if (!found.ok() || *found == nullptr) return std::nullopt;
    return **found;
  }
  if (!key.is_integral()) return std::nullopt;
  Int index = key.AsInt();
  if (const List* list = object.sequence()) {
    Int length = static_cast<Int>(list->items.size());
    if (index < 0) index += length;
    if (index < 0 || index >= length) return std::nullopt;
    return list->items[static_cast<size_t>(index)];
  }
  if (const Text* text = object.text()) {
    std::vector<size_t> offsets = CharOffsets(text->bytes());
    Int length = static_cast<Int>(offsets.size()) - 1;
    if (index < 0) index += length;
    if (index < 0 || index >= length) return std::nullopt;
    size_t at = static_cast<size_t>(index);
    return Value(text->Part(offsets[at], offsets[at + 1]));
  }
  return std::nullopt;
}

// The positions that object[start:stop:step] takes of `length`.
absl::StatusOr<std::vector<size_t>> SlicePositions(size_t length, const Value& start,
                                                   const Value& stop, const Value& step) {
  for (const Value* bound : {&start, &stop, &step}) {
    if (bound->is_undefined()) return absl::InvalidArgumentError(bound->undefined_message());
    if (!bound->is_none() && !bound->is_integral()) {
      return absl::InvalidArgumentError("slice indices must be integers or None");
    }
  }
  Int stride = step.is_none() ? 1 : step.AsInt();
  if (stride == 0) return absl::InvalidArgumentError("slice step cannot be zero");
  Int size = static_cast<Int>(length);
  Int low = stride > 0 ? 0 : -1, high = stride > 0 ? size : size - 1;
  auto bound_at = [&](const Value& bound, Int absent) {
    if (bound.is_none()) return absent;
    Int at = bound.AsInt() < 0 ? bound.AsInt() + size : bound.AsInt();
    return std::clamp(at, low, high);
  };
  Int from = bound_at(start, stride > 0 ? low : high);
  Int to = bound_at(stop, stride > 0 ? high : low);
  stride = std::clamp<Int>(stride, -size - 1, size + 1);
  std::vector<size_t> positions;
  for (Int i = from; stride > 0 ? i < to : i > to; i += stride)
    positions.push_back(static_cast<size_t>(i));
  return positions;
}

}  // namespace

absl::StatusOr<Value> Arithmetic(std::string_view op, const Value& a, const Value& b) {
  for (const Value* v : {&a, &b}) {
    if (v->is_undefined()) return absl::InvalidArgumentError(v->undefined_message());
  }
  if (a.is_integral() && b.is_integral()) return ArithmeticOfInts(op, a.AsInt(), b.AsInt());
  if (a.is_number() && b.is_number()) return ArithmeticOfFloats(op, a.AsDouble(), b.AsDouble());
  if (op == "+") return Add(a, b);
  if (op == "*") return Repeat(a, b);
  if (op == "%" && a.text()) return absl::UnimplementedError("formatting with % is not supported");
  return BadOperands(op, a, b);
}

absl::StatusOr<Value> Slice(const Value& object, const Value& start, const Value& stop,
                            const Value& step) {
  if (object.is_undefined()) return absl::InvalidArgumentError(object.undefined_message());
  if (const Text* text = object.text()) {
    std::vector<size_t> offsets = CharOffsets(text->bytes());
    ASSIGN_OR_RETURN(std::vector<size_t> positions,
                     SlicePositions(offsets.size() - 1, start, stop, step));
    Text out;
    for (size_t at : positions) out.AppendPart(*text, offsets[at], offsets[at + 1]);
    out.set_markup(text->is_markup());
    return Value(std::move(out));
  }
  const List* list = object.sequence();
  if (list == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrFormat("'%s' object is not subscriptable", object.TypeName()));
  }
  ASSIGN_OR_RETURN(std::vector<size_t> positions,
                   SlicePositions(list->items.size(), start, stop, step));
  std::vector<Value> items;
  items.reserve(positions.size());
  for (size_t at : positions) items.push_back(list->items[at]);
  return Value::OfList(std::move(items), list->kind);
}

absl::StatusOr<Value> GetAttr(const Value& object, std::string_view name) {
  if (object.is_undefined()) return absl::InvalidArgumentError(object.undefined_message());
  ASSIGN_OR_RETURN(std::optional<Value> attribute, PythonAttribute(object, name));
  if (attribute) return *std::move(attribute);
  const Value* item = object.dict() ? object.dict()->FindString(name) : nullptr;
  if (item) return *item;
  return Value::OfUndefined(
      absl::StrFormat("'%s' has no attribute '%s'", ObjectName(object), std::string(name)));
}

absl::StatusOr<Value> GetItem(const Value& object, const Value& key) {
  if (object.is_undefined()) return absl::InvalidArgumentError(object.undefined_message());
  if (auto item = PythonItem(object, key)) return *std::move(item);
  if (key.text()) {
    const std::string& name = key.text()->bytes();
    ASSIGN_OR_RETURN(std::optional<Value> attribute, PythonAttribute(object, name));
    if (attribute) return *std::move(attribute);
    return Value::OfUndefined(absl::StrFormat("'%s' has no attribute '%s'", ObjectName(object),
                                              absl::string_view(name).substr(0, 200)));
  }
  Text shown;
  if (!key.list() && !key.dict()) RETURN_IF_ERROR(AppendRepr(key, &shown));
  return Value::OfUndefined(absl::StrCat(ObjectName(object), " has no element ", shown.bytes()));
}

absl::StatusOr<bool> Contains(const Value& container, const Value& item) {
  if (const Text* text = container.text()) {
    if (!item.text()) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "'in <string>' requires string as left operand, not %s", item.TypeName()));
    }
    return text->bytes().find(item.text()->bytes()) != std::string::npos;
  }
  if (const Dict* dict = container.dict()) {
    ASSIGN_OR_RETURN(const Value* found, dict->Find(item));
    return found != nullptr;
  }
  if (container.is_undefined()) return false;
  if (const List* list = container.list()) {
    return std::any_of(list->items.begin(), list->items.end(),
                       [&](const Value& other) { return Equals(item, other); });
  }
  return absl::InvalidArgumentError(
      absl::StrFormat("argument of type '%s' is not iterable", container.TypeName()));
}

absl::StatusOr<size_t> LengthOf(const Value& value) {
  if (value.is_undefined()) return size_t{0};
  if (const Text* text = value.text()) return CountChars(text->bytes());
  if (const Dict* dict = value.dict()) return dict->entries().size();
  if (const LoopState* loop = value.loop()) return loop->items.size();
  const List* list = value.list();
  if (list && list->kind != ListKind::kGenerator) return list->items.size();
  return absl::InvalidArgumentError(
      absl::StrFormat("object of type '%s' has no len()", value.TypeName()));
}

Text EscapeHtml(const Text& text) {
  static constexpr std::string_view kChars = "&<>\"'";
  static constexpr std::string_view kNames[] = {"&amp;", "&lt;", "&gt;", "&#34;", "&#39;"};
  Text out;
  const std::string& bytes = text.bytes();
  size_t plain = 0;
  for (size_t i = 0; i < bytes.size(); ++i) {
    size_t which = kChars.find(bytes[i]);
    if (which == std::string_view::npos) continue;
    out.AppendPart(text, plain, i);
    out.Append(kNames[which], text.OriginAt(i));
    plain = i + 1;
  }
  out.AppendPart(text, plain, bytes.size());
  out.set_markup(true);
  return out;
}

}  // namespace jevons::jinja

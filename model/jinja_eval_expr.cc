// Expressions.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "model/jinja_eval.h"

namespace jevons::jinja {
namespace {

absl::Status UndefinedError(const Value& value) {
  return absl::InvalidArgumentError(value.undefined_message());
}

absl::StatusOr<bool> Holds(std::string_view op, const Value& a, const Value& b) {
  if (op == "==") return Equals(a, b);
  if (op == "!=") return !Equals(a, b);
  if (op == "in") return Contains(b, a);
  if (op == "not in") {
    ASSIGN_OR_RETURN(bool found, Contains(b, a));
    return !found;
  }
  ASSIGN_OR_RETURN(int sign, Compare(a, b, op));
  if (sign == 2) return false;
  if (op == "<") return sign < 0;
  if (op == "<=") return sign <= 0;
  if (op == ">") return sign > 0;
  return sign >= 0;
}

}  // namespace

absl::StatusOr<Value> Evaluator::Eval(const Expr& expr) {
  if (expr.kind == ExprKind::kConst) return expr.constant;
  if (++depth_ > kMaxRunDepth || ++steps_ > kMaxSteps || work_bytes_ > kMaxWorkBytes) {
    absl::Status status = CheckBudget();
    --depth_;
    return status;
  }
  line_ = expr.line;
  auto value = EvalNode(expr);
  --depth_;
  if (!value.ok()) return value;
  if (const Text* text = value->text(); text && text->size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a string has more than ", kMaxTextBytes, " bytes"));
  }
  return value;
}

absl::StatusOr<Value> Evaluator::EvalNode(const Expr& expr) {
  switch (expr.kind) {
    case ExprKind::kConst:
      return expr.constant;
    case ExprKind::kName:
      return EvalName(expr);
    case ExprKind::kList:
    case ExprKind::kTuple: {
      ASSIGN_OR_RETURN(std::vector<Value> items, EvalAll(expr));
      Charge(items.size() * sizeof(Value));
      return Value::OfList(std::move(items),
                           expr.kind == ExprKind::kList ? ListKind::kList : ListKind::kTuple);
    }
    case ExprKind::kDict:
      return EvalDict(expr);
    case ExprKind::kAttr: {
      ASSIGN_OR_RETURN(Value object, Eval(*expr.args[0]));
      return GetAttr(object, expr.name);
    }
    case ExprKind::kIndex:
      return EvalIndex(expr);
    case ExprKind::kSlice:
      return EvalSlice(expr);
    case ExprKind::kCall:
      return EvalCall(expr, nullptr);
    case ExprKind::kFilter:
      return EvalFilter(expr, nullptr);
    case ExprKind::kTest:
      return EvalTest(expr);
    case ExprKind::kNot: {
      ASSIGN_OR_RETURN(Value value, Eval(*expr.args[0]));
      return Value(!value.Truth());
    }
    case ExprKind::kNeg:
    case ExprKind::kPos:
      return EvalSign(expr);
    case ExprKind::kAnd:
    case ExprKind::kOr: {
      ASSIGN_OR_RETURN(Value left, Eval(*expr.args[0]));
      if (left.Truth() == (expr.kind == ExprKind::kOr)) return left;
      return Eval(*expr.args[1]);
    }
    case ExprKind::kConcat:
      return EvalConcat(expr);
    case ExprKind::kBinary:
      return EvalBinary(expr);
    case ExprKind::kCompare:
      return EvalCompare(expr);
    case ExprKind::kCond:
      return EvalCond(expr);
  }
  return Value();
}

absl::StatusOr<Value> Evaluator::EvalIndex(const Expr& expr) {
  ASSIGN_OR_RETURN(Value object, Eval(*expr.args[0]));
  ASSIGN_OR_RETURN(Value key, Eval(*expr.args[1]));
  if (object.text()) Charge(object.text()->size());
  return GetItem(object, key);
}

absl::StatusOr<Value> Evaluator::EvalBinary(const Expr& expr) {
  ASSIGN_OR_RETURN(Value left, Eval(*expr.args[0]));
  ASSIGN_OR_RETURN(Value right, Eval(*expr.args[1]));
  ASSIGN_OR_RETURN(Value result, Arithmetic(expr.name, left, right));
  Charge(result.HeapBytes());
  return result;
}

absl::StatusOr<Value> Evaluator::EvalName(const Expr& expr) {
  if (const Value* value = scope_->Find(expr.name)) return *value;
  if (FunctionSupport(expr.name) == Support::kSupported) {
    Callable callable;
    callable.name = expr.name;
    return Value::OfCallable(std::move(callable));
  }
  return Value::OfUndefined(absl::StrCat("'", expr.name, "' is undefined"));
}

absl::StatusOr<std::vector<Value>> Evaluator::EvalAll(const Expr& expr) {
  std::vector<Value> items;
  items.reserve(expr.args.size());
  for (const ExprPtr& arg : expr.args) {
    ASSIGN_OR_RETURN(Value item, Eval(*arg));
    items.push_back(std::move(item));
  }
  return items;
}

absl::StatusOr<Value> Evaluator::EvalDict(const Expr& expr) {
  std::vector<Entry> entries;
  for (size_t i = 0; i < expr.args.size(); i += 2) {
    ASSIGN_OR_RETURN(Value key, Eval(*expr.args[i]));
    ASSIGN_OR_RETURN(Value value, Eval(*expr.args[i + 1]));
    entries.emplace_back(std::move(key), std::move(value));
  }
  Charge(entries.size() * sizeof(Entry));
  ASSIGN_OR_RETURN(Value::DictPtr dict, Dict::Make(std::move(entries)));
  return Value(std::move(dict));
}

absl::StatusOr<Value> Evaluator::EvalSlice(const Expr& expr) {
  Value parts[4];
  for (size_t i = 0; i < 4; ++i) {
    if (!expr.args[i]) continue;
    ASSIGN_OR_RETURN(parts[i], Eval(*expr.args[i]));
  }
  Charge(parts[0].HeapBytes());
  return Slice(parts[0], parts[1], parts[2], parts[3]);
}

absl::StatusOr<CallArgs> Evaluator::EvalArgs(const Expr& expr) {
  CallArgs args;
  for (const CallArg& arg : expr.call_args) {
    ASSIGN_OR_RETURN(Value value, Eval(*arg.value));
    switch (arg.kind) {
      case ArgKind::kPositional:
        args.positional.push_back(std::move(value));
        break;
      case ArgKind::kNamed:
        args.named.emplace_back(arg.name, std::move(value));
        break;
      case ArgKind::kSpread: {
        ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(value));
        Charge(items.size() * sizeof(Value));
        args.positional.insert(args.positional.end(), items.begin(), items.end());
        break;
      }
      case ArgKind::kSpreadNamed:
        if (!value.dict()) return absl::InvalidArgumentError("argument after ** must be a mapping");
        for (const auto& [key, item] : value.dict()->entries()) {
          if (!key.text()) return absl::InvalidArgumentError("keywords must be strings");
          args.named.emplace_back(key.text()->bytes(), item);
        }
        break;
    }
  }
  return args;
}

absl::StatusOr<Value> Evaluator::EvalCall(const Expr& expr, const Value* caller) {
  ASSIGN_OR_RETURN(Value callee, Eval(*expr.args[0]));
  ASSIGN_OR_RETURN(CallArgs args, EvalArgs(expr));
  if (caller) args.named.emplace_back("caller", *caller);
  line_ = expr.line;
  ASSIGN_OR_RETURN(Value result, Call(callee, std::move(args)));
  Charge(result.HeapBytes());
  return result;
}

absl::StatusOr<Value> Evaluator::Call(const Value& callee, CallArgs args) {
  if (callee.is_undefined()) return UndefinedError(callee);
  const Callable* callable = callee.callable();
  if (callable == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", callee.TypeName(), "' object is not callable"));
  }
  switch (callable->kind) {
    case Callable::Kind::kMacro:
      return CallMacro(*callable, std::move(args));
    case Callable::Kind::kMethod:
      Charge(callable->self.HeapBytes());
      return CallMethod(*this, callable->self, callable->name, std::move(args));
    case Callable::Kind::kFunction:
      break;
  }
  return CallFunction(*this, callable->name, std::move(args));
}

absl::StatusOr<Value> Evaluator::EvalFilter(const Expr& expr, const Value* input) {
  Value value;
  if (expr.args[0] == nullptr) {
    value = *input;
  } else if (input != nullptr) {
    ASSIGN_OR_RETURN(value, EvalFilter(*expr.args[0], input));
  } else {
    ASSIGN_OR_RETURN(value, Eval(*expr.args[0]));
  }
  ASSIGN_OR_RETURN(CallArgs args, EvalArgs(expr));
  line_ = expr.line;
  Charge(value.HeapBytes());
  ASSIGN_OR_RETURN(Value result, CallFilter(*this, expr.name, value, std::move(args)));
  Charge(result.HeapBytes());
  return result;
}

absl::StatusOr<Value> Evaluator::EvalTest(const Expr& expr) {
  ASSIGN_OR_RETURN(Value value, Eval(*expr.args[0]));
  ASSIGN_OR_RETURN(CallArgs args, EvalArgs(expr));
  ASSIGN_OR_RETURN(bool holds, CallTest(*this, expr.name, value, std::move(args)));
  return Value(holds);
}

absl::StatusOr<Value> Evaluator::EvalConcat(const Expr& expr) {
  Text out;
  for (const ExprPtr& arg : expr.args) {
    ASSIGN_OR_RETURN(Value value, Eval(*arg));
    if (value.text()) {
      out.Append(*value.text());
    } else if (!value.is_undefined()) {
      RETURN_IF_ERROR(AppendRepr(value, &out));
    }
  }
  Charge(out.size());
  return Value(std::move(out));
}

absl::StatusOr<Value> Evaluator::EvalCompare(const Expr& expr) {
  ASSIGN_OR_RETURN(Value left, Eval(*expr.args[0]));
  for (size_t i = 0; i < expr.names.size(); ++i) {
    ASSIGN_OR_RETURN(Value right, Eval(*expr.args[i + 1]));
    Charge(std::min(left.HeapBytes(), right.HeapBytes()));
    if (expr.names[i] == "in" || expr.names[i] == "not in") Charge(right.HeapBytes());
    ASSIGN_OR_RETURN(bool holds, Holds(expr.names[i], left, right));
    if (!holds) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

absl::StatusOr<Value> Evaluator::EvalCond(const Expr& expr) {
  ASSIGN_OR_RETURN(Value condition, Eval(*expr.args[1]));
  if (condition.Truth()) return Eval(*expr.args[0]);
  if (expr.args[2]) return Eval(*expr.args[2]);
  return Value::OfUndefined(
      "the inline if-expression evaluated to false and no else section was defined.");
}

absl::StatusOr<Value> Evaluator::EvalSign(const Expr& expr) {
  ASSIGN_OR_RETURN(Value value, Eval(*expr.args[0]));
  if (value.is_undefined()) return UndefinedError(value);
  if (!value.is_number()) {
    return absl::InvalidArgumentError(absl::StrFormat("bad operand type for unary %s: '%s'",
                                                      expr.kind == ExprKind::kNeg ? "-" : "+",
                                                      value.TypeName()));
  }
  bool negates = expr.kind == ExprKind::kNeg;
  if (value.is_float()) return Value(negates ? -value.AsDouble() : value.AsDouble());
  return Arithmetic(negates ? "-" : "+", Value(Int{0}), value);
}

}  // namespace jevons::jinja

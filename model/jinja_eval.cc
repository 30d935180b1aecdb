#include "model/jinja_eval.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace jevons::jinja {
namespace {

// What a scope or namespace that stays until the end of the rendering counts for.
constexpr size_t kKeptObjectBytes = 1024;
constexpr size_t kMaxErrorBytes = 800;

}  // namespace

const Value* Scope::Find(std::string_view name) const {
  for (const Scope* scope = this; scope != nullptr; scope = scope->parent) {
    for (const auto& [key, value] : scope->vars) {
      if (key == name) return &value;
    }
  }
  return nullptr;
}

void Scope::Set(const std::string& name, Value value) {
  for (auto& [key, old] : vars) {
    if (key != name) continue;
    old = std::move(value);
    return;
  }
  vars.emplace_back(name, std::move(value));
}

class Evaluator::DepthGuard {
 public:
  explicit DepthGuard(Evaluator* eval, int levels = 1) : eval_(eval), levels_(levels) {
    eval_->depth_ += levels_;
  }
  ~DepthGuard() { eval_->depth_ -= levels_; }

 private:
  Evaluator* eval_;
  int levels_;
};

// A scope for as long as the guard lives, and for as long as the rendering where a macro needs it.
class Evaluator::ScopeGuard {
 public:
  ScopeGuard(Evaluator* eval, Scope* parent)
      : eval_(eval), before_(eval->scope_), scope_(std::make_unique<Scope>(parent)) {
    eval_->scope_ = scope_.get();
  }
  ~ScopeGuard() {
    eval_->scope_ = before_;
    if (!scope_->is_captured) return;
    eval_->captured_.push_back(std::move(scope_));
    eval_->Charge(kKeptObjectBytes);
  }

 private:
  Evaluator* eval_;
  Scope* before_;
  std::unique_ptr<Scope> scope_;
};

Evaluator::Evaluator(std::vector<std::pair<std::string, Value>> variables,
                     std::function<std::tm()> now)
    : now_(std::move(now)) {
  root_.vars = std::move(variables);
}

absl::StatusOr<Text> Evaluator::Run(const Body& body) {
  Text out;
  out_ = &out;
  auto flow = ExecBody(body);
  if (flow.ok()) return out;
  std::string what(flow.status().message());
  if (what.size() > kMaxErrorBytes) {
    size_t end = kMaxErrorBytes;
    while (end > 0 && (static_cast<unsigned char>(what[end]) & 0xC0) == 0x80) --end;
    what = what.substr(0, end) + "...";
  }
  return absl::Status(flow.status().code(),
                      absl::StrFormat("chat template line %d: %s", line_, what));
}

Namespace* Evaluator::NewNamespace() {
  Charge(kKeptObjectBytes);
  namespaces_.push_back(std::make_unique<Namespace>());
  return namespaces_.back().get();
}

absl::Status Evaluator::CheckBudget() const {
  if (steps_ > kMaxSteps) {
    return absl::InvalidArgumentError(
        absl::StrCat("the rendering takes more than ", kMaxSteps, " steps"));
  }
  if (work_bytes_ > kMaxWorkBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the rendering makes more than ", kMaxWorkBytes, " bytes of strings"));
  }
  if (depth_ > kMaxRunDepth) {
    return absl::InvalidArgumentError(
        absl::StrCat("the rendering nests deeper than ", kMaxRunDepth, " levels"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Evaluator::Flow> Evaluator::ExecBody(const Body& body) {
  for (const auto& stmt : body) {
    ASSIGN_OR_RETURN(Flow flow, Exec(*stmt));
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

absl::StatusOr<Evaluator::Flow> Evaluator::Exec(const Stmt& stmt) {
  DepthGuard guard(this);
  ++steps_;
  line_ = stmt.line;
  RETURN_IF_ERROR(CheckBudget());
  switch (stmt.kind) {
    case StmtKind::kIf:
      return ExecIf(stmt);
    case StmtKind::kFor:
      return ExecFor(stmt);
    case StmtKind::kWith:
    case StmtKind::kScope:
      return ExecWith(stmt);
    case StmtKind::kBreak:
      return Flow::kBreak;
    case StmtKind::kContinue:
      return Flow::kContinue;
    case StmtKind::kText:
      out_->Append(stmt.text);
      Charge(stmt.text.size());
      return Flow::kNext;
    case StmtKind::kPrint:
      RETURN_IF_ERROR(ExecPrint(stmt));
      return Flow::kNext;
    case StmtKind::kSet:
    case StmtKind::kSetBlock:
      RETURN_IF_ERROR(ExecSet(stmt));
      return Flow::kNext;
    case StmtKind::kMacro: {
      ASSIGN_OR_RETURN(Value macro, DefineMacro(*stmt.macro));
      scope_->Set(stmt.macro->name, std::move(macro));
      return Flow::kNext;
    }
    case StmtKind::kCall:
      RETURN_IF_ERROR(ExecCallBlock(stmt));
      return Flow::kNext;
    case StmtKind::kFilter: {
      ASSIGN_OR_RETURN(Text inner, Capture(stmt.body));
      Value input(std::move(inner));
      ASSIGN_OR_RETURN(Value value, EvalFilter(*stmt.expr, &input));
      RETURN_IF_ERROR(Emit(value));
      return Flow::kNext;
    }
  }
  return Flow::kNext;
}

absl::Status Evaluator::Emit(const Value& value) {
  size_t before = out_->size();
  if (const Text* text = value.text()) {
    out_->Append(*text);
  } else if (!value.is_undefined()) {
    RETURN_IF_ERROR(AppendRepr(value, out_));
  }
  Charge(out_->size() - before);
  if (out_->size() <= kMaxTextBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the rendered text has more than ", kMaxTextBytes, " bytes"));
}

absl::Status Evaluator::ExecPrint(const Stmt& stmt) {
  ASSIGN_OR_RETURN(Value value, Eval(*stmt.expr));
  return Emit(value);
}

absl::StatusOr<Evaluator::Flow> Evaluator::ExecIf(const Stmt& stmt) {
  for (const Branch& branch : stmt.branches) {
    if (branch.condition) {
      ASSIGN_OR_RETURN(Value condition, Eval(*branch.condition));
      if (!condition.Truth()) continue;
    }
    return ExecBody(branch.body);
  }
  return Flow::kNext;
}

absl::StatusOr<std::vector<Value>> Evaluator::LoopItems(const Stmt& stmt) {
  ASSIGN_OR_RETURN(Value value, Eval(*stmt.expr));
  ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(value));
  Charge(items.size() * sizeof(Value));
  if (!stmt.condition) return items;
  std::vector<Value> kept;
  for (Value& item : items) {
    ScopeGuard scope(this, scope_);
    RETURN_IF_ERROR(Assign(stmt.target, item));
    ASSIGN_OR_RETURN(Value keeps, Eval(*stmt.condition));
    if (keeps.Truth()) kept.push_back(std::move(item));
  }
  return kept;
}

absl::StatusOr<Evaluator::Flow> Evaluator::ExecFor(const Stmt& stmt) {
  auto loop = std::make_shared<LoopState>();
  ASSIGN_OR_RETURN(loop->items, LoopItems(stmt));
  size_t num_items = loop->items.size();
  for (size_t i = 0; i < num_items; ++i) {
    ScopeGuard scope(this, scope_);
    loop->idx = i;
    scope_->Set("loop", Value(Value::LoopPtr(loop)));
    RETURN_IF_ERROR(Assign(stmt.target, loop->items[i]));
    ASSIGN_OR_RETURN(Flow flow, ExecBody(stmt.body));
    if (flow == Flow::kBreak) break;
  }
  if (num_items > 0 || stmt.orelse.empty()) return Flow::kNext;
  ScopeGuard scope(this, scope_);
  return ExecBody(stmt.orelse);
}

absl::StatusOr<Evaluator::Flow> Evaluator::ExecWith(const Stmt& stmt) {
  std::vector<Value> values;
  for (const Binding& binding : stmt.bindings) {
    ASSIGN_OR_RETURN(Value value, Eval(*binding.value));
    values.push_back(std::move(value));
  }
  ScopeGuard scope(this, scope_);
  for (size_t i = 0; i < values.size(); ++i) {
    RETURN_IF_ERROR(Assign(stmt.bindings[i].target, std::move(values[i])));
  }
  return ExecBody(stmt.body);
}

absl::StatusOr<Text> Evaluator::Capture(const Body& body) {
  ScopeGuard scope(this, scope_);
  Text inner;
  Text* outer = std::exchange(out_, &inner);
  auto flow = ExecBody(body);
  out_ = outer;
  RETURN_IF_ERROR(flow.status());
  return inner;
}

absl::Status Evaluator::ExecSet(const Stmt& stmt) {
  Value value;
  if (stmt.kind == StmtKind::kSet) {
    ASSIGN_OR_RETURN(value, Eval(*stmt.expr));
  } else {
    ASSIGN_OR_RETURN(Text inner, Capture(stmt.body));
    value = Value(std::move(inner));
    if (stmt.expr) {
      ASSIGN_OR_RETURN(value, EvalFilter(*stmt.expr, &value));
    }
  }
  return Assign(stmt.target, std::move(value));
}

absl::Status Evaluator::Assign(const Target& target, Value value) {
  if (!target.items.empty()) {
    ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(value));
    if (items.size() != target.items.size()) {
      return absl::InvalidArgumentError(
          absl::StrFormat("unpacking needs %d values, got %d", target.items.size(), items.size()));
    }
    for (size_t i = 0; i < items.size(); ++i) {
      RETURN_IF_ERROR(Assign(target.items[i], std::move(items[i])));
    }
    return absl::OkStatus();
  }
  if (target.attribute.empty()) {
    scope_->Set(target.name, std::move(value));
    return absl::OkStatus();
  }
  const Value* object = scope_->Find(target.name);
  if (object == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("'", target.name, "' is undefined"));
  }
  Namespace* space = object->as_namespace();
  if (space == nullptr) {
    return absl::InvalidArgumentError("cannot assign attribute on non-namespace object");
  }
  space->Set(target.attribute, std::move(value));
  return absl::OkStatus();
}

absl::StatusOr<Value> Evaluator::DefineMacro(const MacroStmt& macro) {
  for (Scope* scope = scope_; scope != nullptr; scope = scope->parent) scope->is_captured = true;
  Callable callable;
  callable.kind = Callable::Kind::kMacro;
  callable.name = macro.name;
  callable.macro = &macro;
  callable.scope = scope_;
  return Value::OfCallable(std::move(callable));
}

absl::Status Evaluator::ExecCallBlock(const Stmt& stmt) {
  ASSIGN_OR_RETURN(Value caller, DefineMacro(*stmt.macro));
  ASSIGN_OR_RETURN(Value value, EvalCall(*stmt.expr, &caller));
  return Emit(value);
}

absl::Status Evaluator::BindMacroArgs(const MacroStmt& macro, CallArgs args) {
  size_t num_params = macro.params.size();
  auto take_named = [&](std::string_view name) -> std::optional<Value> {
    auto it = std::find_if(args.named.begin(), args.named.end(),
                           [&](const auto& named) { return named.first == name; });
    if (it == args.named.end()) return std::nullopt;
    Value value = std::move(it->second);
    args.named.erase(it);
    return value;
  };
  for (size_t i = 0; i < num_params; ++i) {
    const MacroParam& param = macro.params[i];
    std::optional<Value> given;
    if (i < args.positional.size()) {
      given = args.positional[i];
    } else {
      given = take_named(param.name);
    }
    if (!given && param.default_value) {
      ASSIGN_OR_RETURN(given, Eval(*param.default_value));
    }
    if (!given)
      given = Value::OfUndefined(absl::StrCat("parameter '", param.name, "' was not provided"));
    scope_->Set(param.name, *std::move(given));
  }
  if (macro.uses_caller &&
      scope_->vars.end() == std::find_if(scope_->vars.begin(), scope_->vars.end(),
                                         [](auto& v) { return v.first == "caller"; })) {
    auto caller = take_named("caller");
    scope_->Set("caller", caller ? *std::move(caller) : Value::OfUndefined("No caller defined"));
  }
  std::vector<Value> rest;
  for (size_t i = num_params; i < args.positional.size(); ++i) rest.push_back(args.positional[i]);
  if (!rest.empty() && !macro.uses_varargs) {
    return absl::InvalidArgumentError(
        absl::StrFormat("macro '%s' takes not more than %d argument(s)", macro.name, num_params));
  }
  if (!args.named.empty() && !macro.uses_kwargs) {
    return absl::InvalidArgumentError(absl::StrFormat("macro '%s' takes no keyword argument '%s'",
                                                      macro.name, args.named[0].first));
  }
  if (macro.uses_varargs) {
    ASSIGN_OR_RETURN(Value varargs, Value::OfList(std::move(rest), ListKind::kTuple));
    scope_->Set("varargs", std::move(varargs));
  }
  if (macro.uses_kwargs) {
    std::vector<Entry> entries;
    for (auto& [name, value] : args.named)
      entries.emplace_back(Value::OfString(name), std::move(value));
    ASSIGN_OR_RETURN(Value::DictPtr kwargs, Dict::Make(std::move(entries)));
    scope_->Set("kwargs", Value(std::move(kwargs)));
  }
  return absl::OkStatus();
}

absl::StatusOr<Value> Evaluator::CallMacro(const Callable& callable, CallArgs args) {
  DepthGuard guard(this, kMacroCallDepth);
  RETURN_IF_ERROR(CheckBudget());
  ScopeGuard scope(this, callable.scope);
  int line = line_;
  RETURN_IF_ERROR(BindMacroArgs(*callable.macro, std::move(args)));
  Text inner;
  Text* outer = std::exchange(out_, &inner);
  auto flow = ExecBody(callable.macro->body);
  out_ = outer;
  RETURN_IF_ERROR(flow.status());
  line_ = line;
  return Value(std::move(inner));
}

}  // namespace jevons::jinja

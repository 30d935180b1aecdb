// Runs a parsed template.
#pragma once

#include <ctime>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "model/jinja_ast.h"
#include "model/jinja_builtins.h"
#include "model/jinja_value.h"

namespace jevons::jinja {

// What one rendering may use: a template or a value that needs more is refused with the limit.
// Nodes of the tree that are run.
inline constexpr size_t kMaxSteps = 20'000'000;
// All strings and lists that are made on the way.
inline constexpr size_t kMaxWorkBytes = size_t{1} << 30;
// One string, the output among them.
inline constexpr size_t kMaxTextBytes = size_t{64} << 20;
// Nodes inside of nodes, a macro call counting for several: about 1 MB of stack, several under
// AddressSanitizer.
inline constexpr int kMaxRunDepth = 1000;
inline constexpr int kMacroCallDepth = 4;
// Numbers of one range(), as in Jinja2's sandbox.
inline constexpr Int kMaxRange = 100'000;

// Variables of the template, a macro call, or one turn of a loop.
struct Scope {
  explicit Scope(Scope* enclosing) : parent(enclosing) {}

  Scope* parent;
  std::vector<std::pair<std::string, Value>> vars;
  bool is_captured = false;  // by a macro that was defined in it or further in

  const Value* Find(std::string_view name) const;
  void Set(const std::string& name, Value value);
};

// One rendering. Thread-compatible, used once.
class Evaluator {
 public:
  Evaluator(std::vector<std::pair<std::string, Value>> variables, std::function<std::tm()> now);

  // Errors name the line.
  absl::StatusOr<Text> Run(const Body& body);

  // For builtins.
  absl::StatusOr<Value> Call(const Value& callee, CallArgs args);
  // Counts work; running out of it ends the rendering at the next node.
  void Charge(size_t num_bytes) { work_bytes_ += num_bytes; }
  Namespace* NewNamespace();
  std::tm Now() const { return now_(); }

 private:
  enum class Flow : uint8_t { kNext, kBreak, kContinue };
  class DepthGuard;
  class ScopeGuard;

  absl::Status CheckBudget() const;

  // Statements: jinja_eval.cc.
  absl::StatusOr<Flow> ExecBody(const Body& body);
  absl::StatusOr<Flow> Exec(const Stmt& stmt);
  absl::StatusOr<Flow> ExecIf(const Stmt& stmt);
  absl::StatusOr<Flow> ExecFor(const Stmt& stmt);
  absl::StatusOr<std::vector<Value>> LoopItems(const Stmt& stmt);
  absl::Status ExecPrint(const Stmt& stmt);
  absl::Status ExecSet(const Stmt& stmt);
  absl::Status ExecCallBlock(const Stmt& stmt);
  absl::StatusOr<Flow> ExecWith(const Stmt& stmt);
  absl::Status Assign(const Target& target, Value value);
  absl::Status Emit(const Value& value);
  // Runs `body` in a scope of its own and returns what it printed.
  absl::StatusOr<Text> Capture(const Body& body);
  absl::StatusOr<Value> DefineMacro(const MacroStmt& macro);
  absl::StatusOr<Value> CallMacro(const Callable& callable, CallArgs args);
  absl::Status BindMacroArgs(const MacroStmt& macro, CallArgs args);

  // Expressions: jinja_eval_expr.cc.
  absl::StatusOr<Value> Eval(const Expr& expr);
  absl::StatusOr<Value> EvalNode(const Expr& expr);
  absl::StatusOr<Value> EvalIndex(const Expr& expr);
  absl::StatusOr<Value> EvalBinary(const Expr& expr);
  absl::StatusOr<Value> EvalName(const Expr& expr);
  absl::StatusOr<std::vector<Value>> EvalAll(const Expr& expr);
  absl::StatusOr<Value> EvalDict(const Expr& expr);
  absl::StatusOr<Value> EvalSlice(const Expr& expr);
  absl::StatusOr<Value> EvalCall(const Expr& expr, const Value* caller);
  absl::StatusOr<Value> EvalFilter(const Expr& expr, const Value* input);
  absl::StatusOr<Value> EvalTest(const Expr& expr);
  absl::StatusOr<Value> EvalConcat(const Expr& expr);
  absl::StatusOr<Value> EvalCompare(const Expr& expr);
  absl::StatusOr<Value> EvalCond(const Expr& expr);
  absl::StatusOr<Value> EvalSign(const Expr& expr);
  absl::StatusOr<CallArgs> EvalArgs(const Expr& expr);

  std::function<std::tm()> now_;
  Scope root_{nullptr};
  Scope* scope_ = &root_;
  Text* out_ = nullptr;
  int line_ = 1;
  int depth_ = 0;
  size_t steps_ = 0;
  size_t work_bytes_ = 0;
  std::vector<std::unique_ptr<Namespace>> namespaces_;
  std::vector<std::unique_ptr<Scope>> captured_;
};

// a op b for + - * / // % **.
absl::StatusOr<Value> Arithmetic(std::string_view op, const Value& a, const Value& b);
// object[start:stop:step]; none where a bound is not given.
absl::StatusOr<Value> Slice(const Value& object, const Value& start, const Value& stop,
                            const Value& step);

}  // namespace jevons::jinja

// From tokens to the tree of a template.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "model/jinja_ast.h"
#include "model/jinja_builtins.h"
#include "model/jinja_lexer.h"

namespace jevons::jinja {

inline constexpr int kMaxExprDepth = 150;      // levels of one expression's tree
inline constexpr int kMaxStatementDepth = 50;  // tags inside of tags
inline constexpr size_t kMaxTemplateBytes = size_t{4} << 20;

// INVALID_ARGUMENT for what is not a template, UNIMPLEMENTED for what Jinja2 knows and we do not;
// both name the line.
absl::StatusOr<Body> ParseTemplate(std::string_view source);

// Recursive descent over the tokens of one template. Thread-compatible.
class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  absl::StatusOr<Body> Run();

 private:
  // Statements: jinja_parser.cc.
  absl::StatusOr<Body> ParseBody(std::initializer_list<std::string_view> ends);
  absl::Status ParseTag(Body* body);
  absl::StatusOr<std::unique_ptr<Stmt>> ParseStatement();
  absl::Status ParseIf(Stmt* stmt);
  absl::Status ParseFor(Stmt* stmt);
  absl::Status ParseSet(Stmt* stmt);
  absl::Status ParseMacro(Stmt* stmt);
  absl::Status ParseCallBlock(Stmt* stmt);
  absl::Status ParseFilterBlock(Stmt* stmt);
  absl::Status ParseWith(Stmt* stmt);
  absl::Status ParseScope(Stmt* stmt);
  absl::Status ParseLoopControl(Stmt* stmt);
  absl::StatusOr<Target> ParseTarget(bool allow_namespace);
  absl::StatusOr<Target> ParseOneTarget(bool allow_namespace);
  absl::Status ParseParams(MacroStmt* macro);
  absl::StatusOr<Body> ParseInnerBody(std::string_view end);
  absl::Status CheckFreeNames() const;

  // Expressions: jinja_parser_expr.cc.
  absl::StatusOr<ExprPtr> ParseTuple(bool allow_condition);
  absl::StatusOr<ExprPtr> ParseExpression();
  absl::StatusOr<ExprPtr> ParseCondition();
  absl::StatusOr<ExprPtr> ParseOr();
  absl::StatusOr<ExprPtr> ParseAnd();
  absl::StatusOr<ExprPtr> ParseNot();
  absl::StatusOr<ExprPtr> ParseCompare();
  absl::StatusOr<ExprPtr> ParseBinary(int level);
  absl::StatusOr<ExprPtr> ParseUnary(bool with_filters);
  absl::StatusOr<ExprPtr> ParsePrimary();
  absl::StatusOr<ExprPtr> ParseName();
  absl::StatusOr<ExprPtr> ParseString();
  absl::StatusOr<ExprPtr> ParseNumber();
  absl::StatusOr<ExprPtr> ParseParens();
  absl::StatusOr<ExprPtr> ParseListLiteral();
  absl::StatusOr<ExprPtr> ParseDictLiteral();
  absl::StatusOr<ExprPtr> ParsePostfix(ExprPtr node);
  absl::StatusOr<ExprPtr> ParseFilters(ExprPtr node);
  absl::StatusOr<ExprPtr> ParseFilter(ExprPtr node);
  absl::StatusOr<ExprPtr> ParseTest(ExprPtr node);
  absl::StatusOr<ExprPtr> ParseAttribute(ExprPtr node);
  absl::StatusOr<ExprPtr> ParseSubscript(ExprPtr node);
  absl::StatusOr<ExprPtr> ParseOneSubscript(ExprPtr node);
  absl::StatusOr<ExprPtr> ParseCall(ExprPtr node);
  absl::Status ParseCallArgs(std::vector<CallArg>* args);
  absl::Status CheckBuiltin(Support support, std::string_view what, int line);
  absl::Status CheckFilter(const std::string& name, int line);
  absl::Status CheckTest(const std::string& name, int line);
  // Filters and tests that `map`, `select` and the like are given by name.
  absl::Status CheckNamedBuiltins(const Expr& filter);

  // Tokens.
  const Token& Peek() const { return tokens_[next_]; }
  const Token& PeekSecond() const { return tokens_[std::min(next_ + 1, tokens_.size() - 1)]; }
  Token Take();
  bool AtOperator(std::string_view op) const;
  bool AtName(std::string_view name) const;
  bool TakeOperator(std::string_view op);
  bool TakeName(std::string_view name);
  absl::Status ExpectOperator(std::string_view op);
  absl::StatusOr<std::string> ExpectName();
  absl::Status ExpectBlockEnd();

  absl::Status Fail(std::string_view what) const;
  absl::Status Unsupported(std::string_view what, int line) const;
  ExprPtr Make(ExprKind kind) const;
  // Appends children to `node`; fails where the tree becomes too deep.
  absl::Status Adopt(Expr* node, ExprPtr child) const;

  std::vector<Token> tokens_;
  size_t next_ = 0;
  int expr_nesting_ = 0;
  int statement_nesting_ = 0;
  int loop_nesting_ = 0;
  // Jinja2 lets a filter or test that nobody has be where it may not run. Those that always run are
  // in `unknown_`.
  int conditional_nesting_ = 0;
  std::vector<absl::Status> unknown_;
  std::vector<MacroStmt*> macros_;
  std::vector<std::pair<std::string, int>> loaded_;  // names read, with line
  std::vector<std::string> assigned_;
};

}  // namespace jevons::jinja

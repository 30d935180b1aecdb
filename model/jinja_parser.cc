#include "model/jinja_parser.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace jevons::jinja {

absl::StatusOr<Body> ParseTemplate(std::string_view source) {
  if (source.size() > kMaxTemplateBytes) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "chat template: %d bytes, at most %d are allowed", source.size(), kMaxTemplateBytes));
  }
  ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(source));
  return Parser(std::move(tokens)).Run();
}

absl::StatusOr<Body> Parser::Run() {
  ASSIGN_OR_RETURN(Body body, ParseBody({}));
  if (!unknown_.empty()) return unknown_[0];
  RETURN_IF_ERROR(CheckFreeNames());
  return body;
}

absl::Status Parser::CheckFreeNames() const {
  for (const auto& [name, line] : loaded_) {
    if (FunctionSupport(name) != Support::kUnsupported) continue;
    if (std::find(assigned_.begin(), assigned_.end(), name) != assigned_.end()) continue;
    return Unsupported(absl::StrCat("the function ", name), line);
  }
  return absl::OkStatus();
}

Token Parser::Take() {
  Token token = tokens_[next_];
  if (next_ + 1 < tokens_.size()) ++next_;
  return token;
}

bool Parser::AtOperator(std::string_view op) const {
  return Peek().kind == TokenKind::kOperator && Peek().text == op;
}

bool Parser::AtName(std::string_view name) const {
  return Peek().kind == TokenKind::kName && Peek().text == name;
}

bool Parser::TakeOperator(std::string_view op) {
  bool found = AtOperator(op);
  if (found) Take();
  return found;
}

bool Parser::TakeName(std::string_view name) {
  bool found = AtName(name);
  if (found) Take();
  return found;
}

absl::Status Parser::ExpectOperator(std::string_view op) {
  if (TakeOperator(op)) return absl::OkStatus();
  return Fail(absl::StrCat("expected '", std::string(op), "'"));
}

absl::StatusOr<std::string> Parser::ExpectName() {
  if (Peek().kind != TokenKind::kName) return Fail("expected a name");
  return Take().text;
}

absl::Status Parser::ExpectBlockEnd() {
  if (Peek().kind != TokenKind::kBlockEnd) return Fail("expected the end of the tag");
  Take();
  return absl::OkStatus();
}

absl::Status Parser::Fail(std::string_view what) const {
  const Token& token = Peek();
  std::string found = token.kind == TokenKind::kEnd          ? "the end of the template"
                      : token.kind == TokenKind::kBlockEnd   ? "'%}'"
                      : token.kind == TokenKind::kPrintEnd   ? "'}}'"
                      : token.kind == TokenKind::kData       ? "text"
                      : token.kind == TokenKind::kPrintBegin ? "'{{'"
                                                             : absl::StrCat("'", token.text, "'");
  return absl::InvalidArgumentError(
      absl::StrFormat("chat template line %d: %s, found %s", token.line, std::string(what), found));
}

absl::Status Parser::Unsupported(std::string_view what, int line) const {
  return absl::UnimplementedError(
      absl::StrFormat("chat template line %d: %s is not supported", line, std::string(what)));
}

absl::StatusOr<Body> Parser::ParseBody(std::initializer_list<std::string_view> ends) {
  Body body;
  while (Peek().kind != TokenKind::kEnd) {
    if (Peek().kind == TokenKind::kBlockBegin && PeekSecond().kind == TokenKind::kName &&
        std::find(ends.begin(), ends.end(), PeekSecond().text) != ends.end()) {
      Take();
      return body;
    }
    RETURN_IF_ERROR(ParseTag(&body));
  }
  if (ends.size() > 0) {
    return Fail(absl::StrCat("expected {% ", std::string(*(ends.end() - 1)), " %}"));
  }
  return body;
}

absl::Status Parser::ParseTag(Body* body) {
  auto stmt = std::make_unique<Stmt>();
  stmt->line = Peek().line;
  Token token = Take();
  if (token.kind == TokenKind::kData) {
    stmt->kind = StmtKind::kText;
    stmt->text = Text(std::move(token.text));
  } else if (token.kind == TokenKind::kPrintBegin) {
    stmt->kind = StmtKind::kPrint;
    ASSIGN_OR_RETURN(stmt->expr, ParseTuple(true));
    if (Peek().kind != TokenKind::kPrintEnd) return Fail("expected '}}'");
    Take();
  } else {
    if (statement_nesting_ >= kMaxStatementDepth) {
      return Fail(absl::StrCat("tags nest deeper than ", kMaxStatementDepth, " levels"));
    }
    ++statement_nesting_;
    ASSIGN_OR_RETURN(stmt, ParseStatement());
    --statement_nesting_;
  }
  body->push_back(std::move(stmt));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Stmt>> Parser::ParseStatement() {
  using Method = absl::Status (Parser::*)(Stmt*);
  static constexpr std::pair<std::string_view, Method> kStatements[] = {
      {"if", &Parser::ParseIf},
      {"for", &Parser::ParseFor},
      {"set", &Parser::ParseSet},
      {"macro", &Parser::ParseMacro},
      {"call", &Parser::ParseCallBlock},
      {"filter", &Parser::ParseFilterBlock},
      {"with", &Parser::ParseWith},
      {"generation", &Parser::ParseScope},
      {"break", &Parser::ParseLoopControl},
      {"continue", &Parser::ParseLoopControl}};
  auto stmt = std::make_unique<Stmt>();
  stmt->line = Peek().line;
  if (Peek().kind != TokenKind::kName) return Fail("expected the name of a tag");
  for (const auto& [name, method] : kStatements) {
    if (!AtName(name)) continue;
    RETURN_IF_ERROR((this->*method)(stmt.get()));
    return stmt;
  }
  return Unsupported(absl::StrCat("the tag ", Peek().text), stmt->line);
}

absl::Status Parser::ParseIf(Stmt* stmt) {
  stmt->kind = StmtKind::kIf;
  ++conditional_nesting_;
  while (true) {
    Branch branch;
    bool is_else = AtName("else");
    Take();
    if (!is_else) {
      ASSIGN_OR_RETURN(branch.condition, ParseTuple(false));
    }
    RETURN_IF_ERROR(ExpectBlockEnd());
    if (is_else) {
      ASSIGN_OR_RETURN(branch.body, ParseBody({"endif"}));
    } else {
      ASSIGN_OR_RETURN(branch.body, ParseBody({"elif", "else", "endif"}));
    }
    stmt->branches.push_back(std::move(branch));
    if (TakeName("endif")) break;
  }
  --conditional_nesting_;
  return ExpectBlockEnd();
}

absl::Status Parser::ParseFor(Stmt* stmt) {
  stmt->kind = StmtKind::kFor;
  Take();
  ASSIGN_OR_RETURN(stmt->target, ParseTarget(false));
  if (!TakeName("in")) return Fail("expected 'in'");
  ASSIGN_OR_RETURN(stmt->expr, ParseTuple(false));
  if (TakeName("if")) {
    ASSIGN_OR_RETURN(stmt->condition, ParseExpression());
  }
  if (AtName("recursive")) return Unsupported("a recursive for", Peek().line);
  RETURN_IF_ERROR(ExpectBlockEnd());
  ++loop_nesting_;
  ASSIGN_OR_RETURN(stmt->body, ParseBody({"else", "endfor"}));
  --loop_nesting_;
  if (TakeName("else")) {
    RETURN_IF_ERROR(ExpectBlockEnd());
    ASSIGN_OR_RETURN(stmt->orelse, ParseBody({"endfor"}));
  }
  Take();
  return ExpectBlockEnd();
}

// A body that is not part of the loop around it, with its end tag.
absl::StatusOr<Body> Parser::ParseInnerBody(std::string_view end) {
  RETURN_IF_ERROR(ExpectBlockEnd());
  int loop_nesting = std::exchange(loop_nesting_, 0);
  ASSIGN_OR_RETURN(Body body, ParseBody({end}));
  loop_nesting_ = loop_nesting;
  Take();
  RETURN_IF_ERROR(ExpectBlockEnd());
  return body;
}

absl::Status Parser::ParseSet(Stmt* stmt) {
  Take();
  ASSIGN_OR_RETURN(stmt->target, ParseTarget(true));
  if (TakeOperator("=")) {
    stmt->kind = StmtKind::kSet;
    ASSIGN_OR_RETURN(stmt->expr, ParseTuple(true));
    return ExpectBlockEnd();
  }
  stmt->kind = StmtKind::kSetBlock;
  while (TakeOperator("|")) {
    ASSIGN_OR_RETURN(stmt->expr, ParseFilter(std::move(stmt->expr)));
  }
  ASSIGN_OR_RETURN(stmt->body, ParseInnerBody("endset"));
  return absl::OkStatus();
}

absl::Status Parser::ParseParams(MacroStmt* macro) {
  RETURN_IF_ERROR(ExpectOperator("("));
  while (!AtOperator(")")) {
    if (!macro->params.empty()) RETURN_IF_ERROR(ExpectOperator(","));
    if (AtOperator(")")) break;
    MacroParam param;
    ASSIGN_OR_RETURN(param.name, ExpectName());
    assigned_.push_back(param.name);
    if (TakeOperator("=")) {
      ASSIGN_OR_RETURN(param.default_value, ParseExpression());
    } else if (!macro->params.empty() && macro->params.back().default_value) {
      return Fail("a parameter without default follows one with default");
    }
    macro->params.push_back(std::move(param));
  }
  return ExpectOperator(")");
}

absl::Status Parser::ParseMacro(Stmt* stmt) {
  stmt->kind = StmtKind::kMacro;
  stmt->macro = std::make_unique<MacroStmt>();
  Take();
  ASSIGN_OR_RETURN(stmt->macro->name, ExpectName());
  assigned_.push_back(stmt->macro->name);
  macros_.push_back(stmt->macro.get());
  RETURN_IF_ERROR(ParseParams(stmt->macro.get()));
  ASSIGN_OR_RETURN(stmt->macro->body, ParseInnerBody("endmacro"));
  macros_.pop_back();
  return absl::OkStatus();
}

absl::Status Parser::ParseCallBlock(Stmt* stmt) {
  stmt->kind = StmtKind::kCall;
  stmt->macro = std::make_unique<MacroStmt>();
  stmt->macro->name = "caller";
  Take();
  macros_.push_back(stmt->macro.get());
  if (AtOperator("(")) RETURN_IF_ERROR(ParseParams(stmt->macro.get()));
  macros_.pop_back();
  ASSIGN_OR_RETURN(stmt->expr, ParseExpression());
  if (stmt->expr->kind != ExprKind::kCall) return Fail("expected a call");
  macros_.push_back(stmt->macro.get());
  ASSIGN_OR_RETURN(stmt->macro->body, ParseInnerBody("endcall"));
  macros_.pop_back();
  return absl::OkStatus();
}

absl::Status Parser::ParseFilterBlock(Stmt* stmt) {
  stmt->kind = StmtKind::kFilter;
  Take();
  do {
    ASSIGN_OR_RETURN(stmt->expr, ParseFilter(std::move(stmt->expr)));
  } while (TakeOperator("|"));
  ASSIGN_OR_RETURN(stmt->body, ParseInnerBody("endfilter"));
  return absl::OkStatus();
}

absl::Status Parser::ParseWith(Stmt* stmt) {
  stmt->kind = StmtKind::kWith;
  Take();
  while (Peek().kind != TokenKind::kBlockEnd) {
    if (!stmt->bindings.empty()) RETURN_IF_ERROR(ExpectOperator(","));
    Binding binding;
    ASSIGN_OR_RETURN(binding.target, ParseOneTarget(false));
    RETURN_IF_ERROR(ExpectOperator("="));
    ASSIGN_OR_RETURN(binding.value, ParseExpression());
    stmt->bindings.push_back(std::move(binding));
  }
  ASSIGN_OR_RETURN(stmt->body, ParseInnerBody("endwith"));
  return absl::OkStatus();
}

// {% generation %} of transformers marks what the assistant wrote and changes nothing in the text.
absl::Status Parser::ParseScope(Stmt* stmt) {
  stmt->kind = StmtKind::kScope;
  Take();
  ASSIGN_OR_RETURN(stmt->body, ParseInnerBody("endgeneration"));
  return absl::OkStatus();
}

absl::Status Parser::ParseLoopControl(Stmt* stmt) {
  if (loop_nesting_ == 0) return Fail("a loop control outside of a loop");
  stmt->kind = Take().text == "break" ? StmtKind::kBreak : StmtKind::kContinue;
  return ExpectBlockEnd();
}

absl::StatusOr<Target> Parser::ParseOneTarget(bool allow_namespace) {
  if (AtOperator("(") && ++expr_nesting_ < kMaxExprDepth) {
    Take();
    ASSIGN_OR_RETURN(Target inner, ParseTarget(allow_namespace));
    RETURN_IF_ERROR(ExpectOperator(")"));
    --expr_nesting_;
    return inner;
  }
  Target target;
  ASSIGN_OR_RETURN(target.name, ExpectName());
  static constexpr std::string_view kReserved[] = {"true", "false", "none",
                                                   "True", "False", "None"};
  for (std::string_view name : kReserved) {
    if (target.name == name) return Fail(absl::StrCat("cannot assign to ", target.name));
  }
  if (allow_namespace && TakeOperator(".")) {
    ASSIGN_OR_RETURN(target.attribute, ExpectName());
  } else {
    assigned_.push_back(target.name);
  }
  return target;
}

absl::StatusOr<Target> Parser::ParseTarget(bool allow_namespace) {
  ASSIGN_OR_RETURN(Target first, ParseOneTarget(allow_namespace));
  if (!AtOperator(",")) return first;
  Target tuple;
  tuple.items.push_back(std::move(first));
  while (TakeOperator(",")) {
    if (Peek().kind != TokenKind::kName && !AtOperator("(")) break;
    if (AtName("in")) break;
    ASSIGN_OR_RETURN(Target item, ParseOneTarget(allow_namespace));
    tuple.items.push_back(std::move(item));
  }
  return tuple;
}

}  // namespace jevons::jinja

// What follows an operand: attributes, subscripts, calls, filters and tests.
#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "model/jinja_builtins.h"
#include "model/jinja_parser.h"

namespace jevons::jinja {

absl::StatusOr<ExprPtr> Parser::ParsePostfix(ExprPtr node) {
  while (true) {
    if (AtOperator(".")) {
      ASSIGN_OR_RETURN(node, ParseAttribute(std::move(node)));
    } else if (AtOperator("[")) {
      ASSIGN_OR_RETURN(node, ParseSubscript(std::move(node)));
    } else if (AtOperator("(")) {
      ASSIGN_OR_RETURN(node, ParseCall(std::move(node)));
    } else {
      return node;
    }
  }
}

absl::StatusOr<ExprPtr> Parser::ParseFilters(ExprPtr node) {
  while (true) {
    if (TakeOperator("|")) {
      ASSIGN_OR_RETURN(node, ParseFilter(std::move(node)));
    } else if (AtName("is")) {
      ASSIGN_OR_RETURN(node, ParseTest(std::move(node)));
    } else if (AtOperator("(")) {
      ASSIGN_OR_RETURN(node, ParseCall(std::move(node)));
    } else {
      return node;
    }
  }
}

absl::Status Parser::CheckBuiltin(Support support, std::string_view what, int line) {
  if (support == Support::kSupported) return absl::OkStatus();
  if (support == Support::kUnsupported) return Unsupported(what, line);
  if (conditional_nesting_ == 0) unknown_.push_back(Unsupported(what, line));
  return absl::OkStatus();
}

absl::Status Parser::CheckFilter(const std::string& name, int line) {
  return CheckBuiltin(FilterSupport(name), absl::StrCat("the filter ", name), line);
}

absl::Status Parser::CheckTest(const std::string& name, int line) {
  return CheckBuiltin(TestSupport(name), absl::StrCat("the test ", name), line);
}

absl::Status Parser::CheckNamedBuiltins(const Expr& filter) {
  bool by_attribute = filter.name == "selectattr" || filter.name == "rejectattr";
  bool by_test = by_attribute || filter.name == "select" || filter.name == "reject";
  size_t position = by_attribute ? 1 : 0;
  if (!by_test && filter.name != "map") return absl::OkStatus();
  if (filter.call_args.size() <= position) return absl::OkStatus();
  const CallArg& arg = filter.call_args[position];
  const Text* name = arg.value->kind == ExprKind::kConst ? arg.value->constant.text() : nullptr;
  if (arg.kind != ArgKind::kPositional || name == nullptr) return absl::OkStatus();
  return by_test ? CheckTest(name->bytes(), filter.line) : CheckFilter(name->bytes(), filter.line);
}

absl::StatusOr<ExprPtr> Parser::ParseFilter(ExprPtr node) {
  ExprPtr filter = Make(ExprKind::kFilter);
  ASSIGN_OR_RETURN(filter->name, ExpectName());
  while (TakeOperator(".")) {
    ASSIGN_OR_RETURN(std::string part, ExpectName());
    absl::StrAppend(&filter->name, ".", part);
  }
  RETURN_IF_ERROR(CheckFilter(filter->name, filter->line));
  RETURN_IF_ERROR(Adopt(filter.get(), std::move(node)));
  if (AtOperator("(")) {
    RETURN_IF_ERROR(ParseCallArgs(&filter->call_args));
    for (const CallArg& arg : filter->call_args) {
      filter->depth = std::max(filter->depth, arg.value->depth + 1);
    }
  }
  RETURN_IF_ERROR(CheckNamedBuiltins(*filter));
  return filter;
}

absl::StatusOr<ExprPtr> Parser::ParseTest(ExprPtr node) {
  ExprPtr test = Make(ExprKind::kTest);
  Take();
  bool is_negated = TakeName("not");
  ASSIGN_OR_RETURN(test->name, ExpectName());
  while (TakeOperator(".")) {
    ASSIGN_OR_RETURN(std::string part, ExpectName());
    absl::StrAppend(&test->name, ".", part);
  }
  RETURN_IF_ERROR(CheckTest(test->name, test->line));
  RETURN_IF_ERROR(Adopt(test.get(), std::move(node)));
  TokenKind kind = Peek().kind;
  bool stops = AtName("else") || AtName("or") || AtName("and");
  bool begins_argument = kind == TokenKind::kName || kind == TokenKind::kString ||
                         kind == TokenKind::kInteger || kind == TokenKind::kFloat ||
                         AtOperator("[") || AtOperator("{");
  if (AtOperator("(")) {
    RETURN_IF_ERROR(ParseCallArgs(&test->call_args));
  } else if (begins_argument && !stops) {
    if (AtName("is")) return Fail("tests cannot be chained");
    CallArg arg;
    ASSIGN_OR_RETURN(arg.value, ParsePrimary());
    ASSIGN_OR_RETURN(arg.value, ParsePostfix(std::move(arg.value)));
    test->call_args.push_back(std::move(arg));
  }
  for (const CallArg& arg : test->call_args)
    test->depth = std::max(test->depth, arg.value->depth + 1);
  if (!is_negated) return test;
  ExprPtr negation = Make(ExprKind::kNot);
  RETURN_IF_ERROR(Adopt(negation.get(), std::move(test)));
  return negation;
}

absl::StatusOr<ExprPtr> Parser::ParseAttribute(ExprPtr node) {
  ExprPtr attribute = Make(ExprKind::kAttr);
  Take();
  RETURN_IF_ERROR(Adopt(attribute.get(), std::move(node)));
  if (Peek().kind == TokenKind::kInteger) {
    attribute->kind = ExprKind::kIndex;
    ASSIGN_OR_RETURN(ExprPtr index, ParseNumber());
    RETURN_IF_ERROR(Adopt(attribute.get(), std::move(index)));
    return attribute;
  }
  ASSIGN_OR_RETURN(attribute->name, ExpectName());
  if (AtOperator("(") && MethodSupport(attribute->name) == Support::kUnsupported) {
    return Unsupported(absl::StrCat("the method ", attribute->name), attribute->line);
  }
  return attribute;
}

absl::StatusOr<ExprPtr> Parser::ParseSubscript(ExprPtr node) {
  Take();
  if (AtOperator("]")) {
    ExprPtr index = Make(ExprKind::kIndex);
    RETURN_IF_ERROR(Adopt(index.get(), std::move(node)));
    RETURN_IF_ERROR(Adopt(index.get(), Make(ExprKind::kTuple)));
    Take();
    return index;
  }
  ASSIGN_OR_RETURN(node, ParseOneSubscript(std::move(node)));
  if (AtOperator(",")) return Unsupported("a subscript of several parts", Peek().line);
  RETURN_IF_ERROR(ExpectOperator("]"));
  return node;
}

absl::StatusOr<ExprPtr> Parser::ParseOneSubscript(ExprPtr node) {
  ExprPtr subscript = Make(ExprKind::kIndex);
  RETURN_IF_ERROR(Adopt(subscript.get(), std::move(node)));
  ExprPtr part;
  if (!AtOperator(":")) {
    ASSIGN_OR_RETURN(part, ParseExpression());
  }
  RETURN_IF_ERROR(Adopt(subscript.get(), std::move(part)));
  if (!AtOperator(":")) return subscript;
  subscript->kind = ExprKind::kSlice;
  while (subscript->args.size() < 4) {
    ExprPtr bound;
    if (TakeOperator(":") && !AtOperator(":") && !AtOperator("]")) {
      ASSIGN_OR_RETURN(bound, ParseExpression());
    }
    RETURN_IF_ERROR(Adopt(subscript.get(), std::move(bound)));
  }
  return subscript;
}

absl::StatusOr<ExprPtr> Parser::ParseCall(ExprPtr node) {
  ExprPtr call = Make(ExprKind::kCall);
  RETURN_IF_ERROR(Adopt(call.get(), std::move(node)));
  RETURN_IF_ERROR(ParseCallArgs(&call->call_args));
  for (const CallArg& arg : call->call_args)
    call->depth = std::max(call->depth, arg.value->depth + 1);
  if (call->depth > kMaxExprDepth) return Fail("an expression nests too deep");
  return call;
}

absl::Status Parser::ParseCallArgs(std::vector<CallArg>* args) {
  RETURN_IF_ERROR(ExpectOperator("("));
  bool only_named = false;
  while (!AtOperator(")")) {
    if (!args->empty()) RETURN_IF_ERROR(ExpectOperator(","));
    if (AtOperator(")")) break;
    CallArg arg;
    if (TakeOperator("**")) {
      arg.kind = ArgKind::kSpreadNamed;
    } else if (TakeOperator("*")) {
      arg.kind = ArgKind::kSpread;
    } else if (Peek().kind == TokenKind::kName && PeekSecond().kind == TokenKind::kOperator &&
               PeekSecond().text == "=") {
      arg.kind = ArgKind::kNamed;
      arg.name = Take().text;
      Take();
    }
    if (arg.kind == ArgKind::kPositional && only_named) {
      return Fail("a positional argument follows a named one");
    }
    only_named |= arg.kind != ArgKind::kPositional;
    ASSIGN_OR_RETURN(arg.value, ParseExpression());
    args->push_back(std::move(arg));
  }
  return ExpectOperator(")");
}

}  // namespace jevons::jinja

// Expressions: the grammar of Jinja2, where filters and tests bind tighter than every operator
// between two operands.
#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "model/jinja_builtins.h"
#include "model/jinja_parser.h"

namespace jevons::jinja {
namespace {

// Operators between two operands, loosest first, with `~` between the sums and the products.
constexpr int kConcatLevel = 1;
constexpr int kNumLevels = 4;
constexpr std::string_view kSums[] = {"+", "-"};
constexpr std::string_view kConcats[] = {"~"};
constexpr std::string_view kProducts[] = {"*", "/", "//", "%"};
constexpr std::string_view kPowers[] = {"**"};

std::pair<const std::string_view*, size_t> OperatorsAt(int level) {
  switch (level) {
    case 0:
      return {kSums, std::size(kSums)};
    case kConcatLevel:
      return {kConcats, std::size(kConcats)};
    case 2:
      return {kProducts, std::size(kProducts)};
    default:
      return {kPowers, std::size(kPowers)};
  }
}

}  // namespace

ExprPtr Parser::Make(ExprKind kind) const {
  auto node = std::make_unique<Expr>();
  node->kind = kind;
  node->line = Peek().line;
  return node;
}

absl::Status Parser::Adopt(Expr* node, ExprPtr child) const {
  if (child) node->depth = std::max(node->depth, child->depth + 1);
  node->args.push_back(std::move(child));
  if (node->depth <= kMaxExprDepth) return absl::OkStatus();
  return Fail(absl::StrCat("an expression nests deeper than ", kMaxExprDepth, " levels"));
}

// A tuple without brackets, or the one expression that stands there.
absl::StatusOr<ExprPtr> Parser::ParseTuple(bool allow_condition) {
  ExprPtr tuple = Make(ExprKind::kTuple);
  auto parse_item = [&] { return allow_condition ? ParseExpression() : ParseOr(); };
  ASSIGN_OR_RETURN(ExprPtr first, parse_item());
  if (!AtOperator(",")) return first;
  RETURN_IF_ERROR(Adopt(tuple.get(), std::move(first)));
  while (TakeOperator(",")) {
    TokenKind kind = Peek().kind;
    if (kind == TokenKind::kPrintEnd || kind == TokenKind::kBlockEnd || AtOperator(")")) break;
    ASSIGN_OR_RETURN(ExprPtr item, parse_item());
    RETURN_IF_ERROR(Adopt(tuple.get(), std::move(item)));
  }
  return tuple;
}

absl::StatusOr<ExprPtr> Parser::ParseExpression() {
  if (++expr_nesting_ > kMaxExprDepth) {
    return Fail(absl::StrCat("an expression nests deeper than ", kMaxExprDepth, " levels"));
  }
  auto node = ParseCondition();
  --expr_nesting_;
  return node;
}

absl::StatusOr<ExprPtr> Parser::ParseCondition() {
  size_t num_unknown = unknown_.size();
  ASSIGN_OR_RETURN(ExprPtr node, ParseOr());
  bool is_conditional = AtName("if");
  while (AtName("if")) {
    ExprPtr condition = Make(ExprKind::kCond);
    Take();
    RETURN_IF_ERROR(Adopt(condition.get(), std::move(node)));
    ASSIGN_OR_RETURN(ExprPtr test, ParseOr());
    RETURN_IF_ERROR(Adopt(condition.get(), std::move(test)));
    ExprPtr otherwise;
    if (TakeName("else")) {
      ASSIGN_OR_RETURN(otherwise, ParseExpression());
    }
    RETURN_IF_ERROR(Adopt(condition.get(), std::move(otherwise)));
    node = std::move(condition);
  }
  if (is_conditional) unknown_.resize(num_unknown);
  return node;
}

absl::StatusOr<ExprPtr> Parser::ParseOr() {
  ASSIGN_OR_RETURN(ExprPtr left, ParseAnd());
  while (AtName("or")) {
    ExprPtr node = Make(ExprKind::kOr);
    Take();
    ASSIGN_OR_RETURN(ExprPtr right, ParseAnd());
    RETURN_IF_ERROR(Adopt(node.get(), std::move(left)));
    RETURN_IF_ERROR(Adopt(node.get(), std::move(right)));
    left = std::move(node);
  }
  return left;
}

absl::StatusOr<ExprPtr> Parser::ParseAnd() {
  ASSIGN_OR_RETURN(ExprPtr left, ParseNot());
  while (AtName("and")) {
    ExprPtr node = Make(ExprKind::kAnd);
    Take();
    ASSIGN_OR_RETURN(ExprPtr right, ParseNot());
    RETURN_IF_ERROR(Adopt(node.get(), std::move(left)));
    RETURN_IF_ERROR(Adopt(node.get(), std::move(right)));
    left = std::move(node);
  }
  return left;
}

absl::StatusOr<ExprPtr> Parser::ParseNot() {
  if (!AtName("not")) return ParseCompare();
  ExprPtr node = Make(ExprKind::kNot);
  Take();
  if (++expr_nesting_ > kMaxExprDepth) return Fail("too many 'not'");
  ASSIGN_OR_RETURN(ExprPtr inner, ParseNot());
  --expr_nesting_;
  RETURN_IF_ERROR(Adopt(node.get(), std::move(inner)));
  return node;
}

absl::StatusOr<ExprPtr> Parser::ParseCompare() {
  static constexpr std::string_view kComparisons[] = {"==", "!=", "<", "<=", ">", ">="};
  ExprPtr node = Make(ExprKind::kCompare);
  ASSIGN_OR_RETURN(ExprPtr first, ParseBinary(0));
  RETURN_IF_ERROR(Adopt(node.get(), std::move(first)));
  while (true) {
    bool is_comparison = Peek().kind == TokenKind::kOperator &&
                         std::find(std::begin(kComparisons), std::end(kComparisons), Peek().text) !=
                             std::end(kComparisons);
    bool is_not_in =
        AtName("not") && PeekSecond().kind == TokenKind::kName && PeekSecond().text == "in";
    if (!is_comparison && !AtName("in") && !is_not_in) break;
    std::string op = Take().text;
    if (is_not_in) {
      Take();
      op = "not in";
    }
    node->names.push_back(std::move(op));
    ASSIGN_OR_RETURN(ExprPtr next, ParseBinary(0));
    RETURN_IF_ERROR(Adopt(node.get(), std::move(next)));
  }
  return node->names.empty() ? std::move(node->args[0]) : std::move(node);
}

absl::StatusOr<ExprPtr> Parser::ParseBinary(int level) {
  if (level == kNumLevels) return ParseUnary(true);
  auto [ops, num_ops] = OperatorsAt(level);
  ASSIGN_OR_RETURN(ExprPtr left, ParseBinary(level + 1));
  while (Peek().kind == TokenKind::kOperator &&
         std::find(ops, ops + num_ops, Peek().text) != ops + num_ops) {
    bool extends = level == kConcatLevel && left->kind == ExprKind::kConcat && left->name == "~";
    ExprPtr node = extends ? std::move(left)
                           : Make(level == kConcatLevel ? ExprKind::kConcat : ExprKind::kBinary);
    node->name = Take().text;
    ASSIGN_OR_RETURN(ExprPtr right, ParseBinary(level + 1));
    if (!extends) RETURN_IF_ERROR(Adopt(node.get(), std::move(left)));
    RETURN_IF_ERROR(Adopt(node.get(), std::move(right)));
    left = std::move(node);
  }
  if (level == kConcatLevel && left->kind == ExprKind::kConcat) left->name.clear();
  return left;
}

absl::StatusOr<ExprPtr> Parser::ParseUnary(bool with_filters) {
  ExprPtr node;
  if (AtOperator("-") || AtOperator("+")) {
    node = Make(AtOperator("-") ? ExprKind::kNeg : ExprKind::kPos);
    Take();
    if (++expr_nesting_ > kMaxExprDepth) return Fail("too many signs");
    ASSIGN_OR_RETURN(ExprPtr inner, ParseUnary(false));
    --expr_nesting_;
    RETURN_IF_ERROR(Adopt(node.get(), std::move(inner)));
  } else {
    ASSIGN_OR_RETURN(node, ParsePrimary());
  }
  ASSIGN_OR_RETURN(node, ParsePostfix(std::move(node)));
  if (!with_filters) return node;
  return ParseFilters(std::move(node));
}

absl::StatusOr<ExprPtr> Parser::ParsePrimary() {
  switch (Peek().kind) {
    case TokenKind::kName:
      return ParseName();
    case TokenKind::kString:
      return ParseString();
    case TokenKind::kInteger:
    case TokenKind::kFloat:
      return ParseNumber();
    default:
      break;
  }
  if (AtOperator("(")) return ParseParens();
  if (AtOperator("[")) return ParseListLiteral();
  if (AtOperator("{")) return ParseDictLiteral();
  return Fail("expected an expression");
}

absl::StatusOr<ExprPtr> Parser::ParseName() {
  ExprPtr node = Make(ExprKind::kConst);
  Token token = Take();
  const std::string& name = token.text;
  if (name == "true" || name == "True" || name == "false" || name == "False") {
    node->constant = Value(name == "true" || name == "True");
    return node;
  }
  if (name == "none" || name == "None") return node;
  node->kind = ExprKind::kName;
  node->name = name;
  loaded_.emplace_back(name, token.line);
  if (!macros_.empty()) {
    macros_.back()->uses_varargs |= name == "varargs";
    macros_.back()->uses_kwargs |= name == "kwargs";
    macros_.back()->uses_caller |= name == "caller";
  }
  return node;
}

absl::StatusOr<ExprPtr> Parser::ParseString() {
  ExprPtr node = Make(ExprKind::kConst);
  std::string bytes;
  while (Peek().kind == TokenKind::kString) bytes += Take().text;
  node->constant = Value::OfString(std::move(bytes));
  return node;
}

absl::StatusOr<ExprPtr> Parser::ParseNumber() {
  ExprPtr node = Make(ExprKind::kConst);
  if (Peek().kind == TokenKind::kFloat) {
    double value = 0;
    if (!absl::SimpleAtod(Peek().text, &value)) return Fail("not a number");
    node->constant = Value(value);
  } else {
    Int value = 0;
    for (char c : Peek().text) {
      if (__builtin_mul_overflow(value, Int{10}, &value) ||
          __builtin_add_overflow(value, Int{c - '0'}, &value)) {
        return Fail("an integer of more than 127 bits");
      }
    }
    node->constant = Value(value);
  }
  Take();
  return node;
}

absl::StatusOr<ExprPtr> Parser::ParseParens() {
  ExprPtr tuple = Make(ExprKind::kTuple);
  Take();
  if (TakeOperator(")")) return tuple;
  ASSIGN_OR_RETURN(ExprPtr inner, ParseTuple(true));
  RETURN_IF_ERROR(ExpectOperator(")"));
  return inner;
}

absl::StatusOr<ExprPtr> Parser::ParseListLiteral() {
  ExprPtr node = Make(ExprKind::kList);
  Take();
  while (!AtOperator("]")) {
    if (!node->args.empty()) RETURN_IF_ERROR(ExpectOperator(","));
    if (AtOperator("]")) break;
    ASSIGN_OR_RETURN(ExprPtr item, ParseExpression());
    RETURN_IF_ERROR(Adopt(node.get(), std::move(item)));
  }
  Take();
  return node;
}

absl::StatusOr<ExprPtr> Parser::ParseDictLiteral() {
  ExprPtr node = Make(ExprKind::kDict);
  Take();
  while (!AtOperator("}")) {
    if (!node->args.empty()) RETURN_IF_ERROR(ExpectOperator(","));
    if (AtOperator("}")) break;
    ASSIGN_OR_RETURN(ExprPtr key, ParseExpression());
    RETURN_IF_ERROR(ExpectOperator(":"));
    ASSIGN_OR_RETURN(ExprPtr value, ParseExpression());
    RETURN_IF_ERROR(Adopt(node.get(), std::move(key)));
    RETURN_IF_ERROR(Adopt(node.get(), std::move(value)));
  }
  Take();
  return node;
}

}  // namespace jevons::jinja

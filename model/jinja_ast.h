// The tree of a parsed template.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/jinja_value.h"

namespace jevons::jinja {

enum class ExprKind : uint8_t {
  kConst,    // constant
  kName,     // name
  kList,     // args
  kTuple,    // args
  kDict,     // args: key, value, key, value...
  kAttr,     // args[0] . name
  kIndex,    // args[0] [ args[1] ]
  kSlice,    // args[0] [ args[1] : args[2] : args[3] ], each may be null
  kCall,     // args[0] ( call_args )
  kFilter,   // args[0] | name ( call_args ); args[0] is null in a filter block
  kTest,     // args[0] is name ( call_args )
  kNot,      // args[0]
  kNeg,      // args[0]
  kPos,      // args[0]
  kAnd,      // args[0], args[1]
  kOr,       // args[0], args[1]
  kConcat,   // args joined as text
  kBinary,   // args[0] name args[1]
  kCompare,  // args[0] names[0] args[1] names[1] args[2]...
  kCond,     // args[0] if args[1] else args[2], which may be null
};

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

enum class ArgKind : uint8_t { kPositional, kNamed, kSpread, kSpreadNamed };

struct CallArg {
  ArgKind kind = ArgKind::kPositional;
  std::string name;
  ExprPtr value;
};

struct Expr {
  ExprKind kind = ExprKind::kConst;
  int line = 0;
  int depth = 1;  // levels of the tree from here down
  std::string name;
  Value constant;
  std::vector<ExprPtr> args;
  std::vector<std::string> names;
  std::vector<CallArg> call_args;
};

enum class StmtKind : uint8_t {
  kText,      // text
  kPrint,     // expr
  kIf,        // branches
  kFor,       // target, expr, condition, body, orelse
  kSet,       // target, expr
  kSetBlock,  // target, body, and expr: filters around a null input, or null
  kMacro,     // macro
  kCall,      // expr: the call; macro: the body that `caller` runs
  kFilter,    // expr: filters around a null input; body
  kWith,      // targets and values in `bindings`; body
  kScope,     // body
  kBreak,
  kContinue,
};

struct Stmt;
using Body = std::vector<std::unique_ptr<Stmt>>;

// What is assigned to: a name, an attribute of a namespace, or several of those.
struct Target {
  std::string name;
  std::string attribute;      // if not empty: of the namespace `name`
  std::vector<Target> items;  // if not empty: unpacking
};

struct Branch {
  ExprPtr condition;  // null: else
  Body body;
};

struct Binding {
  Target target;
  ExprPtr value;
};

struct MacroParam {
  std::string name;
  ExprPtr default_value;  // may be null
};

struct MacroStmt {
  std::string name;
  std::vector<MacroParam> params;
  Body body;
  // Whether the body mentions these names, which changes what calls are allowed.
  bool uses_varargs = false;
  bool uses_kwargs = false;
  bool uses_caller = false;
};

struct Stmt {
  StmtKind kind = StmtKind::kText;
  int line = 0;
  Text text;
  Target target;
  ExprPtr expr;
  ExprPtr condition;
  Body body;
  Body orelse;
  std::vector<Branch> branches;
  std::vector<Binding> bindings;
  std::unique_ptr<MacroStmt> macro;
};

}  // namespace jevons::jinja

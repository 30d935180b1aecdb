// Status macros: every function that can fail on input returns absl::Status or absl::StatusOr.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define JEVONS_CONCAT_INNER(a, b) a##b
#define JEVONS_CONCAT(a, b) JEVONS_CONCAT_INNER(a, b)

// Returns from the enclosing function if `expr` is not OK.
#define RETURN_IF_ERROR(expr)                      \
  do {                                             \
    absl::Status jevons_status = (expr);           \
    if (!jevons_status.ok()) return jevons_status; \
  } while (false)

// ASSIGN_OR_RETURN(auto x, F()): x = F(), or returns F()'s error.
#define ASSIGN_OR_RETURN(lhs, expr) \
  ASSIGN_OR_RETURN_INNER(JEVONS_CONCAT(jevons_or, __LINE__), lhs, expr)
#define ASSIGN_OR_RETURN_INNER(var, lhs, expr) \
  auto var = (expr);                           \
  if (!var.ok()) return var.status();          \
  lhs = *std::move(var)

#pragma once

#include "base/tensor_view.h"
#include "ops/elementwise.h"
#include "ops/weight.h"

namespace jevons {

// What    out[t] = W x[t] + bias. Where weight->input() is kFp8 every row of x is first rounded to what
//         Fp8Entry{k, 0} keeps of it (ops/fp8_entry.h), here and in all ops below but HeadLinear
// Shapes  x [num_tokens, k] f32, row stride free; out [num_tokens, n] f32, row stride free;
//         bias [n] f32 or absent
// Edge    num_tokens = 0 writes nothing; NaN or Inf in a row stays in that row
// Order   the sum over k of one output has an order that depends on k alone, unless a backend is told
//         otherwise: bitwise equal for any num_tokens, row position and number of threads
// Error   |err| <= kLinearTolerance * sum_k |w x| against fp64, kLinearBf16Tolerance where x is
//         bf16, and kLinearFp8Tolerance, with sum_k of the rounded x, where they are FP8: tensor cores
//         then keep 14 bits or so of a sum of 32; and half a step of out's type
struct LinearArgs {
  TensorView x;
  const Weight* weight = nullptr;  // num_groups 1
  TensorView bias;
  TensorView out;
};
inline constexpr double kLinearTolerance = 2e-6;
inline constexpr double kLinearBf16Tolerance = 1e-5;
inline constexpr double kLinearFp8Tolerance = 1e-3;

// What    Linear, then RmsNorm of columns of what it gives
// Shapes  norm.x: the first columns of linear.out; no norm.delta
// Edge, Order, Error as those two
struct LinearAndNormArgs {
  LinearArgs linear;
  RmsNormArgs norm;
};

// What    out[t, g] = W_g x[t, g]: every token meets every group (a head) with its own slice
// Shapes  x [num_tokens, num_groups, k] f32, out [num_tokens, num_groups, n] f32,
//         outer strides free
//         weight->input() kExact
// Edge, Order, Error as Linear
struct HeadLinearArgs {
  TensorView x;
  const Weight* weight = nullptr;
  TensorView out;
};

// What    out[r] = W_g x[source(r)] for the rows r in [cu_rows[g], cu_rows[g + 1]) of each group g
//         (an expert)
// Shapes  x [*, k] f32; cu_rows i32 [num_groups + 1], ascending from 0, cu_rows[num_groups] at most
//         num_rows; row_idx i32 [num_rows]: source(r) = row_idx[r], or r where row_idx is absent;
//         out [num_rows, n] f32
// Edge    a group without rows is not read; rows past cu_rows[num_groups] are not written
// Order   as Linear
// Error   as Linear
struct GroupedGemmArgs {
  TensorView x;
  TensorView cu_rows;
  TensorView row_idx;
  const Weight* weight = nullptr;
  TensorView out;
};

// What    out[r] = silu(gate x) * (up x), silu(z) = z / (1 + exp(-z)), for the rows r of GroupedGemm;
//         where cu_rows is absent for every row of x with group 0
// Shapes  as GroupedGemm; weight packed as kGateUp, n = 2m; out [num_rows, m];
//         workspace f32 [num_rows, 2m], row stride free: undefined afterwards; absent where the
//         backend fuses (BackendTraits)
// Edge, Order as GroupedGemm
// Error   the two products as Linear, then kSiluMulTolerance
struct GatedUpArgs {
  TensorView x;
  TensorView cu_rows;
  TensorView row_idx;
  const Weight* weight = nullptr;
  TensorView workspace;
  TensorView out;
};

}  // namespace jevons

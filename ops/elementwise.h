// The small operations around the matrix products: rows in, rows out.
#pragma once

#include "base/tensor_view.h"

namespace jevons {

// What    out[t] = table[id] as f32, id = ids[t], or drawn[i] where ids[t] is DrawnId(i)
// Shapes  ids i32 [num_tokens]; table [vocab, hidden] f32 f16 or bf16; out [num_tokens, hidden] f32;
//         drawn i32 [num_drawn] or absent
// Edge    an id outside [0, vocab), or a DrawnId outside of drawn, gives a row of NaN, so that the
//         one request fails and no memory is read; an entry of drawn is never a DrawnId itself
// Error   exact
struct EmbedArgs {
  TensorView ids;
  TensorView table;
  TensorView out;
  TensorView drawn = {};
};
// Stands for a token that an op before this one draws into drawn[drawn_idx]; -1 is no id at all.
constexpr int32_t DrawnId(int32_t drawn_idx) { return -2 - drawn_idx; }

// What    if delta is there: x += delta (in place); then, per token,
//         out = x / sqrt(mean(x^2) + eps) * weight
// Shapes  x, delta, out [num_tokens, hidden] f32, row stride free; weight [hidden] f32;
//         out may be x
// Units   eps is in squared activation units
// Edge    num_tokens = 0 writes nothing; NaN in a row stays in that row
// Order   fixed by hidden alone
// Error   kRmsNormTolerance relative against fp64
struct RmsNormArgs {
  TensorView x;
  TensorView delta;
  TensorView weight;
  float eps = 0;
  TensorView out;
};
inline constexpr double kRmsNormTolerance = 2e-6;

// What    out[t, i] = silu(gate_up[t, i]) * gate_up[t, m + i], silu(z) = z / (1 + exp(-z))
// Shapes  gate_up [num_tokens, 2m] f32; out [num_tokens, m] f32
// Error   kSiluMulTolerance relative against fp64, absolute 1e-30
struct SiluMulArgs {
  TensorView gate_up;
  TensorView out;
};
inline constexpr double kSiluMulTolerance = 4e-6;

// What    out = x with pair i of each head rotated by positions[t] * inv_freq[i];
//         (x[2i], x[2i + 1]) is pair i
// Shapes  x, out [num_tokens, num_heads, d] f32, outer strides free, out may be x;
//         positions i32 [num_tokens];
//         cos_sin f32 [max_positions, d]: row p holds d/2 cosines, then d/2 sines
// Edge    positions are in [0, max_positions): the caller's duty, checked by Validate
// Error   kRopeTolerance of |a cos| + |b sin| against fp64
// Source  model-spec 1 (interleaved layout)
struct RopeArgs {
  TensorView x;
  TensorView positions;
  TensorView cos_sin;
  TensorView out;
};
inline constexpr double kRopeTolerance = 3e-7;

// What    out[i] = x[row_idx[i]]
// Shapes  x [num_tokens, n] f32; row_idx i32 [num_rows]; out [num_rows, n] f32
// Edge    row_idx -1 leaves the row of out as it is
// Error   exact
struct GatherRowsArgs {
  TensorView x;
  TensorView row_idx;
  TensorView out;
};

}  // namespace jevons

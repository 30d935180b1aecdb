// Sending tokens to the ranks that hold their experts, and the experts' results back. What is moved
// is moved between two GatherRows; here stands which row goes where.
#pragma once

#include "base/tensor_view.h"
#include "ops/fp8_entry.h"

namespace jevons {

// A token goes once to each rank that serves any of its choices, and one row comes back for each
// choice: the sum over experts has the token's own order, so no rank may add for another.
//
// contiguous (capacity 0)  the rows for rank 0 follow each other, then those for rank 1, ...; what
//                          comes back follows in the order of these rows, and of a row's choices
// masked (capacity C > 0)  the rows for rank r are the first of [r * C, (r + 1) * C); what comes back
//                          for row i are the first of [i * m, (i + 1) * m), m = min(top_k,
//                          slots_per_rank): no size depends on the choices
struct ExchangePlan {
  TensorView counts;      // i32 [num_ranks, 2]: rows for each rank, choices that it serves
  TensorView send_token;  // i32 [num_send]: the token of a row; masked: -1 where there is none
  TensorView send_slots;  // i32 [num_send, top_k]: the slot, on its rank, of each choice that is
                          // served there, else -1
  TensorView return_row;  // i32 [num_tokens, top_k]: where the choice's result comes back, -1 none
};

// What    fills the plan for the choices of this rank's tokens. Choice (t, j) is served by slot
//         slot_table[topk_idx[t, j], t % width], which lies on rank slot / slots_per_rank
// Shapes  topk_idx i32 [num_tokens, top_k], -1 = none; slot_table i32 [n_experts, width];
//         num_send at least num_tokens * min(top_k, num_ranks), or num_ranks * capacity where masked;
//         capacity 0 or at least num_tokens
//         choice_counts i64 [num_counted] or absent: one more for each choice of an expert below
//         num_counted that is served
// Edge    contiguous: what of send_token and send_slots lies past the rows is not written
// Order   rows for a rank by token
// Error   exact
struct RankDispatchArgs {
  TensorView topk_idx;
  TensorView slot_table;
  int32_t num_ranks = 1;
  int32_t slots_per_rank = 0;
  int32_t capacity = 0;
  ExchangePlan plan;
  TensorView choice_counts = {};
};

// What    on the rank that serves: the grouped row of each choice, in the order in which results go
//         back
// Shapes  token_row i32 [num_rows, top_k], made by ExpertDispatch of the received send_slots;
//         row_idx i32 [num_rows * width], width = top_k where contiguous, else m
// Edge    contiguous: what lies past the choices is not written; masked: -1 where there is none
// Error   exact
struct ReturnRowsArgs {
  TensorView token_row;
  bool masked = false;
  TensorView row_idx;
};

// Rows that are sent as FP8: each an Fp8Entry without keys.
inline int64_t PackedRowBytes(int64_t width) {
  return Fp8Entry{static_cast<int32_t>(width), 0}.bytes();
}

// What    out[i] = x[row_idx[i]] as FP8, a scale for each kFp8Group values
// Shapes  x [num_tokens, n] f32; row_idx i32 [num_rows]; out u8 [num_rows, PackedRowBytes(n)]
// Edge    row_idx -1 gives a row that reads as zeros
// Error   exact: what Fp8Entry says
struct PackRowsArgs {
  TensorView x;
  TensorView row_idx;
  TensorView out;
};

// What    out[i] = the values of x[i], which PackRows wrote; all are exact in bf16
// Shapes  x u8 [num_rows, PackedRowBytes(n)]; out [num_rows, n] f32
// Error   exact
struct UnpackRowsArgs {
  TensorView x;
  TensorView out;
};

}  // namespace jevons

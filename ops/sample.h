// From rows of logits to tokens and their log-probabilities.
#pragma once

#include "base/tensor_view.h"
#include "ops/sample_row.h"

namespace jevons {

// Entries of all rows after each other; those of row r are [cu[r], cu[r + 1]). An id stands at most
// once in a row. Absent where no row has any.
struct SampleList {
  TensorView ids;     // i32 [num_entries]
  TensorView values;  // f32 or i32 [num_entries]
  TensorView cu;      // i32 [num_rows + 1]
};

// What    for each row, in this order: penalties (PenalizedLogit for each entry of `counts`), + bias,
//         ids that the mask forbids to -inf, / temperature, top_k, top_p, min_p; each filter works on
//         what the one before left, in falling order of the logits, equal ones by lower id:
//           top_k  the first top_k
//           top_p  the shortest beginning with at least top_p of their mass
//           min_p  those with at least min_p of the largest one's probability
//         then token = argmax over the kept ids of logit / temperature - log(E(id)), E the
//         Exponential of the row's seed, token_idx and the id: a draw from the softmax of what is
//         kept. Temperature 0 takes the largest logit. Equal ones go by lower id.
//         logprob = log softmax(logits)[token] over all valid ids, before all of the above;
//         top = the row's num_top most likely ids by the same measure, falling, equal ones by lower
//         id
// Shapes  logits f32 [num_rows, vocab], row stride free, vocab at most kMaxSampleVocab; rows u8
//         [num_rows, sizeof(SampleRow)]; bias.values f32, counts.values i32; masks i32 [num_masks,
//         ceil(vocab / 32)], bit i % 32 of word i / 32 set where id i is allowed; token i32, logprob
//         f32 [num_rows]; top_ids i32, top_logprobs f32 [num_rows, max_top], max_top at most
//         kMaxSampleTop; list_scratch f32 [entries of bias + entries of counts]
// Edge    ids from num_valid on do not exist. Token -1 and logprob NaN where a valid logit is NaN or
//         +inf, all that are allowed are -inf, or score_id is no valid id: that row alone is lost,
//         and its top is not written. Of top, what lies behind the ids with a logit above -inf gets
//         id -1 and NaN, what lies past num_top is not written. Entries of a list with an id that is
//         not valid are skipped; mask_row outside the masks allows all. Logits may change during
//         the call and are the same after it
// Order   a row's results depend on its own logits, lists and SampleRow alone
// Error   logprobs kSampleTolerance absolute against fp64. Penalties and bias are f32 and exact. A
//         kept set may differ from fp64's where a mass lies within 1e-5 of the limit, a token where
//         the best two sums lie within 1e-5
struct SampleTokensArgs {
  TensorView logits;
  int32_t num_valid = 0;
  TensorView rows;
  SampleList bias;
  SampleList counts;
  TensorView masks;
  TensorView list_scratch;
  TensorView token;
  TensorView logprob;
  TensorView top_ids;
  TensorView top_logprobs;
};
inline constexpr double kSampleTolerance = 2e-5;
inline constexpr int32_t kMaxSampleVocab = 1 << 18;
inline constexpr int32_t kMaxSampleTop = 128;

}  // namespace jevons

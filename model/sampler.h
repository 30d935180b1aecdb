// From one row of logits to one token.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "base/status.h"

namespace jevons {

struct SamplingParams {
  float temperature = 1;  // >= 0, finite; 0 is greedy
  int32_t top_k = 0;      // >= 0; 0: all
  float top_p = 1;        // (0, 1]
  float min_p = 0;        // [0, 1]: least probability as a fraction of the largest
  uint64_t seed = 0;
  std::vector<std::pair<int32_t, float>> logit_bias;  // each in [-100, 100]
};

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0;
};

// Draws the token. Depends on logits, params and token_idx (the number of new tokens before this
// one) alone, so neither batch nor preemption shows. Ids from num_valid on (padding rows of the
// matrix) are never drawn. Filters in this order: bias, temperature, top_k, top_p, min_p. Ties go
// to the lower id. INTERNAL if a valid logit is NaN or all are -inf.
absl::StatusOr<int32_t> SampleToken(std::span<const float> logits, int32_t num_valid,
                                    const SamplingParams& params, int64_t token_idx);

// INTERNAL: the logits for a new token are not finite.
absl::Status NotFinite(int64_t token_idx);

// Log-probability of `id` under the plain softmax of the logits, before bias, temperature and
// filters. Then the `num_top` most likely, falling, ties by lower id.
struct Logprobs {
  TokenLogprob chosen;
  std::vector<TokenLogprob> top;
};
Logprobs ComputeLogprobs(std::span<const float> logits, int32_t id, int32_t num_top);

}  // namespace jevons

// A generation request as the engine takes it, and what it may ask for.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/status.h"
#include "model/sampler.h"

namespace jevons {

// What a request has given before another engine takes it over.
struct GivenOutput {
  std::vector<int32_t> token_ids = {};
  int32_t num_prompt_logprobs = 0;  // entries
};

struct GenerationRequest {
  std::vector<int32_t> prompt_ids;
  // [0, 1e9]; 0: as many as fit. More than fit is no error: the engine cuts to what fits, and the
  // request ends there with kLength.
  int32_t max_new_tokens = 0;
  SamplingParams sampling;
  std::vector<std::string>
      stop;  // on the answer only, never on thinking; the match itself is not shown
  bool ignore_eos = false;
  int32_t num_logprobs = -1;         // -1: none; K: the chosen token's and the K most likely
  int32_t num_prompt_logprobs = -1;  // the same for each prompt token but the first
  absl::Time deadline = absl::InfiniteFuture();
  // What others with the same salt have computed of the same prompt is not computed again.
  uint64_t cache_salt = 0;
  // It goes on behind this, to the bit as if it had given it here, and gives none of it again.
  GivenOutput given = {};
};

struct GenerationLimits {
  int32_t vocab_size = 0;       // rows of the matrix
  int32_t num_tokens = 0;       // ids that the tokenizer knows
  int32_t max_model_len = 0;    // prompt and answer
  int64_t kv_cache_tokens = 0;  // of the whole pool
  int32_t max_stop_strings = 16;
  int32_t max_stop_bytes = 1024;  // of one stop string
  int32_t max_logprobs = 20;
  int32_t max_logit_bias = 1024;
};

// INVALID_ARGUMENT with field, limit and value for everything out of range; OUT_OF_RANGE never. A
// request that can never fit the KV pool: INVALID_ARGUMENT with both numbers.
absl::Status ValidateGeneration(const GenerationRequest& request, const GenerationLimits& limits);

struct Usage {
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;  // of the prompt: found in the cache, and not computed
  int32_t completion_tokens = 0;
  int32_t reasoning_tokens = 0;  // of the completion: up to and with the closing tag
};

}  // namespace jevons

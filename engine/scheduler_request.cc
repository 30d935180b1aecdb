#include "engine/scheduler_request.h"

#include <algorithm>

namespace jevons {

SchedulerConfig MakeSchedulerConfig(const EngineOptions& options) {
  return {.max_num_seqs = options.max_num_seqs,
          .max_num_batched_tokens = options.max_num_batched_tokens,
          .max_prefill_chunk_tokens = options.max_prefill_chunk_tokens};
}

Request MakeSchedulerRequest(uint64_t id, const GenerationRequest& request,
                             const GenerationLimits& limits) {
  const int32_t num_prompt = static_cast<int32_t>(request.prompt_ids.size());
  // The last new token is never put into the cache.
  const int64_t room = std::min<int64_t>(limits.max_model_len, limits.kv_cache_tokens) - num_prompt;
  const int64_t wanted = request.max_new_tokens;
  return {
      .id = id,
      .prompt_ids = request.prompt_ids,
      .max_new_tokens = static_cast<int32_t>(wanted > 0 ? std::min(wanted, room) : room),
      .deadline = request.deadline,
      .reuse = request.num_prompt_logprobs < 0 ? Request::Reuse::kPrefix : Request::Reuse::kNone,
      .cache_salt = request.cache_salt};
}

}  // namespace jevons

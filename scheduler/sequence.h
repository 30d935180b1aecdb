// A request in work.
#pragma once

#include <cstdint>
#include <vector>

#include "scheduler/block_manager.h"
#include "scheduler/request.h"

namespace jevons {

// Stands for the token of the sampled_idx-th entry that samples in a step whose tokens are not known
// yet.
constexpr int32_t UnknownTokenId(int32_t sampled_idx) { return -2 - sampled_idx; }

// Engine thread only. Owned by the engine; the scheduler points to it between Add and Finish.
struct Sequence {
  enum class State { kWaiting, kRunning, kFinished };

  explicit Sequence(Request r) : request(std::move(r)), token_ids(request.prompt_ids) {}

  int32_t num_tokens() const { return static_cast<int32_t>(token_ids.size()); }
  int32_t num_prompt_tokens() const { return static_cast<int32_t>(request.prompt_ids.size()); }
  int32_t num_new_tokens() const { return num_tokens() - num_prompt_tokens(); }
  int32_t num_known_new_tokens() const { return num_new_tokens() - num_unknown; }

  Request request;
  std::vector<int32_t> token_ids;  // prompt, then what was sampled
  int32_t num_unknown = 0;         // of token_ids the last ones: each an UnknownTokenId
  int32_t num_computed = 0;        // tokens whose keys are in the cache
  BlockTable block_table;
  int32_t num_known_blocks = 0;    // of block_table the first ones: the prefix cache knows them
  int32_t num_cached_tokens = -1;  // of the prompt, found there at the first admission; -1: not yet
  State state = State::kWaiting;
  int32_t num_preemptions = 0;
};

}  // namespace jevons

// One step: which tokens of which sequences are computed, as flat arrays.
#pragma once

#include <cstdint>
#include <vector>

#include "scheduler/sequence.h"

namespace jevons {

struct BatchEntry {
  Sequence* sequence = nullptr;  // null once it has finished while the step was under way
  int32_t num_tokens = 0;        // query tokens of this step, at least one
  int32_t first_position = 0;    // = sequence->num_computed when scheduled
  bool samples = false;  // the last query token is the sequence's last token: a new one is drawn
};

struct Batch {
  std::vector<BatchEntry> entries;
  std::vector<int32_t> token_ids;     // [num_tokens], or an UnknownTokenId of the step before
  std::vector<int32_t> positions;     // [num_tokens]
  std::vector<int64_t> slot_mapping;  // [num_tokens] block_id * kKvBlockTokens + offset
  std::vector<int32_t> cu_seqlens_q;  // [num_entries + 1]
  std::vector<int32_t> context_lens;  // [num_entries], with the tokens of this step
  std::vector<int32_t> block_tables;  // [num_entries, max_blocks], padded with 0
  int32_t max_blocks = 0;

  bool empty() const { return entries.empty(); }
  int32_t num_tokens() const { return static_cast<int32_t>(token_ids.size()); }
};

}  // namespace jevons

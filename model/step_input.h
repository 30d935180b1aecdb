// What a step is asked to compute, and parts of it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace jevons {

// One step's flat arrays; see Batch of the scheduler, which has the same shapes.
struct StepInput {
  std::span<const int32_t> token_ids = {};     // [num_tokens], or DrawnId(row of the last samples)
  std::span<const int32_t> positions = {};     // [num_tokens]
  std::span<const int64_t> slot_mapping = {};  // [num_tokens]
  std::span<const int32_t> cu_seqlens_q = {};  // [num_seqs + 1]
  std::span<const int32_t> context_lens = {};  // [num_seqs]
  std::span<const int32_t> block_tables = {};  // [num_seqs, max_blocks]
  int32_t max_blocks = 0;
};

// A run of a step's rows as a step of its own. Keeps its memory.
class StepPart {
 public:
  // Rows [begin, end), cut to those there are, of a step whose arrays stay. A sequence may lie in
  // several parts: each but the last sees it end where the part does. They give the rows of the step
  // if they are computed layer by layer in their order. Valid until the next call.
  StepInput Cut(const StepInput& step, int64_t begin, int64_t end);

 private:
  std::vector<int32_t> cu_seqlens_q_;
  std::vector<int32_t> context_lens_;
};

}  // namespace jevons

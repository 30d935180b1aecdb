#include "model/step_input.h"

#include <algorithm>

namespace jevons {

StepInput StepPart::Cut(const StepInput& step, int64_t begin, int64_t end) {
  const int64_t num_tokens = static_cast<int64_t>(step.token_ids.size());
  begin = std::min(begin, num_tokens);
  end = std::min(end, num_tokens);
  cu_seqlens_q_.assign(1, 0);
  context_lens_.clear();
  int64_t first_seq = 0;
  for (size_t s = 0; s < step.context_lens.size(); ++s) {
    if (step.cu_seqlens_q[s] >= end || step.cu_seqlens_q[s + 1] <= begin) continue;
    const int64_t last = std::min<int64_t>(step.cu_seqlens_q[s + 1], end);
    if (context_lens_.empty()) first_seq = static_cast<int64_t>(s);
    cu_seqlens_q_.push_back(static_cast<int32_t>(last - begin));
    const int64_t num_later = step.cu_seqlens_q[s + 1] - last;
    context_lens_.push_back(static_cast<int32_t>(step.context_lens[s] - num_later));
  }
  StepInput part;
  part.token_ids = step.token_ids.subspan(begin, end - begin);
  part.positions = step.positions.subspan(begin, end - begin);
  part.slot_mapping = step.slot_mapping.subspan(begin, end - begin);
  part.cu_seqlens_q = cu_seqlens_q_;
  part.context_lens = context_lens_;
  part.block_tables = step.block_tables.subspan(
      first_seq * step.max_blocks, static_cast<int64_t>(context_lens_.size()) * step.max_blocks);
  part.max_blocks = step.max_blocks;
  return part;
}

}  // namespace jevons

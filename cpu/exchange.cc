#include <algorithm>
#include <vector>

#include "cpu/rows.h"

namespace jevons::fast {
namespace {

// Where the next row for a rank goes, and the next result from it. Kept by each thread, so that
// steps after the first allocate nothing.
struct NextOfRank {
  int32_t row = 0;
  int32_t result = 0;
  int32_t token = -1;  // that has the row before `row`
};

std::vector<NextOfRank>& Starts(const RankDispatchArgs& args) {
  thread_local std::vector<NextOfRank> next;
  next.assign(args.num_ranks, {});
  const int32_t* counts = args.plan.counts.ptr<int32_t>();
  for (int32_t r = 1; r < args.num_ranks && args.capacity == 0; ++r) {
    next[r].row = next[r - 1].row + counts[2 * (r - 1)];
    next[r].result = next[r - 1].result + counts[2 * (r - 1) + 1];
  }
  for (int32_t r = 0; r < args.num_ranks && args.capacity > 0; ++r) {
    next[r].row = r * args.capacity;
  }
  return next;
}

// Calls fn(choice, token, slot) for the choices of all tokens, slot -1 for none.
template <typename Fn>
void ForEachChoice(const RankDispatchArgs& args, Fn fn) {
  const int64_t top_k = args.topk_idx.dim(1);
  const int64_t width = args.slot_table.dim(1);
  for (int64_t t = 0; t < args.topk_idx.dim(0); ++t) {
    for (int64_t i = t * top_k; i < (t + 1) * top_k; ++i) {
      const int32_t expert = args.topk_idx.ptr<int32_t>()[i];
      fn(i, static_cast<int32_t>(t),
         expert < 0 ? -1 : args.slot_table.row<int32_t>(expert)[t % width]);
    }
  }
}

void Count(const RankDispatchArgs& args) {
  thread_local std::vector<int32_t> last_token;
  last_token.assign(args.num_ranks, -1);
  int32_t* counts = args.plan.counts.ptr<int32_t>();
  std::fill_n(counts, 2 * args.num_ranks, 0);
  const int64_t num_counted = args.choice_counts.present() ? args.choice_counts.dim(0) : 0;
  ForEachChoice(args, [&](int64_t i, int32_t token, int32_t slot) {
    if (slot < 0) return;
    const int32_t rank = slot / args.slots_per_rank;
    if (last_token[rank] != token) ++counts[2 * rank];
    last_token[rank] = token;
    ++counts[2 * rank + 1];
    const int32_t expert = args.topk_idx.ptr<int32_t>()[i];
    if (expert < num_counted) ++args.choice_counts.ptr<int64_t>()[expert];
  });
}

}  // namespace

void RankDispatch(const RankDispatchArgs& args) {
  Count(args);
  const int64_t top_k = args.topk_idx.dim(1);
  const int32_t results_per_row =
      static_cast<int32_t>(std::min<int64_t>(top_k, args.slots_per_rank));
  int32_t* send_token = args.plan.send_token.ptr<int32_t>();
  int32_t* send_slots = args.plan.send_slots.ptr<int32_t>();
  int32_t* return_row = args.plan.return_row.ptr<int32_t>();
  if (args.capacity > 0) {
    std::fill_n(send_token, args.plan.send_token.dim(0), -1);
    std::fill_n(send_slots, args.plan.send_slots.num_elements(), -1);
  }
  std::vector<NextOfRank>& next_of = Starts(args);
  ForEachChoice(args, [&](int64_t i, int32_t token, int32_t slot) {
    return_row[i] = -1;
    if (slot < 0) return;
    NextOfRank& next = next_of[slot / args.slots_per_rank];
    if (next.token != token) {
      next.token = token;
      send_token[next.row] = token;
      std::fill_n(send_slots + next.row * top_k, top_k, -1);
      if (args.capacity > 0) next.result = next.row * results_per_row;
      ++next.row;
    }
    send_slots[(next.row - 1) * top_k + i % top_k] = slot % args.slots_per_rank;
    return_row[i] = next.result++;
  });
}

void ReturnRows(const ReturnRowsArgs& args) {
  const int64_t num_rows = args.token_row.dim(0);
  if (num_rows == 0) return;
  const int64_t top_k = args.token_row.dim(1);
  const int64_t width = args.row_idx.dim(0) / num_rows;
  int32_t* out = args.row_idx.ptr<int32_t>();
  if (args.masked) std::fill_n(out, args.row_idx.dim(0), -1);
  for (int64_t i = 0; i < num_rows; ++i) {
    if (args.masked) out = args.row_idx.ptr<int32_t>() + i * width;
    for (int64_t j = 0; j < top_k; ++j) {
      const int32_t row = args.token_row.row<int32_t>(i)[j];
      if (row >= 0) *out++ = row;
    }
  }
}

}  // namespace jevons::fast

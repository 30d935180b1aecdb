// RankDispatch and ReturnRows. Contracts in ops/exchange.h.
//
// RankDispatch: a block for each rank reads the choices of all tokens. A lane has a token: it counts the
// token's choices on lower ranks, which is where the rank's rows and results begin, and those on its
// own; then rows are numbered in order of tokens. No block waits for another. 256 tokens of V3 on 32
// ranks are 32 blocks of 8 KB and as much of the slot table: latency decides, that of a choice, its
// slot, and the two walks.
//
// ReturnRows: a lane has a row. Contiguous, one block numbers all choices; masked, every row has its
// own entries, and blocks share them.
//
// Choices are counted with atomic additions of integers, whose order is of no matter: each by the block of
// the rank that serves it.
//
// Barriers. Both: between counting and use of the counts.
#include "cuda/exchange.h"

#include "cuda/device/launch.h"
#include "cuda/device/numeric.h"
#include "cuda/device/thread.h"
#include "cuda/device/warp.h"
#include "cuda/warp_run.h"
#include "cuda/warp_sum.h"

namespace jevons::cuda {
namespace {

using device::LaneIdx;
using device::WarpIdx;

constexpr int kFewThreads = 256;
constexpr int kManyThreads = 512;
constexpr int kMostWarps = kManyThreads / 32;
constexpr int kManyRows = 1024;

struct Counted {
  int32_t rows = 0;
  int32_t choices = 0;
};

__device__ __forceinline__ Counted SumOfWarp(const Counted& value) {
  return {WarpSum(value.rows), WarpSum(value.choices)};
}
// The sum of lower lanes.
__device__ __forceinline__ int32_t LowerSum(int32_t value) {
  int32_t sum = value;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int32_t below = device::ShflUp(sum, distance);
    if (LaneIdx() >= distance) sum += below;
  }
  return sum - value;
}

// -1: no choice.
__device__ __forceinline__ int32_t SlotOf(const RankDispatchParams& p, int32_t token, int j) {
  const int32_t expert = p.topk_idx[static_cast<int64_t>(token) * p.top_k + j];
  if (expert < 0 || expert >= p.num_experts) return -1;
  const int32_t slot =
      p.slot_table[static_cast<int64_t>(expert) * p.table_width + token % p.table_width];
  return slot < p.num_ranks * p.slots_per_rank ? slot : -1;
}

// Whether an earlier choice of the token has the rank of choice j.
__device__ __forceinline__ bool IsRepeated(const RankDispatchParams& p, int32_t token, int j,
                                           int32_t rank) {
  for (int i = 0; i < j; ++i) {
    const int32_t slot = SlotOf(p, token, i);
    if (slot >= 0 && slot / p.slots_per_rank == rank) return true;
  }
  return false;
}

struct DispatchShared {
  Counted lower[kMostWarps];  // of lower ranks, in the warp's run
  Counted own[kMostWarps];    // of this block's rank
};

__device__ __forceinline__ void CountChoice(const RankDispatchParams& p, int32_t token, int j) {
  const int32_t expert = p.topk_idx[static_cast<int64_t>(token) * p.top_k + j];
  if (expert < p.num_counted) device::AtomicAdd(&p.choice_counts[expert], uint64_t{1});
}

__device__ __forceinline__ void CountRun(const RankDispatchParams& p, int32_t rank, const Run& run,
                                         DispatchShared& shared) {
  Counted lower;
  Counted own;
  for (int32_t token = run.begin + LaneIdx(); token < run.end; token += 32) {
    bool has_own = false;
    for (int j = 0; j < p.top_k; ++j) {
      const int32_t slot = SlotOf(p, token, j);
      const int32_t of = slot / p.slots_per_rank;
      if (slot < 0 || of > rank) continue;
      if (of == rank) {
        ++own.choices;
        has_own = true;
        CountChoice(p, token, j);
        continue;
      }
      ++lower.choices;
      // With a capacity no rank's rows depend on those of another.
      if (p.capacity == 0) lower.rows += !IsRepeated(p, token, j, of);
    }
    own.rows += has_own;
  }
  lower = SumOfWarp(lower);
  own = SumOfWarp(own);
  if (LaneIdx() == 0) {
    shared.lower[WarpIdx()] = lower;
    shared.own[WarpIdx()] = own;
  }
}

// Writes a token's row; `result` is where its first result comes back.
__device__ __forceinline__ void WriteRow(const RankDispatchParams& p, int32_t rank, int32_t token,
                                         int32_t row, int32_t result) {
  p.send_token[row] = token;
  for (int j = 0; j < p.top_k; ++j) {
    const int32_t slot = SlotOf(p, token, j);
    const bool mine = slot >= 0 && slot / p.slots_per_rank == rank;
    p.send_slots[static_cast<int64_t>(row) * p.top_k + j] = mine ? slot % p.slots_per_rank : -1;
    if (mine) p.return_row[static_cast<int64_t>(token) * p.top_k + j] = result++;
  }
}

__device__ __forceinline__ int ChoicesOn(const RankDispatchParams& p, int32_t rank, int32_t token) {
  int count = 0;
  for (int j = 0; j < p.top_k; ++j) {
    const int32_t slot = SlotOf(p, token, j);
    count += slot >= 0 && slot / p.slots_per_rank == rank;
  }
  return count;
}

// The choices that no rank serves.
__device__ __forceinline__ void ClearMissing(const RankDispatchParams& p, const Run& run) {
  for (int32_t token = run.begin + LaneIdx(); token < run.end; token += 32) {
    for (int j = 0; j < p.top_k; ++j) {
      if (SlotOf(p, token, j) < 0) p.return_row[static_cast<int64_t>(token) * p.top_k + j] = -1;
    }
  }
}

__global__ void __launch_bounds__(kManyThreads, 1)
    RankDispatchKernel(const __grid_constant__ RankDispatchParams p) {
  device::FollowKernelBefore();
  DispatchShared& shared = device::SharedMemory<DispatchShared>();
  const int32_t rank = device::BlockIdxX();
  const Run run = RunOfWarp(p.num_tokens);
  CountRun(p, rank, run, shared);
  if (rank == 0) ClearMissing(p, run);
  device::SyncThreads();
  Counted next;
  Counted all;
  for (int w = 0; w < device::BlockDim() / 32; ++w) {
    next.rows += shared.lower[w].rows;
    next.choices += shared.lower[w].choices;
    all.rows += shared.own[w].rows;
    all.choices += shared.own[w].choices;
  }
  const bool masked = p.capacity > 0;
  if (masked) next.rows = rank * p.capacity;
  if (device::ThreadIdx() == 0) {
    p.counts[2 * rank] = all.rows;
    p.counts[2 * rank + 1] = all.choices;
  }
  // With a capacity the rows that are left say so.
  const int64_t first_free = int64_t{next.rows} + all.rows;
  const int64_t end = masked ? (int64_t{rank} + 1) * p.capacity : 0;
  for (int64_t row = first_free + device::ThreadIdx(); row < end; row += device::BlockDim()) {
    p.send_token[row] = -1;
    for (int j = 0; j < p.top_k; ++j) p.send_slots[row * p.top_k + j] = -1;
  }
  for (int w = 0; w < WarpIdx(); ++w) {
    next.rows += shared.own[w].rows;
    next.choices += shared.own[w].choices;
  }
  const int per_row = p.top_k < p.slots_per_rank ? p.top_k : p.slots_per_rank;
  for (int32_t first = run.begin; first < run.end; first += 32) {
    const int32_t token = first + LaneIdx();
    const int choices = token < run.end ? ChoicesOn(p, rank, token) : 0;
    const uint32_t lanes = device::Ballot(choices > 0);
    const int32_t row = next.rows + device::PopCount(lanes & ((1u << LaneIdx()) - 1));
    const int32_t result = next.choices + LowerSum(choices);
    if (choices > 0) WriteRow(p, rank, token, row, masked ? row * per_row : result);
    next.rows += device::PopCount(lanes);
    next.choices += WarpSum(choices);
  }
}

struct ReturnShared {
  int32_t choices[kMostWarps];
};

__device__ __forceinline__ int ChoicesOfRow(const ReturnRowsParams& p, int32_t row) {
  int count = 0;
  for (int j = 0; j < p.top_k; ++j) {
    count += p.token_row[static_cast<int64_t>(row) * p.top_k + j] >= 0;
  }
  return count;
}

// The results of a row, from `at` on; returns where the next would go.
__device__ __forceinline__ int64_t WriteResults(const ReturnRowsParams& p, int32_t row,
                                                int64_t at) {
  for (int j = 0; j < p.top_k; ++j) {
    const int32_t grouped = p.token_row[static_cast<int64_t>(row) * p.top_k + j];
    if (grouped >= 0) p.row_idx[at++] = grouped;
  }
  return at;
}

__global__ void __launch_bounds__(kManyThreads, 1)
    ReturnContiguousKernel(const __grid_constant__ ReturnRowsParams p) {
  device::FollowKernelBefore();
  ReturnShared& shared = device::SharedMemory<ReturnShared>();
  const Run run = RunOfWarp(p.num_rows);
  int32_t count = 0;
  for (int32_t row = run.begin + LaneIdx(); row < run.end; row += 32) count += ChoicesOfRow(p, row);
  count = WarpSum(count);
  if (LaneIdx() == 0) shared.choices[WarpIdx()] = count;
  device::SyncThreads();
  int64_t next = 0;
  for (int w = 0; w < WarpIdx(); ++w) next += shared.choices[w];
  for (int32_t first = run.begin; first < run.end; first += 32) {
    const int32_t row = first + LaneIdx();
    const int choices = row < run.end ? ChoicesOfRow(p, row) : 0;
    const int64_t at = next + LowerSum(choices);
    if (choices > 0) WriteResults(p, row, at);
    next += WarpSum(choices);
  }
}

__global__ void __launch_bounds__(kFewThreads)
    ReturnMaskedKernel(const __grid_constant__ ReturnRowsParams p) {
  device::FollowKernelBefore();
  const int64_t row = static_cast<int64_t>(device::BlockIdxX()) * kFewThreads + device::ThreadIdx();
  if (row >= p.num_rows) return;
  int64_t at = WriteResults(p, static_cast<int32_t>(row), row * p.masked_width);
  for (; at < (row + 1) * p.masked_width; ++at) p.row_idx[at] = -1;
}

}  // namespace

ExchangePlanShape ChooseRankDispatch(const RankDispatchParams& p) {
  return {p.num_tokens >= kManyRows ? kManyThreads : kFewThreads, p.num_ranks};
}

ExchangePlanShape ChooseReturnRows(const ReturnRowsParams& p) {
  if (p.masked_width > 0) return {kFewThreads, (p.num_rows + kFewThreads - 1) / kFewThreads};
  return {p.num_rows >= kManyRows ? kManyThreads : kFewThreads, p.num_rows > 0 ? 1 : 0};
}

cudaError_t LaunchRankDispatch(const RankDispatchParams& p, const DeviceFacts& device,
                               cudaStream_t stream) {
  constexpr int64_t kMost = INT32_MAX - 32 * kMostWarps;
  if (p.num_ranks < 1 || p.slots_per_rank < 1 || p.table_width < 1 ||
      int64_t{p.num_tokens} * p.top_k > kMost || int64_t{p.num_ranks} * p.slots_per_rank > kMost ||
      (p.capacity > 0 && p.num_tokens > p.capacity)) {
    return cudaErrorInvalidValue;
  }
  const ExchangePlanShape plan = ChooseRankDispatch(p);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(plan.blocks));
  shape.block = plan.threads;
  shape.early = device.early;
  shape.smem_bytes = sizeof(DispatchShared);
  return Launch(&RankDispatchKernel, shape, stream, p);
}

cudaError_t LaunchReturnRows(const ReturnRowsParams& p, const DeviceFacts& device,
                             cudaStream_t stream) {
  if (int64_t{p.num_rows} * p.top_k > INT32_MAX - 32 * kMostWarps) return cudaErrorInvalidValue;
  const ExchangePlanShape plan = ChooseReturnRows(p);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(plan.blocks));
  shape.block = plan.threads;
  shape.early = device.early;
  shape.smem_bytes = sizeof(ReturnShared);
  return Launch(p.masked_width > 0 ? &ReturnMaskedKernel : &ReturnContiguousKernel, shape, stream,
                p);
}

}  // namespace jevons::cuda

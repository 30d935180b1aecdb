// ExpertDispatch by one block: a counting sort whose columns are warps and whose rows are experts.
// Contract: ExpertDispatchParams in route.h.
#pragma once

#include "cuda/device/numeric.h"
#include "cuda/device/thread.h"
#include "cuda/device/warp.h"
#include "cuda/route.h"
#include "cuda/warp_run.h"

namespace jevons::cuda {

// Of the block.
constexpr int kFusedWarps = 8;
// Experts of one thread in the prefix sum.
constexpr int kExpertsPerThread = kMaxExperts / (32 * kFusedWarps);
static_assert(kExpertsPerThread * 32 * kFusedWarps == kMaxExperts);

__device__ __forceinline__ bool IsExpert(int32_t id, int num_experts) {
  return id >= 0 && id < num_experts;
}
__device__ __forceinline__ uint32_t LowerLanes() { return (1u << device::LaneIdx()) - 1; }

// They begin where the block's shared memory does.
struct DispatchTotals {
  int32_t is_last;  // for IsLastBlock
  int32_t warp_total[kFusedWarps];
};
// After them: i32 [kFusedWarps][num_experts], how many choices of the expert lie in the warp's run,
// then the row of the next one.
__device__ __forceinline__ int32_t* WarpCounts() {
  return reinterpret_cast<int32_t*>(&device::SharedMemory<DispatchTotals>() + 1);
}

// The lanes that hold the same expert as this one; none where it holds no expert.
__device__ __forceinline__ uint32_t LanesWithSame(int32_t id, int num_experts) {
  const bool valid = IsExpert(id, num_experts);
  uint32_t lanes = device::Ballot(valid);
  for (int bit = 0; 1 << bit < num_experts; ++bit) {
    const bool set = (id >> bit & 1) != 0;
    const uint32_t with_bit = device::Ballot(set);
    lanes &= set ? with_bit : ~with_bit;
  }
  return valid ? lanes : 0;
}

// Walks the warp's run, counting. fn(i, at) gets for each choice what its expert's count was before
// it, or -1 where it has no expert.
template <typename Fn>
__device__ __forceinline__ void ForEachChoice(const ExpertDispatchParams& p, const Fn& fn) {
  int32_t* counts = WarpCounts() + device::WarpIdx() * p.num_experts;
  const Run run = RunOfWarp(p.num_tokens * p.top_k);
  for (int32_t first = run.begin; first < run.end; first += 32) {
    const int32_t i = first + device::LaneIdx();
    const int32_t id = i < run.end ? p.topk_idx[i] : -1;
    const uint32_t lanes = LanesWithSame(id, p.num_experts);
    const int rank = device::PopCount(lanes & LowerLanes());
    if (i < run.end) fn(i, lanes == 0 ? -1 : counts[id] + rank);
    device::SyncWarp();
    if (lanes != 0 && rank == 0) counts[id] += device::PopCount(lanes);
    device::SyncWarp();
  }
}

// Turns the warps' counts into the rows where each (expert, warp) begins, and writes cu_rows.
__device__ __forceinline__ void CountsToRows(const ExpertDispatchParams& p) {
  DispatchTotals& totals = device::SharedMemory<DispatchTotals>();
  int32_t* counts = WarpCounts();
  const int first = device::ThreadIdx() * kExpertsPerThread;
  int32_t total = 0;
  for (int e = first; e < first + kExpertsPerThread && e < p.num_experts; ++e) {
    for (int w = 0; w < kFusedWarps; ++w) total += counts[w * p.num_experts + e];
  }
  int32_t up_to_here = total;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int32_t below = device::ShflUp(up_to_here, distance);
    if (device::LaneIdx() >= distance) up_to_here += below;
  }
  if (device::LaneIdx() == 31) totals.warp_total[device::WarpIdx()] = up_to_here;
  device::SyncThreads();
  int32_t row = up_to_here - total;
  for (int w = 0; w < device::WarpIdx(); ++w) row += totals.warp_total[w];
  for (int e = first; e < first + kExpertsPerThread && e < p.num_experts; ++e) {
    p.cu_rows[e] = row;
    for (int w = 0; w < kFusedWarps; ++w) {
      const int32_t count = counts[w * p.num_experts + e];
      counts[w * p.num_experts + e] = row;
      row += count;
    }
    if (e == p.num_experts - 1) p.cu_rows[p.num_experts] = row;
  }
}

inline int DispatchBytes(int num_experts) {
  return static_cast<int>(sizeof(DispatchTotals) + kFusedWarps * num_experts * sizeof(int32_t));
}

__device__ __forceinline__ void DispatchInBlock(const ExpertDispatchParams& p) {
  int32_t* counts = WarpCounts();
  for (int i = device::ThreadIdx(); i < kFusedWarps * p.num_experts; i += device::BlockDim()) {
    counts[i] = 0;
  }
  device::SyncThreads();
  ForEachChoice(p, [](int32_t, int32_t) {});
  device::SyncThreads();
  CountsToRows(p);
  device::SyncThreads();
  ForEachChoice(p, [&](int32_t i, int32_t row) {
    p.token_row[i] = row;
    if (row >= 0) p.row_token[row] = i / p.top_k;
  });
}

}  // namespace jevons::cuda

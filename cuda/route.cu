// RouteTopK, ExpertDispatch and both in one. Formulas in ops/moe.h.
//
// RouteTopK: a warp has a token; lane l holds the experts l, l + 32, ... A choice becomes an
// unsigned number in the same order, and each of the top_k rounds takes the warp's largest, then
// the lowest index that has it.
//
// ExpertDispatch: a block for each expert, and one for "none", reads all choices: it counts those
// of lower experts, which is where its rows begin, and then numbers its own in order. No block
// waits for another and no memory is needed between them. 64 tokens of V3 are 257 blocks of 2 KB;
// 8192 tokens read 257 * 256 KB = 67 MB from L2, some 15 us beside milliseconds of expert work.
//
// RouteAndDispatch: the block that finishes last groups all choices, as a counting sort whose
// columns are warps and whose rows are experts.
//
// Barriers. RouteAndDispatch: those of IsLastBlock. Dispatch: between counting and use of the
// counts. Warp barriers: around what lanes exchange in shared memory.
#include "cuda/route.h"

#include "cuda/device/launch.h"
#include "cuda/dispatch_block.h"
#include "cuda/last_block.h"
#include "cuda/route_token.h"

namespace jevons::cuda {
namespace {

using device::LaneIdx;
using device::WarpIdx;

constexpr int kRouteWarps = 4;
// Choices from which on a block of ExpertDispatch is large.
constexpr int kManyChoices = 4096;
constexpr int kFewThreads = 256;
constexpr int kManyThreads = 1024;
constexpr int kMostWarps = kManyThreads / 32;

template <int kPerLane>
__global__ void __launch_bounds__(32 * kRouteWarps, 2)
    RouteTopKKernel(const __grid_constant__ RouteTopKParams p) {
  device::FollowKernelBefore();
  const int64_t t = static_cast<int64_t>(device::BlockIdxX()) * kRouteWarps + WarpIdx();
  if (t < p.num_tokens) RouteToken<kPerLane>(p, t);
}

struct DispatchShared {
  int32_t lower[kMostWarps];  // choices of lower experts in the warp's run
  int32_t own[kMostWarps];    // choices of this block's expert
};

__global__ void __launch_bounds__(kManyThreads)
    ExpertDispatchKernel(const __grid_constant__ ExpertDispatchParams p) {
  device::FollowKernelBefore();
  DispatchShared& shared = device::SharedMemory<DispatchShared>();
  const int32_t expert = device::BlockIdxX();
  const bool none = expert == p.num_experts;
  const Run run = RunOfWarp(p.num_tokens * p.top_k);
  int32_t lower = 0;
  int32_t own = 0;
  for (int32_t i = run.begin + LaneIdx(); i < run.end; i += 32) {
    const int32_t id = p.topk_idx[i];
    const bool valid = IsExpert(id, p.num_experts);
    lower += valid && id < expert;
    own += id == expert;
    if (none && !valid) p.token_row[i] = -1;
  }
  lower = WarpSum(lower);
  own = WarpSum(own);
  if (LaneIdx() == 0) {
    shared.lower[WarpIdx()] = lower;
    shared.own[WarpIdx()] = own;
  }
  device::SyncThreads();
  int32_t row = 0;
  for (int w = 0; w < device::BlockDim() / 32; ++w) row += shared.lower[w];
  if (device::ThreadIdx() == 0) p.cu_rows[expert] = row;
  if (none) return;
  for (int w = 0; w < WarpIdx(); ++w) row += shared.own[w];
  for (int32_t first = run.begin; first < run.end; first += 32) {
    const int32_t i = first + LaneIdx();
    const bool mine = i < run.end && p.topk_idx[i] == expert;
    const uint32_t lanes = device::Ballot(mine);
    if (mine) {
      const int32_t at = row + device::PopCount(lanes & LowerLanes());
      p.row_token[at] = i / p.top_k;
      p.token_row[i] = at;
    }
    row += device::PopCount(lanes);
  }
}

template <int kPerLane>
__global__ void __launch_bounds__(32 * kFusedWarps, kPerLane > 8 ? 1 : 2)
    RouteAndDispatchKernel(const __grid_constant__ RouteAndDispatchParams p) {
  device::FollowKernelBefore();
  const int64_t t = static_cast<int64_t>(device::BlockIdxX()) * kFusedWarps + WarpIdx();
  if (t < p.route.num_tokens) RouteToken<kPerLane>(p.route, t);
  if (!IsLastBlock(p.num_done, device::SharedMemory<DispatchTotals>().is_last)) return;
  DispatchInBlock({p.route.topk_idx, p.cu_rows, p.row_token, p.token_row, p.route.num_tokens,
                   p.route.top_k + p.route.num_fixed, AllExperts(p.route)});
  ResetBlocks(p.num_done);
}

LaunchShape ShapeOf(const RoutePlan& plan, const DeviceFacts& device) {
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(plan.blocks));
  shape.block = plan.threads;
  shape.smem_bytes = plan.smem_bytes;
  shape.early = device.early;
  return shape;
}

}  // namespace

RoutePlan ChooseRouteTopK(const RouteTopKParams& p) {
  return {32 * kRouteWarps, (p.num_tokens + kRouteWarps - 1) / kRouteWarps,
          RouteBytes(p, kRouteWarps)};
}

RoutePlan ChooseExpertDispatch(const ExpertDispatchParams& p) {
  const bool many = static_cast<int64_t>(p.num_tokens) * p.top_k >= kManyChoices;
  return {many ? kManyThreads : kFewThreads, p.num_experts + 1,
          static_cast<int32_t>(sizeof(DispatchShared))};
}

RoutePlan ChooseRouteAndDispatch(const RouteAndDispatchParams& p) {
  const int route_bytes = RouteBytes(p.route, kFusedWarps);
  const int dispatch_bytes = DispatchBytes(AllExperts(p.route));
  return {32 * kFusedWarps, (p.route.num_tokens + kFusedWarps - 1) / kFusedWarps,
          route_bytes > dispatch_bytes ? route_bytes : dispatch_bytes};
}

cudaError_t LaunchRouteTopK(const RouteTopKParams& p, const DeviceFacts& device,
                            cudaStream_t stream) {
  if (!InContract(p)) return cudaErrorInvalidValue;
  return WithPerLane(p.num_experts, [&](auto per_lane) {
    return Launch(&RouteTopKKernel<per_lane>, ShapeOf(ChooseRouteTopK(p), device), stream, p);
  });
}

cudaError_t LaunchExpertDispatch(const ExpertDispatchParams& p, const DeviceFacts& device,
                                 cudaStream_t stream) {
  if (p.num_experts < 1 || static_cast<int64_t>(p.num_tokens) * p.top_k > INT32_MAX - 32768) {
    return cudaErrorInvalidValue;
  }
  return Launch(&ExpertDispatchKernel, ShapeOf(ChooseExpertDispatch(p), device), stream, p);
}

cudaError_t LaunchRouteAndDispatch(const RouteAndDispatchParams& p, const DeviceFacts& device,
                                   cudaStream_t stream) {
  if (!InContract(p.route) || p.route.num_tokens < 1 || p.route.num_tokens > kMaxFusedTokens) {
    return cudaErrorInvalidValue;
  }
  return WithPerLane(p.route.num_experts, [&](auto per_lane) {
    return Launch(&RouteAndDispatchKernel<per_lane>, ShapeOf(ChooseRouteAndDispatch(p), device),
                  stream, p);
  });
}

}  // namespace jevons::cuda

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
// Barriers. RouteAndDispatch: before a block reports itself done; before its threads know whether
// it was last. Dispatch: between counting and use of the counts. Warp barriers: around what lanes
// exchange in shared memory.
#include "cuda/route.h"

#include <type_traits>

#include "base/float_order.h"
#include "cuda/device/launch.h"
#include "cuda/device/numeric.h"
#include "cuda/device/thread.h"
#include "cuda/device/warp.h"
#include "cuda/route_core.h"

namespace jevons::cuda {
namespace {

using device::LaneIdx;
using device::WarpIdx;

constexpr int kRouteWarps = 4;
constexpr int kFusedWarps = 8;
// Choices from which on a block of ExpertDispatch is large.
constexpr int kManyChoices = 4096;
constexpr int kFewThreads = 256;
constexpr int kManyThreads = 1024;
constexpr int kMostWarps = kManyThreads / 32;
// Experts of one thread in the fused prefix sum.
constexpr int kExpertsPerThread = kMaxExperts / (32 * kFusedWarps);
static_assert(kExpertsPerThread * 32 * kFusedWarps == kMaxExperts);

__host__ __device__ constexpr int AllExperts(const RouteTopKParams& p) {
  return p.num_experts + p.num_fixed;
}

// One warp's part of the shared memory: scores and choices of its token, ratings of its groups.
__host__ __device__ constexpr int RouteFloats(int num_experts, int n_group) {
  return 2 * num_experts + n_group;
}
struct RouteShared {
  float* score;
  float* choice;
  float* rating;
};
__device__ __forceinline__ RouteShared SharedOfWarp(const RouteTopKParams& p) {
  float* base = &device::SharedMemory<float>() + WarpIdx() * RouteFloats(p.num_experts, p.n_group);
  return {base, base + p.num_experts, base + 2 * p.num_experts};
}

__device__ __forceinline__ float WarpSum(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += device::ShflXor(value, distance);
  return value;
}

template <int kPerLane>
__device__ __forceinline__ void ToSoftmax(int num_experts, float (&v)[kPerLane]) {
  float largest = -INFINITY;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (LaneIdx() + 32 * i < num_experts) largest = fmaxf(largest, v[i]);
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    largest = fmaxf(largest, device::ShflXor(largest, distance));
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    v[i] = LaneIdx() + 32 * i < num_experts ? SoftmaxTerm(v[i], largest) : 0.0f;
    sum += v[i];
  }
  sum = WarpSum(sum);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) v[i] /= sum;
}

// Leaves scores and choices in shared memory and choices as keys, 0 where there is no expert.
// Whether all are numbers.
template <int kPerLane>
__device__ __forceinline__ bool ScoreToken(const RouteTopKParams& p, int64_t t,
                                           const RouteShared& shared, uint32_t (&key)[kPerLane]) {
  const float* logits = p.logits + t * p.logits_stride;
  float v[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = LaneIdx() + 32 * i;
    v[i] = e < p.num_experts ? logits[e] : 0.0f;
  }
  if (p.scoring == Scoring::kSoftmax) {
    ToSoftmax(p.num_experts, v);
  } else {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) v[i] = Sigmoid(v[i]);
  }
  bool is_nan = false;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = LaneIdx() + 32 * i;
    key[i] = 0;
    if (e >= p.num_experts) continue;
    const float choice = p.bias == nullptr ? v[i] : v[i] + p.bias[e];
    shared.score[e] = v[i];
    shared.choice[e] = choice;
    is_nan |= choice != choice;
    key[i] = FloatOrderKey(choice);
  }
  const bool all_numbers = device::Ballot(is_nan) == 0;
  device::SyncWarp();
  return all_numbers;
}

__device__ __forceinline__ float RateGroup(const RouteTopKParams& p, const RouteShared& shared,
                                           int group, int size) {
  TwoLargest two;
  // Lanes start at different members, and so in different banks.
  int i = LaneIdx() % size;
  for (int n = 0; n < size; ++n) {
    two.Add(shared.choice[group * size + i]);
    i = i + 1 < size ? i + 1 : 0;
  }
  return p.group_rating == GroupRating::kTop2Sum ? two.first + two.second : two.first;
}

// Gives the experts outside the best groups the key of -inf.
template <int kPerLane>
__device__ __forceinline__ void DropGroups(const RouteTopKParams& p, const RouteShared& shared,
                                           uint32_t (&key)[kPerLane]) {
  const int size = p.num_experts / p.n_group;
  for (int g = LaneIdx(); g < p.n_group; g += 32) shared.rating[g] = RateGroup(p, shared, g, size);
  device::SyncWarp();
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = LaneIdx() + 32 * i;
    if (e >= p.num_experts) continue;
    const int group = e / size;
    const float rating = shared.rating[group];
    int num_before = 0;
    for (int g = 0; g < p.n_group; ++g) {
      num_before += ComesBefore(shared.rating[g], g, rating, group);
    }
    if (num_before >= p.topk_group) key[i] = FloatOrderKey(-INFINITY);
  }
}

// Takes the warp's largest key, of equal ones that of the lowest expert, and gives the expert.
template <int kPerLane>
__device__ __forceinline__ int TakeLargest(uint32_t (&key)[kPerLane]) {
  uint32_t best = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) best = key[i] > best ? key[i] : best;
  best = device::WarpMax(best);
  uint32_t expert = UINT32_MAX;
#pragma unroll
  for (int i = kPerLane - 1; i >= 0; --i) {
    if (key[i] == best) expert = static_cast<uint32_t>(LaneIdx() + 32 * i);
  }
  expert = device::WarpMin(expert);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (static_cast<uint32_t>(LaneIdx() + 32 * i) == expert) key[i] = 0;
  }
  return static_cast<int>(expert);
}

template <int kPerLane>
__device__ __forceinline__ void RouteToken(const RouteTopKParams& p, int64_t t) {
  const int width = p.top_k + p.num_fixed;
  if (p.row_limit != nullptr && t >= *p.row_limit) {
    if (LaneIdx() < width) {
      p.topk_idx[t * width + LaneIdx()] = -1;
      p.topk_weights[t * width + LaneIdx()] = 0;
    }
    return;
  }
  const RouteShared shared = SharedOfWarp(p);
  uint32_t key[kPerLane];
  const bool all_numbers = ScoreToken(p, t, shared, key);
  int chosen = LaneIdx();
  float weight = device::FloatFromBits(0x7FC00000u);
  if (all_numbers) {
    if (p.n_group > 1) DropGroups(p, shared, key);
    for (int j = 0; j < p.top_k; ++j) {
      const int expert = TakeLargest(key);
      if (LaneIdx() == j) chosen = expert;
    }
    const float score = LaneIdx() < p.top_k ? shared.score[chosen] : 0.0f;
    weight = RouteWeight(score, WarpSum(score), p.normalize, p.scale);
  }
  if (LaneIdx() >= width) return;
  const bool fixed = LaneIdx() >= p.top_k;
  p.topk_idx[t * width + LaneIdx()] = fixed ? p.num_experts + LaneIdx() - p.top_k : chosen;
  p.topk_weights[t * width + LaneIdx()] = fixed ? 1.0f : weight;
}

template <int kPerLane>
__global__ void __launch_bounds__(32 * kRouteWarps, 2)
    RouteTopKKernel(const __grid_constant__ RouteTopKParams p) {
  const int64_t t = static_cast<int64_t>(device::BlockIdxX()) * kRouteWarps + WarpIdx();
  if (t < p.num_tokens) RouteToken<kPerLane>(p, t);
}

// The choices of one warp, a run of whole 32s.
struct Run {
  int32_t begin;
  int32_t end;
};
__device__ __forceinline__ Run RunOfWarp(int32_t num_choices) {
  const int num_warps = device::BlockDim() / 32;
  const int32_t num_32s = (num_choices + 31) / 32;
  const int32_t length = (num_32s + num_warps - 1) / num_warps * 32;
  const int32_t begin = WarpIdx() * length;
  return {begin, begin + length < num_choices ? begin + length : num_choices};
}
__device__ __forceinline__ bool IsExpert(int32_t id, int num_experts) {
  return id >= 0 && id < num_experts;
}
__device__ __forceinline__ uint32_t LowerLanes() { return (1u << LaneIdx()) - 1; }
__device__ __forceinline__ int32_t WarpSum(int32_t value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += device::ShflXor(value, distance);
  return value;
}

struct DispatchShared {
  int32_t lower[kMostWarps];  // choices of lower experts in the warp's run
  int32_t own[kMostWarps];    // choices of this block's expert
};

__global__ void __launch_bounds__(kManyThreads)
    ExpertDispatchKernel(const __grid_constant__ ExpertDispatchParams p) {
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

struct FusedShared {
  int32_t is_last;
  int32_t warp_total[kFusedWarps];
};
// After it: i32 [kFusedWarps][num_experts], how many choices of the expert lie in the warp's run,
// then the row of the next one.
__device__ __forceinline__ int32_t* WarpCounts() {
  return reinterpret_cast<int32_t*>(&device::SharedMemory<FusedShared>() + 1);
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
  int32_t* counts = WarpCounts() + WarpIdx() * p.num_experts;
  const Run run = RunOfWarp(p.num_tokens * p.top_k);
  for (int32_t first = run.begin; first < run.end; first += 32) {
    const int32_t i = first + LaneIdx();
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
  FusedShared& shared = device::SharedMemory<FusedShared>();
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
    if (LaneIdx() >= distance) up_to_here += below;
  }
  if (LaneIdx() == 31) shared.warp_total[WarpIdx()] = up_to_here;
  device::SyncThreads();
  int32_t row = up_to_here - total;
  for (int w = 0; w < WarpIdx(); ++w) row += shared.warp_total[w];
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

template <int kPerLane>
__global__ void __launch_bounds__(32 * kFusedWarps, kPerLane > 8 ? 1 : 2)
    RouteAndDispatchKernel(const __grid_constant__ RouteAndDispatchParams p) {
  const int64_t t = static_cast<int64_t>(device::BlockIdxX()) * kFusedWarps + WarpIdx();
  if (t < p.route.num_tokens) RouteToken<kPerLane>(p.route, t);
  device::SyncThreads();
  FusedShared& shared = device::SharedMemory<FusedShared>();
  if (device::ThreadIdx() == 0) {
    shared.is_last = device::AtomicAddAcqRel(p.num_done, 1) == device::GridDimX() - 1;
  }
  device::SyncThreads();
  if (!shared.is_last) return;
  DispatchInBlock({p.route.topk_idx, p.cu_rows, p.row_token, p.token_row, p.route.num_tokens,
                   p.route.top_k + p.route.num_fixed, AllExperts(p.route)});
  if (device::ThreadIdx() == 0) *p.num_done = 0;
}

// 64, 256 and kMaxExperts experts. Calls fn with a kernel's lanes as a constant.
template <typename Fn>
cudaError_t WithPerLane(int num_experts, const Fn& fn) {
  if (num_experts <= 64) return fn(std::integral_constant<int, 2>());
  if (num_experts <= 256) return fn(std::integral_constant<int, 8>());
  return fn(std::integral_constant<int, kMaxExperts / 32>());
}

bool InContract(const RouteTopKParams& p) {
  return p.num_experts >= 1 && AllExperts(p) <= kMaxExperts && p.top_k >= 1 && p.num_fixed >= 0 &&
         p.top_k + p.num_fixed <= kMaxTopK && p.top_k <= p.num_experts && p.n_group >= 1 &&
         p.num_experts % p.n_group == 0;
}

int RouteBytes(const RouteTopKParams& p, int num_warps) {
  return num_warps * RouteFloats(p.num_experts, p.n_group) * static_cast<int>(sizeof(float));
}

LaunchShape ShapeOf(const RoutePlan& plan) {
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(plan.blocks));
  shape.block = plan.threads;
  shape.smem_bytes = plan.smem_bytes;
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
  const int dispatch_bytes =
      static_cast<int>(sizeof(FusedShared) + kFusedWarps * AllExperts(p.route) * sizeof(int32_t));
  return {32 * kFusedWarps, (p.route.num_tokens + kFusedWarps - 1) / kFusedWarps,
          route_bytes > dispatch_bytes ? route_bytes : dispatch_bytes};
}

cudaError_t LaunchRouteTopK(const RouteTopKParams& p, const DeviceFacts&, cudaStream_t stream) {
  if (!InContract(p)) return cudaErrorInvalidValue;
  return WithPerLane(p.num_experts, [&](auto per_lane) {
    return Launch(&RouteTopKKernel<per_lane>, ShapeOf(ChooseRouteTopK(p)), stream, p);
  });
}

cudaError_t LaunchExpertDispatch(const ExpertDispatchParams& p, const DeviceFacts&,
                                 cudaStream_t stream) {
  if (p.num_experts < 1 || static_cast<int64_t>(p.num_tokens) * p.top_k > INT32_MAX - 32768) {
    return cudaErrorInvalidValue;
  }
  return Launch(&ExpertDispatchKernel, ShapeOf(ChooseExpertDispatch(p)), stream, p);
}

cudaError_t LaunchRouteAndDispatch(const RouteAndDispatchParams& p, const DeviceFacts&,
                                   cudaStream_t stream) {
  if (!InContract(p.route) || p.route.num_tokens < 1 || p.route.num_tokens > kMaxFusedTokens) {
    return cudaErrorInvalidValue;
  }
  return WithPerLane(p.route.num_experts, [&](auto per_lane) {
    return Launch(&RouteAndDispatchKernel<per_lane>, ShapeOf(ChooseRouteAndDispatch(p)), stream, p);
  });
}

}  // namespace jevons::cuda

// The choice of one token's experts by one warp. Contract: RouteTopKParams in route.h.
#pragma once

#include <type_traits>

#include "base/float_order.h"
#include "cuda/device/numeric.h"
#include "cuda/device/thread.h"
#include "cuda/device/warp.h"
#include "cuda/route.h"
#include "cuda/route_core.h"
#include "cuda/warp_sum.h"

namespace jevons::cuda {

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
// They begin where the block's shared memory does.
__device__ __forceinline__ RouteShared SharedOfWarp(const RouteTopKParams& p) {
  float* base =
      &device::SharedMemory<float>() + device::WarpIdx() * RouteFloats(p.num_experts, p.n_group);
  return {base, base + p.num_experts, base + 2 * p.num_experts};
}

template <int kPerLane>
__device__ __forceinline__ void ToSoftmax(int num_experts, float (&v)[kPerLane]) {
  float largest = -INFINITY;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (device::LaneIdx() + 32 * i < num_experts) largest = fmaxf(largest, v[i]);
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    largest = fmaxf(largest, device::ShflXor(largest, distance));
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    v[i] = device::LaneIdx() + 32 * i < num_experts ? SoftmaxTerm(v[i], largest) : 0.0f;
    sum += v[i];
  }
  sum = WarpSum(sum);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) v[i] /= sum;
}

template <int kPerLane>
__device__ __forceinline__ void ReadLogits(const RouteTopKParams& p, int64_t t,
                                           float (&v)[kPerLane]) {
  float* const logits = p.logits + t * p.logits_stride;
  if (p.logits_low != nullptr) {
    const float* const low = p.logits_low + t * p.logits_stride;
    // A lane reads what it has written itself.
#pragma unroll 1
    for (int e = device::LaneIdx(); e < p.num_experts; e += 32) logits[e] += low[e];
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = device::LaneIdx() + 32 * i;
    v[i] = e < p.num_experts ? logits[e] : 0.0f;
  }
}

// Leaves scores and choices in shared memory and choices as keys, 0 where there is no expert.
// Whether all are numbers.
template <int kPerLane>
__device__ __forceinline__ bool ScoreToken(const RouteTopKParams& p, int64_t t,
                                           const RouteShared& shared, uint32_t (&key)[kPerLane]) {
  float v[kPerLane];
  ReadLogits(p, t, v);
  if (p.scoring == Scoring::kSoftmax) {
    ToSoftmax(p.num_experts, v);
  } else {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) v[i] = Sigmoid(v[i]);
  }
  bool is_nan = false;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = device::LaneIdx() + 32 * i;
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
  int i = device::LaneIdx() % size;
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
  for (int g = device::LaneIdx(); g < p.n_group; g += 32)
    shared.rating[g] = RateGroup(p, shared, g, size);
  device::SyncWarp();
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = device::LaneIdx() + 32 * i;
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
    if (key[i] == best) expert = static_cast<uint32_t>(device::LaneIdx() + 32 * i);
  }
  expert = device::WarpMin(expert);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (static_cast<uint32_t>(device::LaneIdx() + 32 * i) == expert) key[i] = 0;
  }
  return static_cast<int>(expert);
}

template <int kPerLane>
__device__ __forceinline__ void RouteToken(const RouteTopKParams& p, int64_t t) {
  const int width = p.top_k + p.num_fixed;
  if (p.row_limit != nullptr && t >= *p.row_limit) {
    if (device::LaneIdx() < width) {
      p.topk_idx[t * width + device::LaneIdx()] = -1;
      p.topk_weights[t * width + device::LaneIdx()] = 0;
    }
    return;
  }
  const RouteShared shared = SharedOfWarp(p);
  uint32_t key[kPerLane];
  const bool all_numbers = ScoreToken(p, t, shared, key);
  int chosen = device::LaneIdx();
  float weight = device::FloatFromBits(0x7FC00000u);
  if (all_numbers) {
    if (p.n_group > 1) DropGroups(p, shared, key);
    for (int j = 0; j < p.top_k; ++j) {
      const int expert = TakeLargest(key);
      if (device::LaneIdx() == j) chosen = expert;
    }
    const float score = device::LaneIdx() < p.top_k ? shared.score[chosen] : 0.0f;
    weight = RouteWeight(score, WarpSum(score), p.normalize, p.scale);
  }
  if (device::LaneIdx() >= width) return;
  const bool fixed = device::LaneIdx() >= p.top_k;
  p.topk_idx[t * width + device::LaneIdx()] =
      fixed ? p.num_experts + device::LaneIdx() - p.top_k : chosen;
  p.topk_weights[t * width + device::LaneIdx()] = fixed ? 1.0f : weight;
}

// What the launchers of these kernels share.
inline bool InContract(const RouteTopKParams& p) {
  return p.num_experts >= 1 && AllExperts(p) <= kMaxExperts && p.top_k >= 1 && p.num_fixed >= 0 &&
         p.top_k + p.num_fixed <= kMaxTopK && p.top_k <= p.num_experts && p.n_group >= 1 &&
         p.num_experts % p.n_group == 0;
}
inline int RouteBytes(const RouteTopKParams& p, int num_warps) {
  return num_warps * RouteFloats(p.num_experts, p.n_group) * static_cast<int>(sizeof(float));
}
// 64, 256 and kMaxExperts experts. Calls fn with a kernel's lanes as a constant.
template <typename Fn>
cudaError_t WithPerLane(int num_experts, const Fn& fn) {
  if (num_experts <= 64) return fn(std::integral_constant<int, 2>());
  if (num_experts <= 256) return fn(std::integral_constant<int, 8>());
  return fn(std::integral_constant<int, kMaxExperts / 32>());
}

}  // namespace jevons::cuda

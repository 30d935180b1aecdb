// Exchange among the 32 lanes of a warp. Every lane must call.
#pragma once

#include "cuda/device/thread.h"

namespace jevons::device {

constexpr uint32_t kAllLanes = 0xFFFFFFFFu;

// 9.7.9.6 (shfl.sync). T is a 32-bit or 64-bit number.
template <typename T>
__device__ __forceinline__ T ShflXor(T value, int lane_mask) {
  return __shfl_xor_sync(kAllLanes, value, lane_mask);
}
template <typename T>
__device__ __forceinline__ T Shfl(T value, int source_lane) {
  return __shfl_sync(kAllLanes, value, source_lane);
}
// The value of lane - delta; lanes below delta keep their own.
template <typename T>
__device__ __forceinline__ T ShflUp(T value, int delta) {
  return __shfl_up_sync(kAllLanes, value, static_cast<unsigned>(delta));
}

// Bit l is what lane l gave. 9.7.13.9 (vote.sync.ballot).
__device__ __forceinline__ uint32_t Ballot(bool predicate) {
  return __ballot_sync(kAllLanes, predicate);
}

// The largest and the smallest of what the lanes gave. 9.7.13.12 (redux.sync).
__device__ __forceinline__ uint32_t WarpMax(uint32_t value) {
  return __reduce_max_sync(kAllLanes, value);
}
__device__ __forceinline__ uint32_t WarpMin(uint32_t value) {
  return __reduce_min_sync(kAllLanes, value);
}

}  // namespace jevons::device

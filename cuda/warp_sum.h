#pragma once

#include "cuda/device/warp.h"

namespace jevons::cuda {

// The sum of what the lanes gave, the same in each: by halving distance. Every lane must call.
template <typename T>
__device__ __forceinline__ T WarpSum(T value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += device::ShflXor(value, distance);
  return value;
}

}  // namespace jevons::cuda

#pragma once

#include <cstdint>

#include "cuda/device/thread.h"

namespace jevons::cuda {

// What of `count` things the warp has: a run of whole 32s, as long as those of the block's other warps.
struct Run {
  int32_t begin;
  int32_t end;
};
__device__ __forceinline__ Run RunOfWarp(int32_t count) {
  const int num_warps = device::BlockDim() / 32;
  const int32_t num_32s = (count + 31) / 32;
  const int32_t length = (num_32s + num_warps - 1) / num_warps * 32;
  const int32_t begin = device::WarpIdx() * length;
  return {begin, begin + length < count ? begin + length : count};
}

}  // namespace jevons::cuda

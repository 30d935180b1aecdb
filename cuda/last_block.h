#pragma once

#include "cuda/device/thread.h"

namespace jevons::cuda {

// Whether this block is the last of its grid (one-dimensional) to call: it then sees what the others
// wrote before they called. All threads call, once. `num_done` is 0 before the launch, and after it
// where the last block has called ResetBlocks. `flag` is shared memory that nothing else uses.
// Barriers: before the block reports itself done; before its threads know whether it was last.
__device__ __forceinline__ bool IsLastBlock(int32_t* num_done, int32_t& flag) {
  device::SyncThreads();
  if (device::ThreadIdx() == 0) {
    flag = device::AtomicAddAcqRel(num_done, 1) == device::GridDimX() - 1;
  }
  device::SyncThreads();
  return flag != 0;
}

__device__ __forceinline__ void ResetBlocks(int32_t* num_done) {
  if (device::ThreadIdx() == 0) *num_done = 0;
}

}  // namespace jevons::cuda

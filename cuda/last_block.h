#pragma once

#include "cuda/device/thread.h"

namespace jevons::cuda {

// Whether this block is the last of `num_blocks` to call: it then sees what the others wrote before
// they called. All threads of these blocks call, once. `num_done` is 0 before the first of them.
// `flag` is shared memory that nothing else uses.
// Barriers: before the block reports itself done; before its threads know whether it was last.
__device__ __forceinline__ bool IsLastOf(int num_blocks, int32_t* num_done, int32_t& flag) {
  device::SyncThreads();
  if (device::ThreadIdx() == 0) flag = device::AtomicAddAcqRel(num_done, 1) == num_blocks - 1;
  device::SyncThreads();
  return flag != 0;
}

// The same of all blocks of a grid (one-dimensional). `num_done` is 0 before the launch, and after it
// where the last block has called ResetBlocks.
__device__ __forceinline__ bool IsLastBlock(int32_t* num_done, int32_t& flag) {
  return IsLastOf(device::GridDimX(), num_done, flag);
}

__device__ __forceinline__ void ResetBlocks(int32_t* num_done) {
  if (device::ThreadIdx() == 0) *num_done = 0;
}

// Where the last blocks of a grid meet; all 0 before the launch and after it.
struct BlockMeeting {
  int32_t num_come = 0;
  int32_t num_gone = 0;
};

// For work that the last `num_last` blocks of a grid share: the number of this block among them, or
// less than 0, and then it has no part in it. All threads of all blocks call, once; `number` is
// shared memory that nothing else uses. Barriers: before the block says that it has come; before its
// threads know their number.
__device__ __forceinline__ int NumberAmongLast(BlockMeeting* meeting, int num_last,
                                               int32_t& number) {
  device::SyncThreads();
  if (device::ThreadIdx() == 0) {
    number = device::AtomicAddAcqRel(&meeting->num_come, 1) - (device::GridDimX() - num_last);
  }
  device::SyncThreads();
  return number;
}

// By one block, after which nobody counts any more.
__device__ __forceinline__ void EndMeeting(BlockMeeting* meeting) {
  if (device::ThreadIdx() == 0) *meeting = BlockMeeting{};
}

// Called by those that have a part: waits for all blocks of the grid, and then sees what they wrote
// before they came. It ends if the device can hold as many of the blocks at once as have a part:
// whoever waits is one of the last, all other blocks but those have ended, and so each that is
// missing has a place.
// Barrier: all have come.
__device__ __forceinline__ void WaitForAllBlocks(const BlockMeeting* meeting) {
  if (device::ThreadIdx() == 0) device::WaitAtLeast(&meeting->num_come, device::GridDimX());
  device::SyncThreads();
}

// Whether this call is the last of `num_calls`, each behind WaitForAllBlocks where blocks have come;
// the meeting is over then. As IsLastOf.
__device__ __forceinline__ bool IsLastToGo(BlockMeeting* meeting, int num_calls, int32_t& flag) {
  const bool is_last = IsLastOf(num_calls, &meeting->num_gone, flag);
  if (is_last) EndMeeting(meeting);
  return is_last;
}

// WaitForAllBlocks for parts that end apart from each other: the meeting is over when all have called.
__device__ __forceinline__ void WaitForBlocks(BlockMeeting* meeting, int num_last) {
  if (device::ThreadIdx() == 0) {
    device::WaitAtLeast(&meeting->num_come, device::GridDimX());
    if (device::AtomicAddAcqRel(&meeting->num_gone, 1) == num_last - 1) *meeting = BlockMeeting{};
  }
  device::SyncThreads();
}

}  // namespace jevons::cuda

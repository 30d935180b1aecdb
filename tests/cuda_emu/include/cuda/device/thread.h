// Emulated: cuda/device/thread.h.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "tests/cuda_emu/grid.h"

// CUDA has them in the global namespace.
using std::max;
using std::min;

namespace jevons::device {

inline int ThreadIdx() { return emu::running->idx; }
inline int BlockDim() { return emu::running->block->block_dim; }
inline int LaneIdx() { return ThreadIdx() % 32; }
inline int WarpIdx() { return ThreadIdx() / 32; }
inline int BlockIdxX() { return static_cast<int>(emu::running->block->block_idx.x); }
inline int BlockIdxY() { return static_cast<int>(emu::running->block->block_idx.y); }
inline int BlockIdxZ() { return static_cast<int>(emu::running->block->block_idx.z); }
inline int GridDimX() { return static_cast<int>(emu::running->block->grid_dim.x); }
inline int GridDimY() { return static_cast<int>(emu::running->block->grid_dim.y); }
inline int GridDimZ() { return static_cast<int>(emu::running->block->grid_dim.z); }

// 9.7.13.1 (bar.sync 0).
inline void SyncThreads(emu::Site at = emu::Here()) { emu::SyncThreads(at); }
// 9.7.13.4 (bar.warp.sync).
inline void SyncWarp(emu::Site at = emu::Here()) { emu::SyncWarp(at); }
// 9.7.13.1.
inline void BarrierSync(int id, int num_threads, emu::Site at = emu::Here()) {
  emu::BarrierSync(id, num_threads, at);
}
inline void BarrierArrive(int id, int num_threads, emu::Site at = emu::Here()) {
  emu::BarrierArrive(id, num_threads, at);
}

template <typename T>
T& SharedMemory(emu::Site at = emu::Here()) {
  static_assert(alignof(T) <= 1024);
  return *static_cast<T*>(emu::SharedMemory(sizeof(T), at));
}

// 9.7.13.5 (fence.acq_rel.gpu).
inline void ThreadFence() { emu::ThreadFence(); }

// 9.7.13.6 (atom.add).
inline int32_t AtomicAdd(int32_t* address, int32_t value) {
  emu::Yield();
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
inline uint32_t AtomicAdd(uint32_t* address, uint32_t value) {
  emu::Yield();
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
inline uint64_t AtomicAdd(uint64_t* address, uint64_t value) {
  emu::Yield();
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
inline int32_t AtomicAddAcqRel(int32_t* address, int32_t value) {
  emu::Yield();
  const int32_t before = __atomic_fetch_add(address, value, __ATOMIC_ACQ_REL);
  emu::CounterChanged();
  return before;
}

// 9.7.9.8 (ld.acquire.gpu).
inline void WaitAtLeast(const int32_t* counter, int32_t least, emu::Site at = emu::Here()) {
  while (__atomic_load_n(counter, __ATOMIC_ACQUIRE) < least) {
    emu::WaitForOthers("WaitAtLeast", at);
  }
}

// 9.7.13.13 (griddepcontrol).
inline void WaitForKernelBefore(emu::Site at = emu::Here()) { emu::WaitForKernelBefore(at); }
inline void LetNextKernelBegin() {}
inline void FollowKernelBefore(emu::Site at = emu::Here()) { emu::WaitForKernelBefore(at); }

inline int Opaque(int value) { return value; }

}  // namespace jevons::device

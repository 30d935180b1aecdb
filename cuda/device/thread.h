// Who a thread is, and where it meets others. Section numbers in cuda/device/ are those of the PTX
// ISA, version 9.0.
//
// Kernels speak to the hardware through the headers of this folder alone: each wraps what C++ does
// not have. The emulator (tests/cuda_emu/) puts its own headers of the same names before these.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace jevons::device {

// Blocks are one-dimensional.
__device__ __forceinline__ int ThreadIdx() { return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ int BlockDim() { return static_cast<int>(blockDim.x); }
__device__ __forceinline__ int LaneIdx() { return ThreadIdx() % 32; }
__device__ __forceinline__ int WarpIdx() { return ThreadIdx() / 32; }
__device__ __forceinline__ int BlockIdxX() { return static_cast<int>(blockIdx.x); }
__device__ __forceinline__ int BlockIdxY() { return static_cast<int>(blockIdx.y); }
__device__ __forceinline__ int BlockIdxZ() { return static_cast<int>(blockIdx.z); }
__device__ __forceinline__ int GridDimX() { return static_cast<int>(gridDim.x); }
__device__ __forceinline__ int GridDimY() { return static_cast<int>(gridDim.y); }
__device__ __forceinline__ int GridDimZ() { return static_cast<int>(gridDim.z); }

// All threads of the block. 9.7.13.1 (bar.sync 0).
__device__ __forceinline__ void SyncThreads() { __syncthreads(); }
// All lanes of the warp. 9.7.13.4 (bar.warp.sync).
__device__ __forceinline__ void SyncWarp() { __syncwarp(); }
// The first `num_threads` threads that come, a multiple of 32 and whole warps; id in [1, 15].
// 9.7.13.1.
__device__ __forceinline__ void BarrierSync(int id, int num_threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}
// As BarrierSync, but does not wait.
__device__ __forceinline__ void BarrierArrive(int id, int num_threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}

// The value, of which the compiler knows nothing: what depends on it is computed here and not kept
// in registers across a loop.
__device__ __forceinline__ int Opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// The kernel's one shared-memory struct, 1024-byte aligned: the dynamic shared memory of the
// launch. Its content at the start is not defined.
template <typename T>
__device__ __forceinline__ T& SharedMemory() {
  extern __shared__ __align__(1024) unsigned char jevons_shared_memory[];
  return *reinterpret_cast<T*>(jevons_shared_memory);
}

// What this thread wrote before is seen by every thread of the grid that sees what it writes
// after. 9.7.13.5 (fence.acq_rel.gpu).
__device__ __forceinline__ void ThreadFence() { __threadfence(); }

// Adds to a counter in global or shared memory and gives the value before. Only for integers: no
// sum of ours depends on the order of arrival. 9.7.13.6 (atom.add).
__device__ __forceinline__ int32_t AtomicAdd(int32_t* address, int32_t value) {
  return atomicAdd(address, value);
}
// Wraps around.
__device__ __forceinline__ uint32_t AtomicAdd(uint32_t* address, uint32_t value) {
  return atomicAdd(address, value);
}
__device__ __forceinline__ uint64_t AtomicAdd(uint64_t* address, uint64_t value) {
  return atomicAdd(reinterpret_cast<unsigned long long*>(address), value);
}
// The same with acquire and release order on the whole grid: what was written before one call is
// seen after a later one.
__device__ __forceinline__ int32_t AtomicAddAcqRel(int32_t* address, int32_t value) {
  int32_t before;
  asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(address), "r"(value)
               : "memory");
  return before;
}

// Waits until the counter, which only grows meanwhile, has the value, and then sees what was written
// before the call of AtomicAddAcqRel that gave it. Those it waits for must get to run: last_block.h.
// 9.7.9.8 (ld.acquire.gpu).
__device__ __forceinline__ void WaitAtLeast(const int32_t* counter, int32_t least) {
  int32_t value;
  do {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  } while (value < least);
}

// A kernel that was launched early (launch.h) begins while the one before still runs. Every thread
// calls this on every path: what the kernels before wrote is there from then on, and may be written
// over. Until then a thread may read what no kernel of a step writes: its parameters and weights. No
// thread may end without it, as the kernel behind takes the end of this one for that of all before.
// Elsewhere, and called again, it does nothing. 9.7.13.13 (griddepcontrol.wait).
__device__ __forceinline__ void WaitForKernelBefore() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Once all blocks have called or ended, a kernel that is launched early may begin. What is written
// before or after makes no difference to it: it waits for the end. 9.7.13.13
// (griddepcontrol.launch_dependents).
__device__ __forceinline__ void LetNextKernelBegin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
// Both, of a kernel that has nothing to do before.
__device__ __forceinline__ void FollowKernelBefore() {
  LetNextKernelBegin();
  WaitForKernelBefore();
}

}  // namespace jevons::device

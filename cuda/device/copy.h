// Moving bytes: streaming loads and asynchronous copies from global to shared memory.
#pragma once

#include "cuda/device/thread.h"

namespace jevons::device {

// 16 bytes that this kernel reads once and nobody writes meanwhile: weights. 16-byte aligned.
// 9.7.9.8 (ld.global.nc.L1::no_allocate).
__device__ __forceinline__ uint4 LoadStream16(const void* global) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(global));
  return v;
}

__device__ __forceinline__ uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Copies `bytes` of kSize to shared memory and zeroes the rest; both addresses aligned to kSize.
// Nothing is read where bytes is 0. 9.7.9.25.3.1 (cp.async).
template <int kSize>
__device__ __forceinline__ void CpAsync(void* shared, const void* global, int bytes) {
  static_assert(kSize == 4 || kSize == 8 || kSize == 16);
  if constexpr (kSize == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(shared)),
                 "l"(global), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(SharedAddress(shared)),
                 "l"(global), "n"(kSize), "r"(bytes)
                 : "memory");
  }
}
// Ends this thread's group of copies. 9.7.9.25.3.2.
__device__ __forceinline__ void CpAsyncCommit() { asm volatile("cp.async.commit_group;"); }
// Waits until at most kPending of this thread's groups are under way. Other threads see the bytes
// after a barrier. 9.7.9.25.3.3.
template <int kPending>
__device__ __forceinline__ void CpAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace jevons::device

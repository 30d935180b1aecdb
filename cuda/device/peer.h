// Memory that other devices and the host share with this one.
#pragma once

#include "cuda/device/thread.h"

namespace jevons::device {

// Stores to another device's memory, or to the host's. Who acquires a flag that this thread releases
// later, or a thread that has met it since, sees them. `to` is aligned to the value. 9.7.9.11 (st).
__device__ __forceinline__ void StorePeer(void* to, uint4 value) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(value.x), "r"(value.y),
               "r"(value.z), "r"(value.w)
               : "memory");
}
__device__ __forceinline__ void StorePeer(void* to, uint64_t value) {
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}
__device__ __forceinline__ void StorePeer(void* to, uint32_t value) {
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
__device__ __forceinline__ void StorePeer(void* to, uint8_t value) {
  asm volatile("st.relaxed.sys.global.u8 [%0], %1;" ::"l"(to), "r"(uint32_t{value}) : "memory");
}

// What this thread has stored, and what is ordered before it, is seen by whoever acquires the value.
// 9.7.9.11 (st.release.sys).
__device__ __forceinline__ void StoreReleaseSystem(uint64_t* flag, uint64_t value) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(flag), "l"(value) : "memory");
}

// What the host may write at any time. 9.7.9.8 (ld.relaxed.sys).
__device__ __forceinline__ uint32_t LoadSystem(const uint32_t* address) {
  uint32_t value;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}

enum class Waited { kCome, kStopped, kLong };

// Waits until the flag, which another device raises, has the value, and then sees what was released
// with it. kStopped: `stop`, in memory of the host, is not 0. kLong: neither has come in some
// milliseconds. 9.7.9.8 (ld.acquire.sys).
__device__ __forceinline__ Waited WaitAtLeastSystem(const uint64_t* flag, uint64_t least,
                                                    const uint32_t* stop) {
  constexpr int kLooksLong = 1 << 14;
  constexpr int kLooksAtStop = 1 << 8;  // that memory is far away
  for (int i = 1; i <= kLooksLong; ++i) {
    uint64_t value;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(flag) : "memory");
    if (value >= least) return Waited::kCome;
    if (i % kLooksAtStop != 0) continue;
    if (LoadSystem(stop) != 0) return Waited::kStopped;
  }
  return Waited::kLong;
}

}  // namespace jevons::device

// Barriers in shared memory that count arrivals and bytes, and the bulk copies that complete on
// them. From sm_90 on; on older architectures the calls trap.
#pragma once

#include "cuda/device/copy.h"

namespace jevons::device {

// 9.7.13.15. A phase ends when all arrivals came and all expected bytes did; its number's lowest
// bit is the parity. Phase 0 is the first.
struct alignas(8) MBarrier {
  uint64_t state;
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define JEVONS_SM90(...) asm volatile(__VA_ARGS__)
#else
#define JEVONS_SM90(...) __trap()
#endif

// One thread initialises, then FenceMBarrierInit, then a block barrier.
__device__ __forceinline__ void MBarrierInit(MBarrier& barrier, int num_arrivals) {
  JEVONS_SM90("mbarrier.init.shared.b64 [%0], %1;" ::"r"(SharedAddress(&barrier)), "r"(num_arrivals)
              : "memory");
}
__device__ __forceinline__ void FenceMBarrierInit() {
  JEVONS_SM90("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void MBarrierArrive(MBarrier& barrier) {
  JEVONS_SM90("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(SharedAddress(&barrier)) : "memory");
}
// Arrives, and lets the current phase wait for so many bytes more.
__device__ __forceinline__ void MBarrierArriveExpect(MBarrier& barrier, int bytes) {
  JEVONS_SM90("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(SharedAddress(&barrier)),
              "r"(bytes)
              : "memory");
}
// Waits for the end of the phase of this parity.
__device__ __forceinline__ void MBarrierWait(MBarrier& barrier, uint32_t parity) {
  JEVONS_SM90(
      "{\n.reg .pred p;\nWAIT_%=:\n"
      "mbarrier.try_wait.parity.shared.b64 p, [%0], %1;\n"
      "@p bra DONE_%=;\nbra WAIT_%=;\nDONE_%=:\n}" ::"r"(SharedAddress(&barrier)),
      "r"(parity)
      : "memory");
}

// One thread copies `bytes` (a multiple of 16, addresses 16-byte aligned) to shared memory; they
// count at the barrier when they have come. 9.7.9.25.4.1 (cp.async.bulk).
__device__ __forceinline__ void BulkCopy(void* shared, const void* global, int bytes,
                                         MBarrier& barrier) {
  JEVONS_SM90(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(SharedAddress(shared)),
      "l"(global), "r"(bytes), "r"(SharedAddress(&barrier))
      : "memory");
}

// What this thread wrote to shared memory is seen by wgmma and bulk copies after the next barrier.
// 9.7.13.5 (fence.proxy.async).
__device__ __forceinline__ void FenceProxyAsync() {
  JEVONS_SM90("fence.proxy.async.shared::cta;" ::: "memory");
}

#undef JEVONS_SM90

}  // namespace jevons::device

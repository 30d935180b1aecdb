// Emulated: cuda/device/mbarrier.h.
#pragma once

#include "cuda/device/copy.h"

namespace jevons::device {

// 9.7.13.15.
struct alignas(8) MBarrier {
  uint64_t state;
};

inline void MBarrierInit(MBarrier& barrier, int num_arrivals, emu::Site at = emu::Here()) {
  emu::MBarrierInit(&barrier.state, num_arrivals, at);
}
inline void FenceMBarrierInit() { emu::FenceMBarrierInit(); }
inline void MBarrierArrive(MBarrier& barrier, emu::Site at = emu::Here()) {
  emu::MBarrierArrive(&barrier.state, 0, at);
}
inline void MBarrierArriveExpect(MBarrier& barrier, int bytes, emu::Site at = emu::Here()) {
  emu::MBarrierArrive(&barrier.state, bytes, at);
}
inline void MBarrierWait(MBarrier& barrier, uint32_t parity, emu::Site at = emu::Here()) {
  emu::MBarrierWait(&barrier.state, parity, at);
}

// 9.7.9.25.4.1 (cp.async.bulk).
inline void BulkCopy(void* shared, const void* global, int bytes, MBarrier& barrier,
                     emu::Site at = emu::Here()) {
  emu::BulkCopy(shared, global, bytes, &barrier.state, at);
}

// 9.7.13.5 (fence.proxy.async).
inline void FenceProxyAsync() { emu::FenceProxyAsync(); }

}  // namespace jevons::device

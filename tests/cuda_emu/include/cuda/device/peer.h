// Emulated: cuda/device/peer.h.
#pragma once

#include "cuda/device/thread.h"

namespace jevons::device {

// 9.7.9.11 (st).
inline void StorePeer(void* to, uint4 value, emu::Site at = emu::Here()) {
  emu::StorePeer(to, &value, sizeof(value), at);
}
inline void StorePeer(void* to, uint64_t value, emu::Site at = emu::Here()) {
  emu::StorePeer(to, &value, sizeof(value), at);
}
inline void StorePeer(void* to, uint32_t value, emu::Site at = emu::Here()) {
  emu::StorePeer(to, &value, sizeof(value), at);
}
inline void StorePeer(void* to, uint8_t value, emu::Site at = emu::Here()) {
  emu::StorePeer(to, &value, sizeof(value), at);
}

// 9.7.9.11 (st.release.sys).
inline void StoreReleaseSystem(uint64_t* flag, uint64_t value, emu::Site at = emu::Here()) {
  emu::StoreReleaseSystem(flag, value, at);
}

// 9.7.9.8 (ld.relaxed.sys).
inline uint32_t LoadSystem(const uint32_t* address) {
  return __atomic_load_n(address, __ATOMIC_RELAXED);
}

enum class Waited { kCome, kStopped, kLong };

// 9.7.9.8 (ld.acquire.sys).
inline Waited WaitAtLeastSystem(const uint64_t* flag, uint64_t least, const uint32_t* stop,
                                emu::Site at = emu::Here()) {
  constexpr int kLooksLong = 4;
  for (int i = 0; i < kLooksLong; ++i) {
    if (emu::LoadAcquireSystem(flag, at) >= least) return Waited::kCome;
    if (LoadSystem(stop) != 0) return Waited::kStopped;
    emu::WaitForDevices("WaitAtLeastSystem", at);
  }
  return Waited::kLong;
}

}  // namespace jevons::device

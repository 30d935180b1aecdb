// Emulated: cuda/device/copy.h.
#pragma once

#include "cuda/device/thread.h"

namespace jevons::device {

// 9.7.9.8 (ld.global.nc.L1::no_allocate).
inline uint4 LoadStream16(const void* global, emu::Site at = emu::Here()) {
  uint4 value;
  emu::LoadGlobal(&value, global, sizeof(value), at);
  return value;
}

inline uint32_t SharedAddress(const void* shared, emu::Site at = emu::Here()) {
  return emu::SharedAddress(shared, at);
}

// 9.7.9.25.3.1 (cp.async).
template <int kSize>
void CpAsync(void* shared, const void* global, int bytes, emu::Site at = emu::Here()) {
  static_assert(kSize == 4 || kSize == 8 || kSize == 16);
  emu::CpAsync(shared, global, kSize, bytes, at);
}
// 9.7.9.25.3.2.
inline void CpAsyncCommit(emu::Site at = emu::Here()) { emu::CpAsyncCommit(at); }
// 9.7.9.25.3.3.
template <int kPending>
void CpAsyncWait(emu::Site at = emu::Here()) {
  emu::CpAsyncWait(kPending, at);
}

}  // namespace jevons::device

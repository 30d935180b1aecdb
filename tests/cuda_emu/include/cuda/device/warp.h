// Emulated: cuda/device/warp.h.
#pragma once

#include <cstring>

#include "cuda/device/thread.h"

namespace jevons::device {

constexpr uint32_t kAllLanes = 0xFFFFFFFFu;

namespace internal {

template <typename T>
T Exchange(const char* name, T value, int source_lane, emu::Site at) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = emu::Exchange(name, bits, source_lane, at);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace internal

// 9.7.9.6 (shfl.sync).
template <typename T>
T ShflXor(T value, int lane_mask, emu::Site at = emu::Here()) {
  return internal::Exchange("ShflXor", value, LaneIdx() ^ lane_mask, at);
}
template <typename T>
T Shfl(T value, int source_lane, emu::Site at = emu::Here()) {
  return internal::Exchange("Shfl", value, source_lane, at);
}
template <typename T>
T ShflUp(T value, int delta, emu::Site at = emu::Here()) {
  const int lane = LaneIdx();
  return internal::Exchange("ShflUp", value, lane < delta ? lane : lane - delta, at);
}

// 9.7.13.9 (vote.sync.ballot).
inline uint32_t Ballot(bool predicate, emu::Site at = emu::Here()) {
  const uint64_t* const values = emu::Gather("Ballot", predicate, at);
  uint32_t ballot = 0;
  for (int lane = 0; lane < 32; ++lane) ballot |= static_cast<uint32_t>(values[lane]) << lane;
  return ballot;
}

// 9.7.13.12 (redux.sync).
inline uint32_t WarpMax(uint32_t value, emu::Site at = emu::Here()) {
  const uint64_t* const values = emu::Gather("WarpMax", value, at);
  return static_cast<uint32_t>(*std::max_element(values, values + 32));
}
inline uint32_t WarpMin(uint32_t value, emu::Site at = emu::Here()) {
  const uint64_t* const values = emu::Gather("WarpMin", value, at);
  return static_cast<uint32_t>(*std::min_element(values, values + 32));
}

}  // namespace jevons::device

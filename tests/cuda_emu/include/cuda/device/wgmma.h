// Emulated: cuda/device/wgmma.h.
#pragma once

#include "cuda/device/copy.h"

namespace jevons::device {

constexpr bool kHasWgmma = true;

enum class Swizzle : uint32_t { kNone = 0, k128 = 1, k64 = 2, k32 = 3 };

// 9.7.15.5.1 (matrix descriptor).
inline uint64_t SmemDescriptor(const void* shared, int leading_bytes, int stride_bytes,
                               Swizzle swizzle, emu::Site at = emu::Here()) {
  const auto field = [](uint32_t bytes) { return static_cast<uint64_t>((bytes & 0x3FFFF) >> 4); };
  return field(emu::SharedAddress(shared, at)) | field(static_cast<uint32_t>(leading_bytes)) << 16 |
         field(static_cast<uint32_t>(stride_bytes)) << 32 | static_cast<uint64_t>(swizzle) << 62;
}

// 9.7.15.7.1. The place of the call is known for at most one accumulator.
inline void WgmmaFence(emu::Site at = emu::Here()) { emu::WgmmaFence(at); }
template <int kNum>
void WgmmaFence(float (&)[kNum], emu::Site at = emu::Here()) {
  emu::WgmmaFence(at);
}
template <typename D0, typename D1, typename... D>
void WgmmaFence(D0&, D1&, D&...) {
  emu::WgmmaFence({});
}
// 9.7.15.7.2.
inline void WgmmaCommit(emu::Site at = emu::Here()) { emu::WgmmaCommit(at); }
// 9.7.15.7.3.
template <int kPending>
void WgmmaWait(emu::Site at = emu::Here()) {
  emu::WgmmaWait(kPending, at);
}
template <int kPending, int kNum>
void WgmmaWait(float (&)[kNum], emu::Site at = emu::Here()) {
  emu::WgmmaWait(kPending, at);
}
template <int kPending, typename D0, typename D1, typename... D>
void WgmmaWait(D0&, D1&, D&...) {
  emu::WgmmaWait(kPending, {});
}

// 9.7.15.5.2 (wgmma.mma_async).
template <int N, bool kTransposedB = false>
void WgmmaBf16(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b_descriptor, bool accumulate,
               emu::Site at = emu::Here()) {
  static_assert(N == 8 || N == 16 || N == 32 || N == 64 || N == 128 || N == 256);
  emu::WgmmaIssue({.n = N,
                   .d = d,
                   .a = a,
                   .b_descriptor = b_descriptor,
                   .accumulate = accumulate,
                   .transposed_b = kTransposedB},
                  at);
}
template <int N, bool kTransposedB = false>
void WgmmaBf16Shared(float (&d)[N / 2], uint64_t a_descriptor, uint64_t b_descriptor,
                     bool accumulate, emu::Site at = emu::Here()) {
  static_assert(N == 8 || N == 16 || N == 32 || N == 64 || N == 128 || N == 256);
  emu::WgmmaIssue({.n = N,
                   .d = d,
                   .a_descriptor = a_descriptor,
                   .b_descriptor = b_descriptor,
                   .accumulate = accumulate,
                   .transposed_b = kTransposedB},
                  at);
}
template <int N>
void WgmmaE4m3(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b_descriptor, bool accumulate,
               emu::Site at = emu::Here()) {
  static_assert(N == 32 || N == 128);
  emu::WgmmaIssue({.n = N,
                   .d = d,
                   .a = a,
                   .b_descriptor = b_descriptor,
                   .accumulate = accumulate,
                   .e4m3 = true},
                  at);
}

// 9.7.19.5 (setmaxnreg).
template <int kNum>
void GiveUpRegisters(emu::Site at = emu::Here()) {
  static_assert(kNum >= 24 && kNum <= 256 && kNum % 8 == 0);
  emu::SetRegisters(kNum, at);
}
template <int kNum>
void TakeRegisters(emu::Site at = emu::Here()) {
  static_assert(kNum >= 24 && kNum <= 256 && kNum % 8 == 0);
  emu::SetRegisters(kNum, at);
}

}  // namespace jevons::device

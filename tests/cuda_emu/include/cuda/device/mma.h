// Emulated: cuda/device/mma.h.
#pragma once

#include "cuda/device/copy.h"

namespace jevons::device {

// 9.7.14.5.8 (mma.m16n8k16, bf16).
inline void MmaBf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                    emu::Site at = emu::Here()) {
  emu::MmaBf16(d, a, b, at);
}

// 9.7.14.5.15 (ldmatrix).
inline void LdMatrix4(uint32_t (&r)[4], const void* shared_row, emu::Site at = emu::Here()) {
  emu::LdMatrix4(r, shared_row, false, at);
}
inline void LdMatrix4Transposed(uint32_t (&r)[4], const void* shared_row,
                                emu::Site at = emu::Here()) {
  emu::LdMatrix4(r, shared_row, true, at);
}

}  // namespace jevons::device

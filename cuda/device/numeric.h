// bf16 and FP8 as bits, conversions, and the fast functions of the hardware.
#pragma once

#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/device/bf16.h"

namespace jevons::device {

__device__ __forceinline__ float ToFloat(Bf16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}
__device__ __forceinline__ float LowToFloat(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float HighToFloat(uint32_t pair) {
  return __uint_as_float(pair & 0xFFFF0000u);
}
// Round to nearest even, NaN stays NaN. 9.7.9.21 (cvt.rn.bf16x2.f32).
__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ __forceinline__ Bf16 ToBf16(float value) {
  return Bf16{static_cast<uint16_t>(PackBf16(value, 0.0f))};
}

// Products of two pairs of bf16, each to nearest even, subnormals kept. 9.7.4.4 (fma.rn.bf16x2 with
// -0 added).
__device__ __forceinline__ uint32_t MulBf16(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(a), "r"(b), "r"(0x80008000u));
  return product;
}

// Four e4m3 (the first in the low byte) as two pairs of bf16: exact. NaN becomes NaN.
// 9.7.9.21 (cvt.rn.f16x2.e4m3x2) where the hardware has it, from sm_89 on.
__device__ __forceinline__ void E4m3ToBf16(uint32_t four, uint32_t& first, uint32_t& second) {
#if __CUDA_ARCH__ >= 890
  uint32_t half[2];
  const uint16_t low = static_cast<uint16_t>(four);
  const uint16_t high = static_cast<uint16_t>(four >> 16);
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(half[0]) : "h"(low));
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(half[1]) : "h"(high));
  uint32_t* const out[2] = {&first, &second};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float a, b;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}"
        : "=f"(a), "=f"(b)
        : "r"(half[i]));
    *out[i] = PackBf16(a, b);
  }
#else
  // Exponent and mantissa of e4m3 moved to those of bf16; the product with 2^120 mends the bias
  // and the subnormals.
  float value[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t byte = four >> (8 * i) & 0xFFu;
    const uint32_t bits = (byte & 0x80u) << 24 | (byte & 0x7Fu) << 20;
    value[i] = __uint_as_float(bits) * 0x1p120f;
    if ((byte & 0x7Fu) == 0x7Fu) value[i] = __uint_as_float(0x7FC00000u);
  }
  first = PackBf16(value[0], value[1]);
  second = PackBf16(value[2], value[3]);
#endif
}
// To nearest even, beyond 448 to 448, NaN stays NaN. 9.7.9.21 (cvt.rn.satfinite.e4m3x2.f32).
__device__ __forceinline__ uint8_t ToE4m3(float value) {
  return static_cast<uint8_t>(__nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3));
}

// Byte i of the result is byte (selector >> 4 * i) % 8 of the eight of a and b, those of a first.
// 9.7.9.7 (prmt).
__device__ __forceinline__ uint32_t PermuteBytes(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}
// Bits that are set. 9.7.1.14 (popc).
__device__ __forceinline__ int PopCount(uint32_t value) { return __popc(value); }

__device__ __forceinline__ uint32_t FloatBits(float value) { return __float_as_uint(value); }
__device__ __forceinline__ float FloatFromBits(uint32_t bits) { return __uint_as_float(bits); }

// About 2 ulp. 9.7.3.21 (ex2.approx), 9.7.3.20 (lg2.approx), 9.7.3.17 (rsqrt.approx).
__device__ __forceinline__ float Exp2(float value) {
  float out;
  asm("ex2.approx.f32 %0, %1;" : "=f"(out) : "f"(value));
  return out;
}
__device__ __forceinline__ float Log2(float value) {
  float out;
  asm("lg2.approx.f32 %0, %1;" : "=f"(out) : "f"(value));
  return out;
}
// a * b + c rounded once, here and in the emulator.
__device__ __forceinline__ float Fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }

}  // namespace jevons::device

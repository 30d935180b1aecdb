// Products of a warpgroup: four warps, the first of them a multiple of four. Every lane of the four
// must call, with the same descriptors. For sm_90a alone; elsewhere the calls trap.
//
// The order: write the operands (FenceProxyAsync and a barrier where threads wrote to shared
// memory), WgmmaFence, any number of WgmmaBf16, WgmmaCommit, WgmmaWait. Until the wait the
// accumulators and the registers of a must not be touched and what is read in shared memory must
// not change.
#pragma once

#include "cuda/device/copy.h"

namespace jevons::device {

// Whether this compilation is for an architecture that has them: a kernel's body that needs them is
// left out of the others.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kHasWgmma = true;
#else
constexpr bool kHasWgmma = false;
#endif

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define JEVONS_SM90A(...) asm volatile(__VA_ARGS__)
#else
#define JEVONS_SM90A(...) __trap()
#endif

// The 16-byte pieces of each 128 bytes are exchanged by XOR with the low one, two or three bits of
// the number (address / 128) of those 128 bytes.
enum class Swizzle : uint32_t { kNone = 0, k128 = 1, k64 = 2, k32 = 3 };

// Where an operand of bf16 lies in shared memory; 9.7.15.5.1 (matrix descriptor). Let i count along
// M or N, and k along K. W is the width of the swizzle in bytes; with a swizzle the tiles of 8 W
// bytes begin at a multiple of their size, and only `shared` may point into one, by a multiple of
// 16 bytes less than W.
//   K-major, none      i / 8 * stride + i % 8 * 16 + k / 8 * leading + k % 8 * 2
//   K-major, W         i / 8 * stride + i % 8 * W + k * 2; leading counts nothing
//   transposed, none   i / 8 * stride + i % 8 * 2 + k / 8 * leading + k % 8 * 16
//   transposed, W      i / (W/2) * leading + i % (W/2) * 2 + k / 8 * stride + k % 8 * W
__device__ __forceinline__ uint64_t SmemDescriptor(const void* shared, int leading_bytes,
                                                   int stride_bytes, Swizzle swizzle) {
  const uint64_t start = SharedAddress(shared);
  return (start & 0x3FFFF) >> 4 | static_cast<uint64_t>((leading_bytes & 0x3FFFF) >> 4) << 16 |
         static_cast<uint64_t>((stride_bytes & 0x3FFFF) >> 4) << 32 |
         static_cast<uint64_t>(swizzle) << 62;
}

namespace internal {

// Keeps the compiler from moving a use of the registers past this point.
template <int kNum>
__device__ __forceinline__ void PinRegisters(float (&d)[kNum]) {
#pragma unroll
  for (int i = 0; i < kNum; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

}  // namespace internal

// Before the first product, and after registers that a product uses were written. 9.7.15.7.1.
// `accumulators` are those that the next products use.
template <typename... D>
__device__ __forceinline__ void WgmmaFence(D&... accumulators) {
  (internal::PinRegisters(accumulators), ...);
  JEVONS_SM90A("wgmma.fence.sync.aligned;" ::: "memory");
}
// Ends this warp's group of products. 9.7.15.7.2.
__device__ __forceinline__ void WgmmaCommit() {
  JEVONS_SM90A("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most kPending of this warp's groups are under way. `accumulators` are those that
// are complete then and read next. 9.7.15.7.3.
template <int kPending, typename... D>
__device__ __forceinline__ void WgmmaWait(D&... accumulators) {
  JEVONS_SM90A("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  (internal::PinRegisters(accumulators), ...);
}

// Operands %0 .. of the accumulator, as text and as a list.
#define JEVONS_REGISTERS_4 "%0, %1, %2, %3"
#define JEVONS_REGISTERS_8 \
  JEVONS_REGISTERS_4       \
  ", %4, %5, %6, %7"
#define JEVONS_REGISTERS_16 \
  JEVONS_REGISTERS_8        \
  ", %8, %9, %10, %11, %12, %13, %14, %15"
#define JEVONS_REGISTERS_32 \
  JEVONS_REGISTERS_16       \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define JEVONS_REGISTERS_64                                                          \
  JEVONS_REGISTERS_32                                                                \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define JEVONS_REGISTERS_128                                                         \
  JEVONS_REGISTERS_64                                                                \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95" \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109" \
  ", %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122"   \
  ", %123, %124, %125, %126, %127"
#define JEVONS_D_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define JEVONS_D_8(d, i) JEVONS_D_4(d, i), JEVONS_D_4(d, i + 4)
#define JEVONS_D_16(d, i) JEVONS_D_8(d, i), JEVONS_D_8(d, i + 8)
#define JEVONS_D_32(d, i) JEVONS_D_16(d, i), JEVONS_D_16(d, i + 16)
#define JEVONS_D_64(d, i) JEVONS_D_32(d, i), JEVONS_D_32(d, i + 32)
#define JEVONS_D_128(d, i) JEVONS_D_64(d, i), JEVONS_D_64(d, i + 64)

// d, the accumulator, has the operands %0 .. %(n / 2 - 1); `kind` says K and the types; `a`, `b`, `add`
// and `orders` are the text of what follows, the other arguments its operands.
#define JEVONS_WGMMA_OF(n, half_n, kind, a, b, add, orders, ...)                          \
  JEVONS_SM90A("{\n.reg .pred p;\nsetp.ne.b32 p, " add                                    \
               ", 0;\n"                                                                   \
               "wgmma.mma_async.sync.aligned.m64n" #n kind " {" JEVONS_REGISTERS_##half_n \
               "}, " a ", " b ", p, 1, 1" orders ";\n}"                                   \
               : JEVONS_D_##half_n(d, 0)                                                  \
               : __VA_ARGS__)
#define JEVONS_WGMMA(n, half_n, a, b, add, orders, ...) \
  JEVONS_WGMMA_OF(n, half_n, "k16.f32.bf16.bf16", a, b, add, ", " orders, __VA_ARGS__)

// d [64, N] += a [64, 16] b [16, N], or = where accumulate is false. Warp w of the four has the rows
// 16 w .. 16 w + 15, its lane l with g = l / 4 and c = 2 * (l % 4):
//   d[4 j], d[4 j + 1]      row g      columns 8 j + c, 8 j + c + 1
//   d[4 j + 2], d[4 j + 3]  row g + 8  the same columns
//   a[0] .. a[3]            its 16 rows as in MmaBf16
// b is K-major, or transposed. 9.7.15.5.2 (wgmma.mma_async).
template <int N, bool kTransposedB = false>
__device__ __forceinline__ void WgmmaBf16(float (&d)[N / 2], const uint32_t (&a)[4],
                                          uint64_t b_descriptor, bool accumulate) {
  static_assert(N == 8 || N == 16 || N == 32 || N == 64 || N == 128 || N == 256);
#define JEVONS_OPERANDS                                                                    \
  "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_descriptor), "r"(int32_t{accumulate}), \
      "n"(int32_t{kTransposedB})
  if constexpr (N == 8) {
    JEVONS_WGMMA(8, 4, "{%4, %5, %6, %7}", "%8", "%9", "%10", JEVONS_OPERANDS);
  }
  if constexpr (N == 16) {
    JEVONS_WGMMA(16, 8, "{%8, %9, %10, %11}", "%12", "%13", "%14", JEVONS_OPERANDS);
  }
  if constexpr (N == 32) {
    JEVONS_WGMMA(32, 16, "{%16, %17, %18, %19}", "%20", "%21", "%22", JEVONS_OPERANDS);
  }
  if constexpr (N == 64) {
    JEVONS_WGMMA(64, 32, "{%32, %33, %34, %35}", "%36", "%37", "%38", JEVONS_OPERANDS);
  }
  if constexpr (N == 128) {
    JEVONS_WGMMA(128, 64, "{%64, %65, %66, %67}", "%68", "%69", "%70", JEVONS_OPERANDS);
  }
  if constexpr (N == 256) {
    JEVONS_WGMMA(256, 128, "{%128, %129, %130, %131}", "%132", "%133", "%134", JEVONS_OPERANDS);
  }
#undef JEVONS_OPERANDS
}

// The same with a in shared memory too, K-major.
template <int N, bool kTransposedB = false>
__device__ __forceinline__ void WgmmaBf16Shared(float (&d)[N / 2], uint64_t a_descriptor,
                                                uint64_t b_descriptor, bool accumulate) {
  static_assert(N == 8 || N == 16 || N == 32 || N == 64 || N == 128 || N == 256);
#define JEVONS_OPERANDS \
  "l"(a_descriptor), "l"(b_descriptor), "r"(int32_t{accumulate}), "n"(int32_t{kTransposedB})
  if constexpr (N == 8) {
    JEVONS_WGMMA(8, 4, "%4", "%5", "%6", "0, %7", JEVONS_OPERANDS);
  }
  if constexpr (N == 16) {
    JEVONS_WGMMA(16, 8, "%8", "%9", "%10", "0, %11", JEVONS_OPERANDS);
  }
  if constexpr (N == 32) {
    JEVONS_WGMMA(32, 16, "%16", "%17", "%18", "0, %19", JEVONS_OPERANDS);
  }
  if constexpr (N == 64) {
    JEVONS_WGMMA(64, 32, "%32", "%33", "%34", "0, %35", JEVONS_OPERANDS);
  }
  if constexpr (N == 128) {
    JEVONS_WGMMA(128, 64, "%64", "%65", "%66", "0, %67", JEVONS_OPERANDS);
  }
  if constexpr (N == 256) {
    JEVONS_WGMMA(256, 128, "%128", "%129", "%130", "0, %131", JEVONS_OPERANDS);
  }
#undef JEVONS_OPERANDS
}

// d [64, N] += a [64, 32] b [32, N], or = where accumulate is false, both of e4m3. d as in WgmmaBf16; of
// its 16 rows a lane has of a, with g = l / 4 and c = 4 * (l % 4), the first column in the low byte:
//   a[0] rows g      columns c .. c+3      a[2] rows g      columns c+16 .. c+19
//   a[1] rows g + 8  columns c .. c+3      a[3] rows g + 8  columns c+16 .. c+19
// b is K-major: in the formulas of SmemDescriptor two columns have the place of one of bf16. The sum
// keeps fewer bits than those of d: kLinearFp8Tolerance. 9.7.15.5.2 (wgmma.mma_async).
template <int N>
__device__ __forceinline__ void WgmmaE4m3(float (&d)[N / 2], const uint32_t (&a)[4],
                                          uint64_t b_descriptor, bool accumulate) {
  static_assert(N == 32 || N == 128);
#define JEVONS_OPERANDS \
  "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_descriptor), "r"(int32_t{accumulate})
  if constexpr (N == 32) {
    JEVONS_WGMMA_OF(32, 16, "k32.f32.e4m3.e4m3", "{%16, %17, %18, %19}", "%20", "%21", "",
                    JEVONS_OPERANDS);
  }
  if constexpr (N == 128) {
    JEVONS_WGMMA_OF(128, 64, "k32.f32.e4m3.e4m3", "{%64, %65, %66, %67}", "%68", "%69", "",
                    JEVONS_OPERANDS);
  }
#undef JEVONS_OPERANDS
}

// The warps of a warpgroup, all of them, give up registers, or wait until enough were given up to take
// more: a thread has kNum then, a multiple of 8 in [24, 256]. The kernel has bounds of its launch, by
// which all begin with as many. 9.7.19.5 (setmaxnreg).
template <int kNum>
__device__ __forceinline__ void GiveUpRegisters() {
  static_assert(kNum >= 24 && kNum <= 256 && kNum % 8 == 0);
  JEVONS_SM90A("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kNum));
}
template <int kNum>
__device__ __forceinline__ void TakeRegisters() {
  static_assert(kNum >= 24 && kNum <= 256 && kNum % 8 == 0);
  JEVONS_SM90A("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kNum));
}

#undef JEVONS_WGMMA
#undef JEVONS_WGMMA_OF
#undef JEVONS_REGISTERS_4
#undef JEVONS_D_4
#undef JEVONS_REGISTERS_8
#undef JEVONS_D_8
#undef JEVONS_REGISTERS_16
#undef JEVONS_D_16
#undef JEVONS_REGISTERS_32
#undef JEVONS_D_32
#undef JEVONS_REGISTERS_64
#undef JEVONS_D_64
#undef JEVONS_REGISTERS_128
#undef JEVONS_D_128
#undef JEVONS_SM90A

}  // namespace jevons::device

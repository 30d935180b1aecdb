// Matrix products of one warp and the loads that feed them. Every lane must call.
#pragma once

#include "cuda/device/copy.h"

namespace jevons::device {

// d += a * b with a [16, 16] by rows, b [16, 8] by columns, d [16, 8] f32. Lane l has g = l / 4 and
// c = 2 * (l % 4):
//   a[0] rows g      columns c, c+1       d[0], d[1]  row g      columns c, c+1
//   a[1] rows g + 8  columns c, c+1       d[2], d[3]  row g + 8  columns c, c+1
//   a[2] rows g      columns c+8, c+9     b[0]  rows c, c+1      column g
//   a[3] rows g + 8  columns c+8, c+9     b[1]  rows c+8, c+9    column g
// 9.7.14.5.8 (mma.m16n8k16, bf16).
__device__ __forceinline__ void MmaBf16(float (&d)[4], const uint32_t (&a)[4],
                                        const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 matrices of 16-bit values; lanes 8i .. 8i+7 give the addresses of the eight 16-byte
// rows of matrix i. Lane l gets of each the values (row l / 4, columns 2 * (l % 4) and the next).
// 9.7.14.5.15 (ldmatrix).
__device__ __forceinline__ void LdMatrix4(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(shared_row))
               : "memory");
}
// The same, each matrix transposed.
__device__ __forceinline__ void LdMatrix4Transposed(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(shared_row))
               : "memory");
}

}  // namespace jevons::device

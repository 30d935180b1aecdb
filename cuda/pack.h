// Weights as a checkpoint has them, on their way into the layout of gemm_layout.h, and back as rows.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/gemm_layout.h"

namespace jevons::cuda {

enum class RawElement : int32_t { kF32, kF16, kBf16, kE4m3 };

// What    packed rows row_offset .. row_offset + rows - 1 of one group's matrix [n, k] = the part's
//         rows, rounded to bf16 where the layout is kBf16 and copied where it is kE4m3
// Shapes  data [rows, k] of `element`, contiguous; scale f32 [ceil(rows / 128), ceil(k / 128)] for
//         kE4m3, else null; values and scales: those of the group, zero before its first part is
//         packed (what no part covers stays zero, and the kernels rely on it past k)
// Edge    a value beyond bf16 becomes Inf, NaN stays NaN; kE4m3 to kBf16 multiplies by the scale and
//         rounds once
//         kE4m3 to kE4m3 is possible only where PackKeepsE4m3 says so of every part
struct PackParams {
  const void* data = nullptr;
  RawElement element = RawElement::kBf16;
  const float* scale = nullptr;
  int32_t rows = 0;
  int32_t row_offset = 0;
  PackedLayout layout;
  void* values = nullptr;
  float* scales = nullptr;
};

// Eight rows that share a scale in the packed form must come from eight rows that share one in a
// part: all parts but the last (of a half, where they are paired) end at a multiple of eight.
constexpr bool PackKeepsE4m3(const PackedLayout& layout, int32_t row_offset) {
  return row_offset % kScaleRows == 0 &&
         (layout.order == RowOrder::kPlain || layout.n / 2 % kScaleRows == 0);
}

// Queues one kernel; no rows is a success. cudaErrorInvalidValue where the layout is kE4m3 and the
// part is not, or PackKeepsE4m3 does not hold.
cudaError_t LaunchPack(const PackParams& params, cudaStream_t stream);

// What    out[i] = packed row first_row + i of one group, for a library that reads rows
// Shapes  layout kBf16 in plain order; values: those of the group, 16-byte aligned; first_row and rows:
//         whole strips of the padded rows; out bf16 [rows, PaddedColumns], 16-byte aligned
// Edge    rows past n and columns past k are the zeros that they are in the packed form
struct UnpackParams {
  PackedLayout layout;
  const void* values = nullptr;
  int32_t first_row = 0;
  int32_t rows = 0;
  void* out = nullptr;
};

// Queues one kernel; no rows is a success. cudaErrorInvalidValue for another layout, and for rows that
// are no whole strips.
cudaError_t LaunchUnpack(const UnpackParams& params, cudaStream_t stream);

}  // namespace jevons::cuda

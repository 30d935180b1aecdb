// Rows that a product of FP8 weights reads as FP8: in front of it, once for each row. What is kept of a
// value says ops/fp8_entry.h.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/device_facts.h"
#include "ops/fp8_entry.h"

namespace jevons::cuda {

// What    out[i] = x[i] rounded, for GemmAtom::kWgmmaFp8 or, as bf16, for any other
// Shapes  x bf16 [num_rows, width], row stride free; out 16-byte aligned, its rows RoundedRowBytes after
//         each other: Fp8Entry{width, 0}, the values of each 16 columns in the order of Fp8Place, or
//         bf16 [width]; both filled up to 16 bytes;
//         row_limit i32 [1] in device memory or null: rows from row_limit[0] on are left as they are
struct RoundRowsParams {
  const void* x = nullptr;
  int64_t x_stride = 0;
  const int32_t* row_limit = nullptr;
  bool as_fp8 = false;
  void* out = nullptr;
  int32_t num_rows = 0;
  int32_t width = 0;
};

__host__ __device__ constexpr int64_t RoundedRowBytes(int32_t width, bool as_fp8) {
  return as_fp8 ? Fp8Entry{width, 0}.bytes() : Fp8Entry::Padded(2 * width);
}

// Queues one kernel; no rows is a success.
cudaError_t LaunchRoundRows(const RoundRowsParams& params, const DeviceFacts& device,
                            cudaStream_t stream);

}  // namespace jevons::cuda

// Rows that ranks send each other as FP8. The contracts are those of ops/exchange.h; index arrays lie in
// device memory and are contiguous.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/device_facts.h"

namespace jevons::cuda {

// Edge    an index outside [-1, num_source_rows) gives a row of NaN
struct PackRowsParams {
  const void* x = nullptr;  // bf16 [num_source_rows, width]
  const int32_t* row_idx = nullptr;
  uint8_t* out = nullptr;
  int32_t num_rows = 0;
  int32_t num_source_rows = 0;
  int32_t width = 0;
  int64_t x_stride = 0;
};

struct UnpackRowsParams {
  const uint8_t* x = nullptr;
  void* out = nullptr;  // bf16 [num_rows, width]
  int32_t num_rows = 0;
  int32_t width = 0;
  int64_t out_stride = 0;
};

// Each queues one kernel with a block for each row; no rows is a success.
cudaError_t LaunchPackRows(const PackRowsParams& params, const DeviceFacts& device,
                           cudaStream_t stream);
cudaError_t LaunchUnpackRows(const UnpackRowsParams& params, const DeviceFacts& device,
                             cudaStream_t stream);

}  // namespace jevons::cuda

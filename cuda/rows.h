// The small operations around the matrix products: rows in, rows out. The contracts are those of
// ops/elementwise.h; here stands what the CUDA versions add. All strides are in elements, all index
// arrays lie in device memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/device/bf16.h"
#include "cuda/device_facts.h"
#include "cuda/element.h"

namespace jevons::cuda {

// What    out[t] = table[id], id = ids[t], or drawn[i] where ids[t] = -2 - i
// Shapes  ids i32 [num_tokens]; drawn i32 [num_drawn]; table [vocab, hidden] of table_type; out f32
//         [num_tokens, hidden]
// Edge    an id outside [0, vocab), or an i outside of drawn, gives a row of NaN and reads nothing
struct EmbedParams {
  const int32_t* ids = nullptr;
  const int32_t* drawn = nullptr;
  const void* table = nullptr;
  Element table_type = Element::kF32;
  float* out = nullptr;
  int32_t num_tokens = 0;
  int32_t num_drawn = 0;
  int32_t vocab = 0;
  int32_t hidden = 0;
  int64_t table_stride = 0;
  int64_t out_stride = 0;
};

// What    if delta is there: x += delta in place; then out = x / sqrt(mean(x^2) + eps) * weight
// Shapes  x [num_tokens, hidden] f32, or bf16 without delta; delta the same, f32 or bf16, or null;
//         weight f32 [hidden]; out f32 or bf16, may be x; low bf16, laid out as out, or null: what is
//         left of the row after out's rounding, rounded in turn; then x and delta are f32, out bf16
// Edge    NaN in a row stays in that row
// Order   the sum of squares has an order that hidden alone decides, not alignment, type or row
struct RmsNormParams {
  void* x = nullptr;
  const void* delta = nullptr;
  const float* weight = nullptr;
  void* out = nullptr;
  device::Bf16* low = nullptr;
  Element x_type = Element::kF32;
  Element delta_type = Element::kF32;
  Element out_type = Element::kBF16;
  float eps = 0;
  int32_t num_tokens = 0;
  int32_t hidden = 0;
  int64_t x_stride = 0;
  int64_t delta_stride = 0;
  int64_t out_stride = 0;
};

// What    out[t, i] = silu(gate_up[t, i]) * gate_up[t, width + i]
// Shapes  gate_up [num_rows, 2 width] f32 or bf16; out [num_rows, width] f32 or bf16;
//         row_limit i32 [1] or null
// Edge    rows from *row_limit on are neither read nor written
struct SiluMulParams {
  const void* gate_up = nullptr;
  void* out = nullptr;
  const int32_t* row_limit = nullptr;
  Element in_type = Element::kBF16;
  Element out_type = Element::kBF16;
  int32_t num_rows = 0;
  int32_t width = 0;
  int64_t in_stride = 0;
  int64_t out_stride = 0;
};

// What    out = x with pair i of each head, (x[2i], x[2i + 1]), rotated by the angle of position
//         positions[t] and pair i
// Shapes  x, out [num_tokens, num_heads, d] f32 or bf16, outer strides free, d even, out may be x;
//         cos_sin f32 [max_positions, d]: d/2 cosines, then d/2 sines
// Edge    a position outside [0, max_positions) gives NaN in all heads of that token
struct RopeParams {
  const void* x = nullptr;
  const int32_t* positions = nullptr;
  const float* cos_sin = nullptr;
  void* out = nullptr;
  Element in_type = Element::kBF16;
  Element out_type = Element::kBF16;
  int32_t num_tokens = 0;
  int32_t num_heads = 0;
  int32_t d = 0;
  int32_t max_positions = 0;
  int64_t x_stride = 0;       // from token to token
  int64_t x_head_stride = 0;  // from head to head
  int64_t out_stride = 0;
  int64_t out_head_stride = 0;
};

// What    out[i] = x[row_idx[i]]
// Shapes  x [num_source_rows, width], out [num_rows, width], both of `type`
// Edge    index -1 leaves the row of out as it is, any other outside [0, num_source_rows) makes it NaN
struct GatherRowsParams {
  const void* x = nullptr;
  const int32_t* row_idx = nullptr;
  void* out = nullptr;
  Element type = Element::kBF16;
  int32_t num_rows = 0;
  int32_t num_source_rows = 0;
  int32_t width = 0;
  int64_t x_stride = 0;
  int64_t out_stride = 0;
};

// Threads of a block, blocks along one row, and whether 16 bytes may be moved at a time.
struct RowsPlan {
  int32_t threads = 0;
  int32_t blocks_per_row = 0;
  bool whole = false;
};

RowsPlan ChooseEmbed(const EmbedParams& params);
RowsPlan ChooseRmsNorm(const RmsNormParams& params);
RowsPlan ChooseSiluMul(const SiluMulParams& params);
RowsPlan ChooseRope(const RopeParams& params);
RowsPlan ChooseGatherRows(const GatherRowsParams& params);

// Each queues one kernel; no rows is a success. A type that the contract does not name is
// cudaErrorInvalidValue.
cudaError_t LaunchEmbed(const EmbedParams& params, const DeviceFacts& device, cudaStream_t stream);
cudaError_t LaunchRmsNorm(const RmsNormParams& params, const DeviceFacts& device,
                          cudaStream_t stream);
cudaError_t LaunchSiluMul(const SiluMulParams& params, const DeviceFacts& device,
                          cudaStream_t stream);
cudaError_t LaunchRope(const RopeParams& params, const DeviceFacts& device, cudaStream_t stream);
cudaError_t LaunchGatherRows(const GatherRowsParams& params, const DeviceFacts& device,
                             cudaStream_t stream);

}  // namespace jevons::cuda

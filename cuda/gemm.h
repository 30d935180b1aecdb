// The products of activations with packed weights: Linear, HeadLinear, GroupedGemm and GatedUp are
// one kernel. The contracts are those of ops/linear.h; here stands what the CUDA version adds.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/device_facts.h"
#include "cuda/element.h"
#include "cuda/gemm_layout.h"

namespace jevons::cuda {

enum class GemmEpilogue : int32_t {
  kStore,    // out [rows, n]
  kSiluMul,  // out [rows, n / 2] = silu(row i of W x) * (row i + n / 2), for RowOrder::kPaired
};

// The instruction that multiplies. Two of them may differ in the last bit, so a device uses one for
// all its products.
enum class GemmAtom : int32_t {
  kOfDevice,  // kWgmma on sm_90, else kMmaSync
  kMmaSync,
  kWgmma,  // sm_90 alone
  // The same for e4m3 with e4m3: the weight is kE4m3, and x are rows of FP8 from LaunchRoundRows, their
  // stride in bytes.
  kWgmmaFp8,
};

// What    out[r] = W_g x[source(r)] + bias for the rows r of each group g
// Shapes  weight, scales: num_groups groups as gemm_layout.h says, 16-byte aligned;
//         x bf16 [num_x_rows, k], out f32 or bf16 [num_rows, n or n / 2]; the row strides are free,
//         alignment is that of the element;
//         cu_rows i32 [num_groups + 1] in device memory: group g has the rows
//         [cu_rows[g], cu_rows[g + 1]), none of them beyond num_rows; null: every group has the rows
//         [0, num_rows), at x + g x_group_stride and out + g out_group_stride;
//         row_idx i32 [num_rows] in device memory: source(r) = row_idx[r], or r where it is null;
//         bias f32 [n] or null, kStore only
// Edge    a group without rows is not read; rows outside all groups are not written; a source
//         outside [0, num_x_rows) gives a row of NaN; NaN or Inf in a row of x stays in that row;
//         k and n of any size from 1
// Order   k is cut into slices, 256 wide for bf16 and 128 for e4m3. In a slice the steps of 16 are
//         added in ascending order from zero by the tensor core in f32; then, ascending from zero,
//         total += slice (bf16) or total = Fma(scale, slice, total) (e4m3, its values taken as
//         they are); kWgmmaFp8 has steps of 32, and slice * the token's scale in the place of
//         slice. Nothing else enters, so a row's result does not depend on the rows beside it,
//         on its place, or on the plan (but for the atom of the plan, which the device alone decides)
// Error   that of f32 sums: kGemmTolerance * sum_k |w x| against fp64, with kWgmmaFp8
//         kLinearFp8Tolerance; a bf16 output is then rounded
struct GemmParams {
  const void* weight = nullptr;
  const float* scales = nullptr;  // kE4m3 alone
  PackedLayout layout;
  int32_t num_groups = 1;
  bool one_weight = false;  // all groups have that of the first

  const void* x = nullptr;
  int64_t x_row_stride = 0;
  int64_t x_group_stride = 0;
  int32_t num_x_rows = 0;

  const int32_t* cu_rows = nullptr;
  const int32_t* row_idx = nullptr;
  int32_t num_rows = 0;

  void* out = nullptr;
  Element out_type = Element::kF32;
  int64_t out_row_stride = 0;
  int64_t out_group_stride = 0;
  const float* bias = nullptr;
  GemmEpilogue epilogue = GemmEpilogue::kStore;
  GemmAtom atom = GemmAtom::kOfDevice;
};
inline constexpr double kGemmTolerance = 4e-6;

// The tile of the kernel whose warps have roles (gemm_wide.h).
inline constexpr int32_t kWideTokens = 128;
inline constexpr int32_t kWideStrips = 12;

// How the warps of a block share its work: tokens and strips of one tile. Eight warps share them: those
// of a strip take turns in its spans of 256 columns. With kWideStrips, twelve have one each.
struct GemmPlan {
  GemmAtom atom = GemmAtom::kMmaSync;
  int32_t tile_tokens = 0;
  int32_t tile_strips = 0;
  int32_t warps_per_strip = 0;
  int32_t num_blocks = 0;       // each walks over tiles
  int32_t resident_blocks = 0;  // that the device holds at once
  int32_t smem_bytes = 0;
};

// Whether the device multiplies FP8 with FP8 for such a weight, by kWgmmaFp8.
constexpr bool MultipliesFp8(const PackedLayout& layout, const DeviceFacts& device) {
  return device.sm == 90 && layout.format == WeightFormat::kE4m3;
}

constexpr bool IsWide(const GemmPlan& plan) { return plan.tile_strips == kWideStrips; }

GemmPlan ChooseGemm(const GemmParams& params, const DeviceFacts& device);
// The shared memory and the blocks of a given tile; for tests of one plan against another.
GemmPlan PlanGemm(const GemmParams& params, const DeviceFacts& device, int32_t tile_tokens,
                  int32_t tile_strips);

// Queues one kernel; no rows is a success. cudaErrorInvalidValue for a type that is not named here.
cudaError_t LaunchGemm(const GemmParams& params, const DeviceFacts& device, cudaStream_t stream);
// The same by a given plan; cudaErrorInvalidValue where there is no such kernel.
cudaError_t LaunchGemmAs(const GemmParams& params, const GemmPlan& plan, const DeviceFacts& device,
                         cudaStream_t stream);

}  // namespace jevons::cuda

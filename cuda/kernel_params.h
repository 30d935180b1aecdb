// From the arguments of an op to the parameters of a kernel: what several ops have in common.
#pragma once

#include "cuda/combine.h"
#include "cuda/cuda_weight.h"
#include "cuda/device/bf16.h"
#include "cuda/gemm.h"
#include "cuda/rows.h"
#include "ops/validate.h"

namespace jevons::cuda {

inline constexpr ArgRules kRules = {.activation = DType::kBF16,
                                    .kv_cache = DType::kBF16,
                                    .read_indices = false,
                                    .gated_workspace = false};

inline Element ElementOf(DType dtype) {
  if (dtype == DType::kF32) return Element::kF32;
  return dtype == DType::kF16 ? Element::kF16 : Element::kBF16;
}

inline int32_t Size(const TensorView& view, int i) { return static_cast<int32_t>(view.shape[i]); }

inline const device::Bf16* Bf16Data(const TensorView& view) {
  return view.ptr<const device::Bf16>();
}

// An error of a launch names the op and its sizes.
absl::Status Launched(cudaError_t error, const char* op, const TensorView& out);

absl::StatusOr<const CudaWeight*> OwnWeight(const char* op, const Weight* weight, WeightUse use);

RmsNormParams NormParams(const RmsNormArgs& args);

// What all matrix products have in common.
GemmParams Product(const CudaWeight& weight, const TensorView& x, const TensorView& out);

// Where the device has the end of the rows of x that a grouped product reads in their own order; null:
// it may read all of them.
inline const int32_t* EndOfRows(const GemmParams& params) {
  const bool in_order = params.cu_rows != nullptr && params.row_idx == nullptr;
  return in_order ? params.cu_rows + params.num_groups : nullptr;
}

}  // namespace jevons::cuda

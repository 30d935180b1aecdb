#include "cuda/kernel_params.h"

#include "absl/strings/str_cat.h"
#include "cuda/cuda_error.h"

namespace jevons::cuda {

absl::Status Launched(cudaError_t error, const char* op, const TensorView& out) {
  if (error == cudaSuccess) return absl::OkStatus();
  if (error == cudaErrorInvalidValue) {
    return absl::InvalidArgumentError(
        absl::StrCat(op, ": no kernel takes these sizes, output ", out.ToString()));
  }
  return ToStatus(error, absl::StrCat(op, " with output ", out.ToString()));
}

absl::StatusOr<const CudaWeight*> OwnWeight(const char* op, const Weight* weight, WeightUse use) {
  const auto* own = dynamic_cast<const CudaWeight*>(weight);
  if (own == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(op, ": weight must be packed by the CUDA backend"));
  }
  if (own->use() != use) {
    return absl::InvalidArgumentError(absl::StrCat(
        op, ": weight must", use == WeightUse::kGateUp ? "" : " not", " be packed as gate and up"));
  }
  return own;
}

RmsNormParams NormParams(const RmsNormArgs& args) {
  return {.x = args.x.data,
          .delta = args.delta.data,
          .weight = args.weight.ptr<float>(),
          .out = args.out.data,
          .x_type = ElementOf(args.x.dtype),
          .delta_type = ElementOf(args.delta.dtype),
          .out_type = ElementOf(args.out.dtype),
          .eps = args.eps,
          .num_tokens = Size(args.x, 0),
          .hidden = Size(args.x, 1),
          .x_stride = args.x.stride[0],
          .delta_stride = args.delta.stride[0],
          .out_stride = args.out.stride[0]};
}

GemmParams Product(const CudaWeight& weight, const TensorView& x, const TensorView& out) {
  GemmParams p;
  p.weight = weight.data();
  p.scales = weight.scales();
  p.layout = weight.layout();
  p.num_groups = weight.num_groups();
  p.x = x.data;
  p.x_row_stride = x.stride[0];
  p.num_x_rows = Size(x, 0);
  p.num_rows = Size(out, 0);
  p.out = out.data;
  p.out_type = ElementOf(out.dtype);
  p.out_row_stride = out.stride[0];
  return p;
}

}  // namespace jevons::cuda

// From the arguments of an op to the parameters of a kernel.
#include "absl/strings/str_cat.h"
#include "cuda/cuda_backend_impl.h"
#include "cuda/finish.h"
#include "cuda/cuda_error.h"
#include "cuda/kernel_params.h"
#include "cuda/round_rows.h"
#include "cuda/sample.h"

namespace jevons::cuda {
namespace {

// `before` is scratch for the entries.
template <typename Value>
SampleEntries<Value> Entries(const SampleList& list, float* before) {
  if (!list.ids.present()) return {};
  return {.ids = list.ids.ptr<int32_t>(),
          .values = list.values.ptr<Value>(),
          .cu = list.cu.ptr<int32_t>(),
          .before = before,
          .num_entries = Size(list.ids, 0)};
}

}  // namespace

absl::Status CudaBackend::Embed(const EmbedArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  const EmbedParams p = {.ids = args.ids.ptr<int32_t>(),
                         .drawn = args.drawn.ptr<int32_t>(),
                         .table = args.table.data,
                         .table_type = ElementOf(args.table.dtype),
                         .out = args.out.ptr<float>(),
                         .num_tokens = Size(args.ids, 0),
                         .num_drawn = args.drawn.present() ? Size(args.drawn, 0) : 0,
                         .vocab = Size(args.table, 0),
                         .hidden = Size(args.table, 1),
                         .table_stride = args.table.stride[0],
                         .out_stride = args.out.stride[0]};
  return Launched(LaunchEmbed(p, LaunchFacts(), stream_), "Embed", args.out);
}

absl::Status CudaBackend::RmsNorm(const RmsNormArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  return Launched(LaunchRmsNorm(NormParams(args), LaunchFacts(), stream_), "RmsNorm", args.out);
}

absl::Status CudaBackend::SiluMul(const SiluMulArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  const SiluMulParams p = {.gate_up = args.gate_up.data,
                           .out = args.out.data,
                           .row_limit = nullptr,
                           .in_type = ElementOf(args.gate_up.dtype),
                           .out_type = ElementOf(args.out.dtype),
                           .num_rows = Size(args.out, 0),
                           .width = Size(args.out, 1),
                           .in_stride = args.gate_up.stride[0],
                           .out_stride = args.out.stride[0]};
  return Launched(LaunchSiluMul(p, LaunchFacts(), stream_), "SiluMul", args.out);
}

absl::Status CudaBackend::GatherRows(const GatherRowsArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  const GatherRowsParams p = {.x = args.x.data,
                              .row_idx = args.row_idx.ptr<int32_t>(),
                              .out = args.out.data,
                              .type = ElementOf(args.x.dtype),
                              .num_rows = Size(args.out, 0),
                              .num_source_rows = Size(args.x, 0),
                              .width = Size(args.x, 1),
                              .x_stride = args.x.stride[0],
                              .out_stride = args.out.stride[0]};
  return Launched(LaunchGatherRows(p, LaunchFacts(), stream_), "GatherRows", args.out);
}

absl::Status CudaBackend::Linear(const LinearArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  ASSIGN_OR_RETURN(const CudaWeight* weight, OwnWeight("Linear", args.weight, WeightUse::kPlain));
  GemmParams p = Product(*weight, args.x, args.out);
  p.bias = args.bias.ptr<float>();
  RETURN_IF_ERROR(RoundInput(*weight, nullptr, p));
  return Multiply(p, args.out);
}

absl::Status CudaBackend::Multiply(const GemmParams& params, const TensorView& out) {
  ASSIGN_OR_RETURN(const bool queued, MultiplyByLibrary(params));
  if (queued) return absl::OkStatus();
  return Launched(LaunchGemm(params, LaunchFacts(), stream_), "Linear", out);
}

absl::Status CudaBackend::PrepareProducts(const Weight& weight, int64_t most_rows) {
  if (weight.input() == ActivationPrecision::kExact) return absl::OkStatus();
  const PackedLayout& layout = static_cast<const CudaWeight&>(weight).layout();
  return Reserve(rounded_rows_,
                 most_rows * RoundedRowBytes(layout.k, MultipliesFp8(layout, facts_)));
}

absl::Status CudaBackend::RoundInput(const Weight& weight, const int32_t* row_limit,
                                     GemmParams& p) {
  if (weight.input() == ActivationPrecision::kExact) return absl::OkStatus();
  const bool as_fp8 = MultipliesFp8(p.layout, facts_);
  const int64_t row_bytes = RoundedRowBytes(p.layout.k, as_fp8);
  RETURN_IF_ERROR(PrepareProducts(weight, p.num_x_rows));
  const RoundRowsParams rows = {.x = p.x,
                                .x_stride = p.x_row_stride,
                                .row_limit = row_limit,
                                .as_fp8 = as_fp8,
                                .out = rounded_rows_->data(),
                                .num_rows = p.num_x_rows,
                                .width = p.layout.k};
  RETURN_IF_ERROR(ToStatus(LaunchRoundRows(rows, LaunchFacts(), stream_), "rows of FP8"));
  p.x = rounded_rows_->data();
  p.x_row_stride = as_fp8 ? row_bytes : row_bytes / static_cast<int64_t>(sizeof(device::Bf16));
  if (as_fp8) p.atom = GemmAtom::kWgmmaFp8;
  return absl::OkStatus();
}

absl::StatusOr<bool> CudaBackend::MultiplyByLibrary(const GemmParams& params) {
  const int32_t rows = ChooseUnpackedRows(params, options_.cublaslt_rows, kUnpackedBytes);
  if (rows == 0) return false;
  ASSIGN_OR_RETURN(const bool queued, cublaslt_->Multiply(params, rows, stream_));
  // Its kernels wait for what is in front of them in the plain way, and so does the one behind.
  if (queued) follows_kernel_of_step_ = false;
  return queued;
}

absl::Status CudaBackend::LinearAndNorm(const LinearAndNormArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  const LinearArgs& linear = args.linear;
  ASSIGN_OR_RETURN(const CudaWeight* weight,
                   OwnWeight("LinearAndNorm", linear.weight, WeightUse::kPlain));
  ASSIGN_OR_RETURN(int32_t* const counters, BlockCounters());
  FinishParams p = {.product = Product(*weight, linear.x, linear.out),
                    .combine = {},
                    .norm = NormParams(args.norm),
                    .meeting = counters};
  p.product.bias = linear.bias.ptr<float>();
  RETURN_IF_ERROR(RoundInput(*weight, nullptr, p.product));
  const int32_t of_library = ChooseUnpackedRows(p.product, options_.cublaslt_rows, kUnpackedBytes);
  if (of_library > 0 || ChooseFinish(p, facts_).gemm.num_blocks == 0) {
    RETURN_IF_ERROR(Multiply(p.product, linear.out));
    return RmsNorm(args.norm);
  }
  return Launched(LaunchFinish(p, LaunchFacts(), stream_), "LinearAndNorm", args.norm.out);
}

absl::Status CudaBackend::GatedUp(const GatedUpArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  ASSIGN_OR_RETURN(const CudaWeight* weight, OwnWeight("GatedUp", args.weight, WeightUse::kGateUp));
  GemmParams p = Product(*weight, args.x, args.out);
  p.cu_rows = args.cu_rows.ptr<int32_t>();
  p.row_idx = args.row_idx.ptr<int32_t>();
  p.epilogue = GemmEpilogue::kSiluMul;
  RETURN_IF_ERROR(RoundInput(*weight, EndOfRows(p), p));
  return Launched(LaunchGemm(p, LaunchFacts(), stream_), "GatedUp", args.out);
}

absl::Status CudaBackend::SampleTokens(const SampleTokensArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  float* const scratch = args.list_scratch.ptr<float>();
  const SampleEntries<float> bias = Entries<float>(args.bias, scratch);
  const SampleTokensParams p = {.logits = args.logits.ptr<float>(),
                                .rows = args.rows.ptr<SampleRow>(),
                                .bias = bias,
                                .counts = Entries<int32_t>(args.counts, scratch + bias.num_entries),
                                .masks = args.masks.ptr<uint32_t>(),
                                .token = args.token.ptr<int32_t>(),
                                .logprob = args.logprob.ptr<float>(),
                                .top_ids = args.top_ids.ptr<int32_t>(),
                                .top_logprobs = args.top_logprobs.ptr<float>(),
                                .num_rows = Size(args.token, 0),
                                .num_valid = args.num_valid,
                                .num_masks = args.masks.present() ? Size(args.masks, 0) : 0,
                                .max_top = Size(args.top_ids, 1),
                                .logits_stride = args.logits.stride[0],
                                .mask_words = args.masks.present() ? args.masks.stride[0] : 0};
  return Launched(LaunchSampleTokens(p, LaunchFacts(), stream_), "SampleTokens", args.logits);
}

}  // namespace jevons::cuda

// The ops of latent attention: from their arguments to the parameters of a kernel.
#include "absl/strings/str_cat.h"
#include "cuda/cuda_backend_impl.h"
#include "cuda/kernel_params.h"
#include "cuda/mla.h"
#include "cuda/mla_prepare.h"
#include "cuda/mla_store.h"

namespace jevons::cuda {
namespace {

MlaEntry EntryOf(const TensorView& cache) {
  return cache.dtype == DType::kU8 ? MlaEntry::kFp8 : MlaEntry::kBf16;
}

RopeParams ParamsOf(const RopeArgs& args) {
  return {.x = args.x.data,
          .positions = args.positions.ptr<int32_t>(),
          .cos_sin = args.cos_sin.ptr<float>(),
          .out = args.out.data,
          .in_type = ElementOf(args.x.dtype),
          .out_type = ElementOf(args.out.dtype),
          .num_tokens = Size(args.x, 0),
          .num_heads = Size(args.x, 1),
          .d = Size(args.x, 2),
          .max_positions = Size(args.cos_sin, 0),
          .x_stride = args.x.stride[0],
          .x_head_stride = args.x.stride[1],
          .out_stride = args.out.stride[0],
          .out_head_stride = args.out.stride[1]};
}

MlaStoreKvParams ParamsOf(const MlaStoreKvArgs& args) {
  return {.kv = Bf16Data(args.kv),
          .norm_weight = args.norm_weight.ptr<float>(),
          .positions = args.positions.ptr<int32_t>(),
          .cos_sin = args.cos_sin.ptr<float>(),
          .slots = args.slot_mapping.ptr<int64_t>(),
          .cache = args.cache.data,
          .eps = args.eps,
          .entry = EntryOf(args.cache),
          .num_tokens = Size(args.kv, 0),
          .latent = Size(args.norm_weight, 0),
          .rope = Size(args.kv, 1) - Size(args.norm_weight, 0),
          .max_positions = Size(args.cos_sin, 0),
          .num_slots = args.cache.dim(0) * args.cache.dim(1),
          .kv_stride = args.kv.stride[0]};
}

GemmParams ParamsOf(const HeadLinearArgs& args, const CudaWeight& weight) {
  GemmParams p = Product(weight, args.x, args.out);
  p.x_group_stride = args.x.stride[1];
  p.out_group_stride = args.out.stride[1];
  return p;
}

absl::Status CheckStore(const MlaStoreKvArgs& args) {
  if (args.kv.dtype == DType::kBF16) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("MlaStoreKv: kv must be bf16, got ", args.kv.ToString()));
}

}  // namespace

absl::Status CudaBackend::Rope(const RopeArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  return Launched(LaunchRope(ParamsOf(args), LaunchFacts(), stream_), "Rope", args.out);
}

absl::Status CudaBackend::HeadLinear(const HeadLinearArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  ASSIGN_OR_RETURN(const CudaWeight* weight,
                   OwnWeight("HeadLinear", args.weight, WeightUse::kPlain));
  return Launched(LaunchGemm(ParamsOf(args, *weight), LaunchFacts(), stream_), "HeadLinear",
                  args.out);
}

absl::Status CudaBackend::MlaStoreKv(const MlaStoreKvArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  RETURN_IF_ERROR(CheckStore(args));
  return Launched(LaunchMlaStoreKv(ParamsOf(args), LaunchFacts(), stream_), "MlaStoreKv", args.kv);
}

absl::Status CudaBackend::MlaPrepare(const MlaPrepareArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  RETURN_IF_ERROR(CheckStore(args.store));
  ASSIGN_OR_RETURN(const CudaWeight* uk, OwnWeight("MlaPrepare", args.uk, WeightUse::kPlain));
  const MlaPrepareParams p = {.store = ParamsOf(args.store),
                              .product = ParamsOf(args.product(), *uk),
                              .rope = ParamsOf(args.rotation())};
  return Launched(LaunchMlaPrepare(p, LaunchFacts(), stream_), "MlaPrepare", args.out);
}

absl::StatusOr<MlaAttentionParams> CudaBackend::AttentionParams(const MlaAttentionArgs& args) {
  if (args.q.dtype != DType::kBF16 || args.out.dtype != DType::kBF16) {
    return absl::InvalidArgumentError(absl::StrCat("MlaAttention: q and out must be bf16, got ",
                                                   args.q.ToString(), " and ",
                                                   args.out.ToString()));
  }
  const int32_t latent = Size(args.out, 2);
  const int32_t num_slots = MlaNumSlots(Size(args.q, 1), facts_);
  RETURN_IF_ERROR(Reserve(attention_scratch_, MlaWorkspaceBytes(latent, num_slots)));
  return MlaAttentionParams{.q = Bf16Data(args.q),
                            .cache = args.cache.data,
                            .block_tables = args.block_tables.ptr<int32_t>(),
                            .cu_seqlens_q = args.cu_seqlens_q.ptr<int32_t>(),
                            .context_lens = args.context_lens.ptr<int32_t>(),
                            .out = args.out.ptr<device::Bf16>(),
                            .workspace = attention_scratch_->data(),
                            .scale = args.scale,
                            .entry = EntryOf(args.cache),
                            .num_tokens = Size(args.q, 0),
                            .num_seqs = Size(args.context_lens, 0),
                            .num_heads = Size(args.q, 1),
                            .latent = latent,
                            .rope = Size(args.q, 2) - latent,
                            .num_blocks = Size(args.cache, 0),
                            .block_size = Size(args.cache, 1),
                            .max_blocks = Size(args.block_tables, 1),
                            .num_slots = num_slots,
                            .q_stride = args.q.stride[0],
                            .q_head_stride = args.q.stride[1],
                            .table_stride = args.block_tables.stride[0],
                            .out_stride = args.out.stride[0],
                            .out_head_stride = args.out.stride[1],
                            .values = {}};
}

absl::Status CudaBackend::MlaAttention(const MlaAttentionArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  ASSIGN_OR_RETURN(const MlaAttentionParams p, AttentionParams(args));
  return Launched(LaunchMlaAttention(p, LaunchFacts(), stream_), "MlaAttention", args.out);
}

absl::Status CudaBackend::MlaValues(const MlaValuesArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  ASSIGN_OR_RETURN(const CudaWeight* uv, OwnWeight("MlaValues", args.uv, WeightUse::kPlain));
  ASSIGN_OR_RETURN(MlaAttentionParams p, AttentionParams(args.attention));
  if (args.out.dtype == DType::kBF16) {
    p.values = {.weight = uv->data(),
                .layout = uv->layout(),
                .out = args.out.ptr<device::Bf16>(),
                .stride = args.out.stride[0],
                .head_stride = args.out.stride[1]};
  }
  RETURN_IF_ERROR(
      Launched(LaunchMlaAttention(p, LaunchFacts(), stream_), "MlaValues", args.attention.out));
  if (ChooseMlaAttention(p, facts_).value_blocks > 0) return absl::OkStatus();
  // The atom that the other path has on every device.
  GemmParams product = ParamsOf(args.product(), *uv);
  product.atom = GemmAtom::kMmaSync;
  return Launched(LaunchGemm(product, LaunchFacts(), stream_), "MlaValues", args.out);
}

}  // namespace jevons::cuda

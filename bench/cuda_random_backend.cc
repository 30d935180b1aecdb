#include "bench/cuda_random_backend.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/random.h"
#include "base/strings.h"
#include "bench/cuda_kernels.h"
#include "cuda/cuda_error.h"
#include "cuda/cuda_weight.h"

namespace jevons {
namespace {

constexpr char kScaleSuffix[] = "_scale_inv";
// Smaller buffers hold indices and other things that must be what was written.
constexpr int64_t kLargeBytes = 1 << 20;
// The standard deviation of RandomKind::kE4m3.
constexpr float kE4m3Deviation = 1.76f;

// By the default stream: it waits for nothing of the backend's, so the device is waited for.
absl::Status Fill(void* data, int64_t bytes, RandomKind kind, float scale, uint64_t seed) {
  RETURN_IF_ERROR(cuda::ToStatus(cudaDeviceSynchronize(), "work before random numbers"));
  const int error = FillRandom(data, bytes / 16 * 16, kind, scale, seed, nullptr);
  RETURN_IF_ERROR(cuda::ToStatus(static_cast<cudaError_t>(error), "random numbers"));
  return cuda::ToStatus(cudaDeviceSynchronize(), "random numbers");
}

absl::StatusOr<std::unique_ptr<Weight>> MakeWeight(int32_t num_groups, WeightUse use,
                                                   ActivationPrecision input,
                                                   const cuda::PackedLayout& layout,
                                                   uint64_t seed) {
  const bool bf16 = layout.format == cuda::WeightFormat::kBf16;
  const float deviation = 1 / std::sqrt(static_cast<float>(layout.k));
  ASSIGN_OR_RETURN(std::unique_ptr<cuda::DeviceBuffer> values,
                   cuda::DeviceBuffer::Allocate(num_groups * cuda::PackedBytes(layout)));
  RETURN_IF_ERROR(Fill(values->data(), values->bytes(),
                       bf16 ? RandomKind::kBf16 : RandomKind::kE4m3, deviation, seed));
  std::unique_ptr<cuda::DeviceBuffer> scales;
  if (!bf16) {
    const int64_t bytes = num_groups * cuda::ScaleBytes(layout);
    ASSIGN_OR_RETURN(scales, cuda::DeviceBuffer::Allocate((bytes + 15) / 16 * 16));
    RETURN_IF_ERROR(Fill(scales->data(), scales->bytes(), RandomKind::kF32,
                         deviation / kE4m3Deviation, seed + 1));
  }
  return std::make_unique<cuda::CudaWeight>(num_groups, use, input, layout, std::move(values),
                                            std::move(scales));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Weight>> MakeRandomWeight(const RandomWeight& what) {
  const bool f8 = what.dtype == DType::kF8E4M3;
  const bool gate_up = what.use == WeightUse::kGateUp;
  const cuda::PackedLayout layout = {
      .format = f8 ? cuda::WeightFormat::kE4m3 : cuda::WeightFormat::kBf16,
      .order = gate_up ? cuda::RowOrder::kPaired : cuda::RowOrder::kPlain,
      .n = static_cast<int32_t>(what.n),
      .k = static_cast<int32_t>(what.k)};
  return MakeWeight(what.num_groups, what.use, what.input, layout, what.seed);
}

ShapeCheckpoint::ShapeCheckpoint(const ModelConfig& config, DType dtype) : dtype_(dtype) {
  size_t largest = 0;
  size_t longest = 0;
  for (TensorSpec& spec : ExpectedTensors(config)) {
    size_t count = 1;
    for (int64_t dim : spec.shape) count *= static_cast<size_t>(dim);
    if (absl::StrContains(spec.name, "kv_b_proj")) largest = std::max(largest, count);
    longest = std::max(longest, spec.shape.size() == 1 ? count : count / kScaleBlock);
    specs_[spec.name] = std::move(spec);
  }
  // kv_b is the one matrix whose values a loader takes apart.
  Random random(1);
  values_.resize(2 * largest);
  for (char& value : values_) value = static_cast<char>(random.Bits() & 0x3F);
  ones_.assign(longest, 1.0f);
}

absl::StatusOr<TensorView> ShapeCheckpoint::Find(std::string_view name) const {
  const bool scale = name.ends_with(kScaleSuffix);
  const std::string_view base =
      scale ? name.substr(0, name.size() - sizeof(kScaleSuffix) + 1) : name;
  const auto it = specs_.find(base);
  if (it == specs_.end()) return absl::NotFoundError(absl::StrCat("no tensor ", ToAbsl(name)));
  const TensorSpec& spec = it->second;
  if (spec.shape.size() == 1) return TensorView(ones_.data(), DType::kF32, {spec.shape[0]});
  if (scale) {
    const auto blocks = [](int64_t size) { return (size + kScaleBlock - 1) / kScaleBlock; };
    return TensorView(ones_.data(), DType::kF32, {blocks(spec.shape[0]), blocks(spec.shape[1])});
  }
  const bool keeps_bf16 = spec.kind != TensorKind::kLinear || spec.name == kHeadTensor;
  return TensorView(values_.data(), keeps_bf16 ? DType::kBF16 : dtype_,
                    {spec.shape[0], spec.shape[1]});
}

bool ShapeCheckpoint::Has(std::string_view name) const { return Find(name).ok(); }

std::vector<std::string> ShapeCheckpoint::Names() const {
  std::vector<std::string> out;
  for (const auto& [name, spec] : specs_) out.push_back(name);
  return out;
}

StepCounts RandomBackend::TakeCounts() {
  StepCounts out = counts_;
  if (out.num_moe_layers > 0) out.experts /= out.num_moe_layers;
  counts_ = {};
  return out;
}

absl::StatusOr<std::unique_ptr<Buffer>> RandomBackend::Allocate(int64_t bytes) {
  ASSIGN_OR_RETURN(std::unique_ptr<Buffer> buffer, inner_->Allocate(bytes));
  if (bytes >= kLargeBytes) {
    RETURN_IF_ERROR(Fill(buffer->data(), bytes, RandomKind::kBf16, 1, next_seed_++));
  }
  return buffer;
}

absl::StatusOr<DeviceTensor> RandomBackend::Upload(const TensorView& host) {
  // The embedding; vectors and the table of angles are f32.
  if (host.dtype != DType::kBF16) return inner_->Upload(host);
  DeviceTensor out;
  out.view = host;
  const int64_t bytes = host.num_elements() * DTypeBytes(host.dtype);
  ASSIGN_OR_RETURN(out.buffer, inner_->Allocate(bytes));
  out.view.data = out.buffer->data();
  RETURN_IF_ERROR(Fill(out.view.data, bytes, RandomKind::kBf16, 1, next_seed_++));
  return out;
}

absl::StatusOr<std::unique_ptr<Weight>> RandomBackend::PackWeight(const WeightSpec& spec) {
  const auto num_groups = static_cast<int32_t>(spec.groups.size());
  return MakeWeight(num_groups, spec.use, spec.input, cuda::ChooseLayout(spec), next_seed_++);
}

void RandomBackend::CountWeight(const Weight& weight, double groups) {
  counts_.weight_bytes += static_cast<double>(weight.bytes()) * groups / weight.num_groups();
}

absl::Status RandomBackend::Linear(const LinearArgs& args) {
  CountWeight(*args.weight, 1);
  return Plain(inner_->Linear(args));
}

absl::Status RandomBackend::LinearAndNorm(const LinearAndNormArgs& args) {
  CountWeight(*args.linear.weight, 1);
  return Plain(inner_->LinearAndNorm(args));
}

absl::Status RandomBackend::HeadLinear(const HeadLinearArgs& args) {
  CountWeight(*args.weight, args.weight->num_groups());
  return Plain(inner_->HeadLinear(args));
}

absl::Status RandomBackend::GroupedGemm(const GroupedGemmArgs& args) {
  CountWeight(*args.weight, used_experts_);
  return Plain(inner_->GroupedGemm(args));
}

absl::Status RandomBackend::GatedUp(const GatedUpArgs& args) {
  CountWeight(*args.weight, args.cu_rows.present() ? used_experts_ : 1);
  return Plain(inner_->GatedUp(args));
}

absl::Status RandomBackend::MlaPrepare(const MlaPrepareArgs& args) {
  CountWeight(*args.uk, args.uk->num_groups());
  return Plain(inner_->MlaPrepare(args));
}

absl::Status RandomBackend::CountCache(const MlaAttentionArgs& args) {
  if (mode_ != Mode::kCount) return absl::OkStatus();
  std::vector<int32_t> lens(args.context_lens.dim(0));
  RETURN_IF_ERROR(inner_->Read(TensorView(lens.data(), DType::kI32, {args.context_lens.dim(0)}),
                               args.context_lens));
  const int64_t entry_bytes = args.cache.dim(2) * DTypeBytes(args.cache.dtype);
  for (int32_t len : lens) counts_.cache_bytes += static_cast<double>(len * entry_bytes);
  return absl::OkStatus();
}

absl::Status RandomBackend::MlaAttention(const MlaAttentionArgs& args) {
  RETURN_IF_ERROR(CountCache(args));
  return Plain(inner_->MlaAttention(args));
}

absl::Status RandomBackend::MlaValues(const MlaValuesArgs& args) {
  RETURN_IF_ERROR(CountCache(args.attention));
  CountWeight(*args.uv, args.uv->num_groups());
  return Plain(inner_->MlaValues(args));
}

absl::Status RandomBackend::ExpertDispatch(const ExpertDispatchArgs& args) {
  RETURN_IF_ERROR(Plain(inner_->ExpertDispatch(args)));
  return CountExperts(args.plan);
}

absl::Status RandomBackend::NormAndRoute(const NormAndRouteArgs& args) {
  CountWeight(*args.router, 1);
  RETURN_IF_ERROR(Plain(inner_->NormAndRoute(args)));
  return args.plan.cu_rows.present() ? CountExperts(args.plan) : absl::OkStatus();
}

absl::Status RandomBackend::LinearAndRoute(const LinearAndRouteArgs& args) {
  CountWeight(*args.linear.weight, 1);
  CountWeight(*args.route.router, 1);
  RETURN_IF_ERROR(Plain(inner_->LinearAndRoute(args)));
  return args.route.plan.cu_rows.present() ? CountExperts(args.route.plan) : absl::OkStatus();
}

absl::Status RandomBackend::FinishExperts(const GroupedGemmArgs& down,
                                          const CombineAndNormArgs& end) {
  CountWeight(*down.weight, used_experts_);
  return Plain(inner_->FinishExperts(down, end));
}

absl::Status RandomBackend::CountExperts(const DispatchPlan& plan) {
  if (mode_ != Mode::kCount) return absl::OkStatus();
  const TensorView& device = plan.cu_rows;
  std::vector<int32_t> cu_rows(device.dim(0));
  RETURN_IF_ERROR(inner_->Read(TensorView(cu_rows.data(), DType::kI32, {device.dim(0)}), device));
  used_experts_ = 0;
  for (size_t e = 0; e + 1 < cu_rows.size(); ++e) used_experts_ += cu_rows[e + 1] > cu_rows[e];
  counts_.experts += used_experts_;
  ++counts_.num_moe_layers;
  return absl::OkStatus();
}

}  // namespace jevons

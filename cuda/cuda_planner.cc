#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/strings.h"
#include "cuda/cublaslt.h"
#include "cuda/cuda_backend.h"
#include "cuda/cuda_backend_impl.h"
#include "cuda/cuda_weight.h"
#include "cuda/mla.h"
#include "cuda/round_rows.h"
#include "cuda/router.h"
#include "ops/validate.h"

namespace jevons {
namespace cuda {
namespace {

// The driver's unit of allocation.
constexpr int64_t kUnitBytes = 512;
// What blocks of a kernel count of each other.
constexpr int64_t kCounterBytes =
    (kRouterCounters * int64_t{sizeof(int32_t)} + kUnitBytes - 1) / kUnitBytes * kUnitBytes;

// A place that nobody reads or writes.
class PlannedBuffer : public Buffer {
 public:
  explicit PlannedBuffer(int64_t bytes) : bytes_(bytes) {}
  void* data() override { return reinterpret_cast<void*>(kUnitBytes); }
  int64_t bytes() const override { return bytes_; }

 private:
  const int64_t bytes_;
};

class PlannedWeight : public Weight {
 public:
  PlannedWeight(int32_t num_groups, const WeightSpec& spec, const PackedLayout& layout)
      : Weight(num_groups, layout.n, layout.k, spec.use, spec.input),
        layout_(layout),
        bytes_(num_groups * (PackedBytes(layout) + ScaleBytes(layout))) {}
  int64_t bytes() const override { return bytes_; }
  PackedLayout layout() const { return layout_; }

 private:
  const PackedLayout layout_;
  const int64_t bytes_;
};

class CudaPlanner : public Backend {
 public:
  CudaPlanner(const CudaDeviceSpec& device, const CudaBackendOptions& options)
      : spec_(device),
        facts_({.sm = device.sm, .num_sms = device.num_sms}),
        available_(device.memory_bytes - PackScratchBytes() - kCounterBytes -
                   (options.cublaslt_rows > 0 ? kCublasLtBytes : 0)) {}

  std::string Description() const override {
    return absl::StrCat("plan for cuda (", ToAbsl(spec_.name), ")");
  }
  BackendTraits traits() const override { return CudaTraits(true); }
  int64_t AvailableBytes() const override {
    return available_ - attention_bytes_ - router_bytes_ - rounded_bytes_;
  }

  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(int64_t bytes) override {
    Take(bytes);
    return std::make_unique<PlannedBuffer>(bytes);
  }
  absl::StatusOr<DeviceTensor> Upload(const TensorView& host) override {
    DeviceTensor out;
    ASSIGN_OR_RETURN(out.buffer, Allocate(host.num_elements() * DTypeBytes(host.dtype)));
    out.view = host;
    out.view.data = out.buffer->data();
    return out;
  }
  absl::Status Write(const TensorView&, const TensorView&) override { return absl::OkStatus(); }
  absl::Status Read(const TensorView&, const TensorView&) override { return absl::OkStatus(); }
  absl::StatusOr<std::unique_ptr<Weight>> PackWeight(const WeightSpec& spec) override {
    RETURN_IF_ERROR(Validate(spec));
    const PackedLayout layout = ChooseLayout(spec);
    const auto num_groups = static_cast<int32_t>(spec.groups.size());
    Take(num_groups * PackedBytes(layout));
    Take(num_groups * ScaleBytes(layout));
    return std::make_unique<PlannedWeight>(num_groups, spec, layout);
  }

  absl::Status PrepareProducts(const Weight& weight, int64_t most_rows) override {
    if (weight.input() == ActivationPrecision::kExact) return absl::OkStatus();
    const PackedLayout layout = static_cast<const PlannedWeight&>(weight).layout();
    const int64_t row_bytes = RoundedRowBytes(layout.k, MultipliesFp8(layout, facts_));
    rounded_bytes_ = std::max(rounded_bytes_, most_rows * row_bytes);
    return absl::OkStatus();
  }

  absl::Status Embed(const EmbedArgs&) override { return absl::OkStatus(); }
  absl::Status RmsNorm(const RmsNormArgs&) override { return absl::OkStatus(); }
  absl::Status SiluMul(const SiluMulArgs&) override { return absl::OkStatus(); }
  absl::Status Rope(const RopeArgs&) override { return absl::OkStatus(); }
  absl::Status GatherRows(const GatherRowsArgs&) override { return absl::OkStatus(); }
  absl::Status Linear(const LinearArgs& args) override { return Round(args.weight, args.x); }
  absl::Status LinearAndNorm(const LinearAndNormArgs& args) override { return Linear(args.linear); }
  absl::Status HeadLinear(const HeadLinearArgs&) override { return absl::OkStatus(); }
  absl::Status GroupedGemm(const GroupedGemmArgs& args) override {
    return Round(args.weight, args.x);
  }
  absl::Status GatedUp(const GatedUpArgs& args) override { return Round(args.weight, args.x); }
  absl::Status MlaStoreKv(const MlaStoreKvArgs&) override { return absl::OkStatus(); }
  absl::Status MlaPrepare(const MlaPrepareArgs&) override { return absl::OkStatus(); }
  absl::Status MlaAttention(const MlaAttentionArgs& args) override {
    const auto latent = static_cast<int32_t>(args.out.dim(2));
    const int32_t num_slots = MlaNumSlots(static_cast<int32_t>(args.q.dim(1)), facts_);
    attention_bytes_ = std::max(attention_bytes_, MlaWorkspaceBytes(latent, num_slots));
    return absl::OkStatus();
  }
  absl::Status MlaValues(const MlaValuesArgs& args) override {
    return MlaAttention(args.attention);
  }
  absl::Status RouteTopK(const RouteTopKArgs&) override { return absl::OkStatus(); }
  absl::Status ExpertDispatch(const ExpertDispatchArgs&) override { return absl::OkStatus(); }
  absl::Status ExpertCombine(const ExpertCombineArgs&) override { return absl::OkStatus(); }
  absl::Status RankDispatch(const RankDispatchArgs&) override { return absl::OkStatus(); }
  absl::Status ReturnRows(const ReturnRowsArgs&) override { return absl::OkStatus(); }
  absl::Status PackRows(const PackRowsArgs&) override { return absl::OkStatus(); }
  absl::Status UnpackRows(const UnpackRowsArgs&) override { return absl::OkStatus(); }
  absl::Status NormAndRoute(const NormAndRouteArgs& args) override {
    const int64_t bytes = RouterScratchBytes(args.norm.x.dim(0), args.norm.out.stride[0],
                                             args.route.logits.stride[0]);
    router_bytes_ = std::max(router_bytes_, bytes);
    return absl::OkStatus();
  }
  absl::Status LinearAndRoute(const LinearAndRouteArgs& args) override {
    RETURN_IF_ERROR(Linear(args.linear));
    return NormAndRoute(args.route);
  }
  absl::Status CombineAndNorm(const CombineAndNormArgs&) override { return absl::OkStatus(); }
  absl::Status FinishExperts(const GroupedGemmArgs& down, const CombineAndNormArgs&) override {
    return GroupedGemm(down);
  }
  absl::Status SampleTokens(const SampleTokensArgs&) override { return absl::OkStatus(); }

 private:
  // The rows that a product of FP8 reads.
  absl::Status Round(const Weight* weight, const TensorView& x) {
    return PrepareProducts(*weight, x.dim(0));
  }

  void Take(int64_t bytes) { available_ -= (bytes + kUnitBytes - 1) / kUnitBytes * kUnitBytes; }

  const CudaDeviceSpec spec_;
  const DeviceFacts facts_;
  int64_t available_;
  int64_t attention_bytes_ = 0;
  int64_t router_bytes_ = 0;
  int64_t rounded_bytes_ = 0;
};

}  // namespace
}  // namespace cuda

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaPlanner(const CudaDeviceSpec& device,
                                                           const CudaBackendOptions& options) {
  return std::make_unique<cuda::CudaPlanner>(device, options);
}

}  // namespace jevons

// A CUDA backend whose weights are made on the device: models of real size without a file and
// without gigabytes of host memory. It can also count what a step does.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "model/config.h"
#include "model/tensor_specs.h"
#include "ops/backend.h"

namespace jevons {

struct RandomWeight {
  int32_t num_groups = 1;
  int64_t n = 0;
  int64_t k = 0;
  DType dtype = DType::kBF16;  // of the checkpoint: kBF16 or kF8E4M3
  WeightUse use = WeightUse::kPlain;
  ActivationPrecision input = ActivationPrecision::kExact;
  uint64_t seed = 0;
};

// A packed weight of random values of about 1 / sqrt(k), of the size that a backend makes of it.
absl::StatusOr<std::unique_ptr<Weight>> MakeRandomWeight(const RandomWeight& what);

// Names, types and shapes of a model, and nothing else: all matrices are the same few megabytes of
// host memory, so only RandomBackend may be given them. Matrices are `dtype`, but for those that
// published FP8 checkpoints keep in bf16.
class ShapeCheckpoint : public Checkpoint {
 public:
  ShapeCheckpoint(const ModelConfig& config, DType dtype);

  absl::StatusOr<TensorView> Find(std::string_view name) const override;
  bool Has(std::string_view name) const override;
  std::vector<std::string> Names() const override;
  void Release(std::string_view) const override {}

 private:
  std::map<std::string, TensorSpec, std::less<>> specs_;
  DType dtype_;
  mutable std::vector<char> values_;  // of any matrix
  mutable std::vector<float> ones_;   // of vectors and scales
};

// What the ops of one step read of weights and caches, seen while they ran one by one.
struct StepCounts {
  double weight_bytes = 0;  // of experts those with rows
  double cache_bytes = 0;   // a sequence's entries once
  double experts = 0;       // distinct ones, mean over the MoE layers
  int32_t num_moe_layers = 0;
  int32_t num_ops = 0;
};

// Used by one thread at a time. Large buffers start with random numbers and not with zeros.
class RandomBackend : public Backend {
 public:
  enum class Mode { kGraphs, kDirect, kCount };

  // `inner` is a CUDA backend that records steps.
  explicit RandomBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

  // kGraphs: steps are recorded and replayed. kDirect: op by op. kCount: op by op, and counts_.
  void set_mode(Mode mode) { mode_ = mode; }
  // Read then neither waits nor copies.
  void set_skip_reads(bool skip) { skip_reads_ = skip; }
  StepCounts TakeCounts();

  std::string Description() const override { return inner_->Description(); }
  BackendTraits traits() const override { return inner_->traits(); }
  int64_t AvailableBytes() const override { return inner_->AvailableBytes(); }
  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(int64_t bytes) override;
  absl::StatusOr<DeviceTensor> Upload(const TensorView& host) override;
  absl::Status Write(const TensorView& device, const TensorView& host) override {
    return inner_->Write(device, host);
  }
  absl::Status Read(const TensorView& host, const TensorView& device) override {
    return skip_reads_ ? absl::OkStatus() : inner_->Read(host, device);
  }
  absl::Status RunStep(int64_t key, absl::FunctionRef<absl::Status()> ops) override {
    return mode_ == Mode::kGraphs ? inner_->RunStep(key, ops) : ops();
  }
  absl::StatusOr<std::unique_ptr<Weight>> PackWeight(const WeightSpec& spec) override;
  absl::Status PrepareProducts(const Weight& weight, int64_t most_rows) override {
    return inner_->PrepareProducts(weight, most_rows);
  }

  absl::Status Embed(const EmbedArgs& args) override { return Plain(inner_->Embed(args)); }
  absl::Status RmsNorm(const RmsNormArgs& args) override { return Plain(inner_->RmsNorm(args)); }
  absl::Status SiluMul(const SiluMulArgs& args) override { return Plain(inner_->SiluMul(args)); }
  absl::Status Rope(const RopeArgs& args) override { return Plain(inner_->Rope(args)); }
  absl::Status GatherRows(const GatherRowsArgs& args) override {
    return Plain(inner_->GatherRows(args));
  }
  absl::Status Linear(const LinearArgs& args) override;
  absl::Status LinearAndNorm(const LinearAndNormArgs& args) override;
  absl::Status HeadLinear(const HeadLinearArgs& args) override;
  absl::Status GroupedGemm(const GroupedGemmArgs& args) override;
  absl::Status GatedUp(const GatedUpArgs& args) override;
  absl::Status MlaStoreKv(const MlaStoreKvArgs& args) override {
    return Plain(inner_->MlaStoreKv(args));
  }
  absl::Status MlaPrepare(const MlaPrepareArgs& args) override;
  absl::Status MlaAttention(const MlaAttentionArgs& args) override;
  absl::Status MlaValues(const MlaValuesArgs& args) override;
  absl::Status RouteTopK(const RouteTopKArgs& args) override {
    return Plain(inner_->RouteTopK(args));
  }
  absl::Status ExpertDispatch(const ExpertDispatchArgs& args) override;
  absl::Status ExpertCombine(const ExpertCombineArgs& args) override {
    return Plain(inner_->ExpertCombine(args));
  }
  absl::Status NormAndRoute(const NormAndRouteArgs& args) override;
  absl::Status LinearAndRoute(const LinearAndRouteArgs& args) override;
  absl::Status CombineAndNorm(const CombineAndNormArgs& args) override {
    return Plain(inner_->CombineAndNorm(args));
  }
  absl::Status FinishExperts(const GroupedGemmArgs& down, const CombineAndNormArgs& end) override;
  absl::Status SampleTokens(const SampleTokensArgs& args) override {
    return Plain(inner_->SampleTokens(args));
  }

 private:
  absl::Status Plain(absl::Status status) {
    ++counts_.num_ops;
    return status;
  }
  void CountWeight(const Weight& weight, double groups);
  absl::Status CountCache(const MlaAttentionArgs& args);
  absl::Status CountExperts(const DispatchPlan& plan);

  std::unique_ptr<Backend> inner_;
  Mode mode_ = Mode::kDirect;
  bool skip_reads_ = false;
  uint64_t next_seed_ = 1;
  StepCounts counts_;
  double used_experts_ = 0;  // of the last dispatch
};

}  // namespace jevons

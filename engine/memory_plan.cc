#include "engine/memory_plan.h"

#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/strings.h"
#include "cuda/cuda_backend.h"
#include "engine/loaded_model.h"
#include "model/tensor_specs.h"

namespace jevons {
namespace {

// The tensors that config.json announces, all of zeros that take no memory: a plan looks at sizes.
class ZeroCheckpoint : public Checkpoint {
 public:
  explicit ZeroCheckpoint(const ModelConfig& config) {
    for (const TensorSpec& spec : ExpectedTensors(config)) {
      const bool f8 = config.stores_fp8 && spec.kind == TensorKind::kLinear;
      Add(spec.name, f8 ? DType::kF8E4M3 : DType::kBF16, spec.shape);
      if (!f8) continue;
      Add(spec.name + "_scale_inv", DType::kF32,
          {(spec.shape[0] + kScaleBlock - 1) / kScaleBlock,
           (spec.shape[1] + kScaleBlock - 1) / kScaleBlock});
    }
    zeros_ = mmap(nullptr, static_cast<size_t>(largest_), PROT_READ,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(zeros_ != MAP_FAILED);
    for (auto& [name, view] : views_) view.data = zeros_;
  }
  ~ZeroCheckpoint() override { munmap(zeros_, static_cast<size_t>(largest_)); }

  absl::StatusOr<TensorView> Find(std::string_view name) const override {
    const auto found = views_.find(name);
    if (found != views_.end()) return found->second;
    return absl::NotFoundError(absl::StrCat("no tensor ", ToAbsl(name)));
  }
  bool Has(std::string_view name) const override { return views_.contains(name); }
  std::vector<std::string> Names() const override {
    std::vector<std::string> out;
    for (const auto& [name, view] : views_) out.push_back(name);
    return out;
  }
  void Release(std::string_view) const override {}

 private:
  void Add(const std::string& name, DType dtype, const std::vector<int64_t>& shape) {
    const TensorView view = shape.size() == 1 ? TensorView(nullptr, dtype, {shape[0]})
                                              : TensorView(nullptr, dtype, {shape[0], shape[1]});
    largest_ = std::max(largest_, view.num_elements() * DTypeBytes(dtype));
    views_[name] = view;
  }

  std::map<std::string, TensorView, std::less<>> views_;
  int64_t largest_ = 1;
  void* zeros_ = nullptr;
};

// Rank 0 of a group that exchanges nothing.
class PlannedRank : public Communicator {
 public:
  explicit PlannedRank(int32_t world_size) : world_size_(world_size) {}

  std::string Description() const override { return "a plan"; }
  RankInfo info() const override { return {.rank = 0, .world_size = world_size_}; }
  absl::Status AllToAll(const AllToAllArgs&) override { return absl::OkStatus(); }
  absl::Status AllGather(const void*, int64_t, void*) override { return absl::OkStatus(); }
  absl::Status Broadcast(void*, int64_t, int32_t) override { return absl::OkStatus(); }
  absl::Status AllReduce(std::span<int64_t>, ReduceOp) override { return absl::OkStatus(); }
  absl::Status Barrier(absl::Duration) override { return absl::OkStatus(); }
  absl::Status Wait() override { return absl::OkStatus(); }
  void Abort(const std::string&) override {}

 private:
  const int32_t world_size_;
};

struct ModelBytes {
  int64_t weights = 0;
  int64_t workspace = 0;
  int64_t moving = 0;
  DType kv_dtype = DType::kBF16;
};

// What a model of the config takes; without layers of the KV cache.
absl::StatusOr<ModelBytes> Measure(const ModelConfig& config, const EngineOptions& options,
                                   const CudaDeviceSpec& device) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Backend> planner,
                   CreateCudaPlanner(device, {.cublaslt_rows = options.cublaslt_rows}));
  ASSIGN_OR_RETURN(const DType kv_dtype, FindKvDType(options.kv_cache, planner->traits()));
  PlannedRank rank(options.num_ranks);
  RankGroup group;
  std::vector<std::vector<int32_t>> experts;
  ModelRunnerOptions of_runner = RunnerOptions(options, planner->traits(), 0, config.vocab_size);
  if (options.num_ranks > 1) {
    group.communicator = &rank;
    ASSIGN_OR_RETURN(group.maps,
                     EvenMaps(config, options.num_ranks, options.num_redundant_experts));
    for (const ExpertMap& map : group.maps) experts.push_back(FilledSlots(map.experts_of_rank(0)));
    if (!group.maps.empty()) of_runner.slots_per_rank = group.maps[0].slots_per_rank();
  }
  const int64_t start = planner->AvailableBytes();
  ASSIGN_OR_RETURN(ModelWeights weights, LoadModelWeights(config, ZeroCheckpoint(config), *planner,
                                                          experts, options.activation_precision));
  const int64_t loaded = planner->AvailableBytes();
  const int64_t moving = options.num_ranks > 1 ? MovingBytes(weights, options) : 0;
  ASSIGN_OR_RETURN(
      const std::unique_ptr<ModelRunner> runner,
      ModelRunner::Create(config, std::move(weights), planner.get(), of_runner, std::move(group)));
  RETURN_IF_ERROR(runner->WarmUp());
  return ModelBytes{.weights = start - loaded,
                    .workspace = device.memory_bytes - start + loaded - planner->AvailableBytes(),
                    .moving = moving,
                    .kv_dtype = kv_dtype};
}

// A model of few layers is measured; the others are like its last one.
absl::StatusOr<ModelBytes> MeasureAll(const ModelConfig& config, const EngineOptions& options,
                                      const CudaDeviceSpec& device) {
  const int32_t unlike = config.n_routed_experts > 0 ? config.first_k_dense_replace : 0;
  const int32_t few = std::min(config.num_hidden_layers, unlike + 2);
  ModelConfig small = config;
  small.num_hidden_layers = few;
  ASSIGN_OR_RETURN(ModelBytes bytes, Measure(small, options, device));
  if (few == config.num_hidden_layers) return bytes;
  small.num_hidden_layers = few - 1;
  ASSIGN_OR_RETURN(const ModelBytes one_less, Measure(small, options, device));
  bytes.weights += (config.num_hidden_layers - few) * (bytes.weights - one_less.weights);
  return bytes;
}

std::string WhatTakesLess(const MemoryPlan& plan, const EngineOptions& options) {
  if (plan.weight_bytes >= plan.device_bytes) return "";
  return absl::StrCat(". A smaller max-num-batched-tokens or kv-cache-tokens takes less",
                      options.kv_cache == KvCacheType::kFp8 ? "" : ", as does kv-cache-dtype fp8");
}

std::string Gigabytes(int64_t bytes) {
  return absl::StrFormat("%.2f GB", static_cast<double>(bytes) / 1e9);
}

}  // namespace

absl::StatusOr<MemoryPlan> PlanMemory(const EngineOptions& options, std::string_view device) {
  RETURN_IF_ERROR(CheckOptions(options));
  ASSIGN_OR_RETURN(const CudaDeviceSpec spec, FindCudaDeviceSpec(device));
  ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(options.model_folder));
  RETURN_IF_ERROR(CheckActivationPrecision(config, options));
  EngineOptions resolved = options;
  RETURN_IF_ERROR(ResolveModelLen(config, resolved));
  ASSIGN_OR_RETURN(const ModelBytes bytes, MeasureAll(config, resolved, spec));
  MemoryPlan plan = {.device = std::string(device),
                     .device_bytes = spec.memory_bytes,
                     .weight_bytes = bytes.weights,
                     .workspace_bytes = bytes.workspace,
                     .moving_bytes = bytes.moving,
                     .reserve_bytes = ReserveBytes(spec.memory_bytes - bytes.weights)};
  plan.kv_bytes_per_token = KvBytesPerToken(KvLayers(config, bytes.kv_dtype));
  plan.kv_cache_tokens = plan.free_bytes() / plan.kv_bytes_per_token;
  return plan;
}

absl::Status CheckFits(const MemoryPlan& plan, const EngineOptions& options) {
  const int64_t wanted_tokens = std::max<int64_t>(options.kv_cache_tokens, 1);
  const int64_t missing = wanted_tokens * plan.kv_bytes_per_token - plan.free_bytes();
  if (missing <= 0) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("does not fit on ", plan.device, ": it has ", Gigabytes(plan.device_bytes),
                   ", needed are weights ", Gigabytes(plan.weight_bytes), ", workspace ",
                   Gigabytes(plan.workspace_bytes), ", experts that move ",
                   Gigabytes(plan.moving_bytes), ", reserve ", Gigabytes(plan.reserve_bytes),
                   " and a cache of ", Gigabytes(wanted_tokens * plan.kv_bytes_per_token), ": ",
                   Gigabytes(missing), " are missing", WhatTakesLess(plan, options)));
}

}  // namespace jevons

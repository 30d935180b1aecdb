// The graph of a DeepSeek V2 or V3 model: token ids in, logits out, keys to the cache.
#pragma once

#include <memory>
#include <span>

#include "base/status.h"
#include "model/config.h"
#include "model/device_sampler.h"
#include "model/expert_parallel.h"
#include "model/kv_cache.h"
#include "model/model_weights.h"
#include "model/step_input.h"
#include "model/workspace.h"
#include "ops/backend.h"

namespace jevons {

// Rows that a recorded step of so many has, if they fit: one of few sizes.
int64_t PaddedStepRows(int64_t num_rows);

// Used by one thread at a time. All memory is taken in Create.
class ModelRunner {
 public:
  static absl::StatusOr<std::unique_ptr<ModelRunner>> Create(const ModelConfig& config,
                                                             ModelWeights weights, Backend* backend,
                                                             const ModelRunnerOptions& options,
                                                             RankGroup group = {});
  ~ModelRunner() { backend_->ForgetSteps(); }

  // On a backend that records steps: runs one of each size that can occur, without tokens, so that
  // all memory is taken and all steps are recorded before the first request. Nothing elsewhere. In a
  // group all ranks call it at the same time.
  absl::Status WarmUp();

  // Computes the step: the cache holds its keys afterwards, and Logits may be asked for its rows. In
  // a group all ranks call it at the same time, those without tokens too; UNAVAILABLE where the
  // group is broken.
  absl::Status Run(const StepInput& input);

  // Host memory f32 [rows.size(), vocab_size] for rows (token indices) of the last Run; valid until
  // the next call. At most max_logits_rows rows.
  absl::StatusOr<TensorView> Logits(std::span<const int32_t> rows);

  // On a backend that samples: draws or scores for each of `rows` as its request says. At most
  // max_logits_rows rows. Results are valid until the next call.
  absl::StatusOr<std::span<const SampleResult>> Sample(std::span<const int32_t> rows,
                                                       std::span<const SampleRequest> requests);
  // The halves of Sample. What is queued is taken in that order, and may wait while one more step is
  // queued, whose token_ids may name what this one draws. Taken is valid until the next is queued.
  absl::Status QueueSamples(std::span<const int32_t> rows, std::span<const SampleRequest> requests);
  absl::StatusOr<std::span<const SampleResult>> TakeSamples();
  bool samples() const { return sampler_ != nullptr; }
  int32_t max_logits_rows() const { return options_.max_logits_rows; }

  const RankGroup& group() const { return group_; }
  // Null where this rank has all experts.
  ExpertParallel* experts() { return experts_.get(); }
  // Between two steps, on all ranks: the layer's experts are where `map` says from now on. `experts`
  // are those of this rank; what they hold afterwards is used no more. Null weights: they stay as they
  // are. On a device waits for what is queued.
  absl::Status ReplaceExperts(int32_t layer_idx, const ExpertMap& map, MlpWeights& experts);

  // For a group that is made anew, in which the slots of the ranks differ from the present ones. Once
  // the device has come to the end of its work: gives back all memory but that of the weights, and
  // what was recorded. No step can be run any more.
  void Halt();
  // The experts in this rank's slots, by layer; empty for a dense one.
  const std::vector<std::vector<int32_t>>& held() const { return held_; }
  // After Halt: the layer's slots are these from now on, with `experts`.
  void Hold(int32_t layer_idx, std::vector<int32_t> slot_expert, MlpWeights experts);
  // After Halt, for another runner; this one is of no further use.
  ModelWeights TakeWeights() { return std::move(weights_); }

  const ModelConfig& config() const { return config_; }
  const ModelWeights& weights() const { return weights_; }

 private:
  // A part of a step, or all of it: its index arrays, and its rows of the workspace.
  struct Step {
    int32_t part_idx = 0;
    int64_t first_row = 0;
    int64_t num_tokens = 0;
    TensorView token_ids, positions, slot_mapping, cu_seqlens_q, context_lens, block_tables;
  };

  ModelRunner(const ModelConfig& config, ModelWeights weights, Backend* backend,
              const ModelRunnerOptions& options, RankGroup group)
      : config_(config),
        weights_(std::move(weights)),
        backend_(backend),
        options_(options),
        group_(std::move(group)) {}

  absl::Status Allocate();
  // For the tensors of the plan that receive, one after the other; null: they need no place of their own.
  absl::StatusOr<char*> ReceiveMemory(std::span<const PlannedTensor> plan);
  std::vector<int32_t> OwnSlots(const ExpertMap& map) const;
  absl::Status CheckStep(const StepInput& input) const;
  // The number of rows that a step of so many is padded to.
  int64_t Padded(int64_t num_rows, int64_t max_rows) const;
  // Agrees with the group on a step in which this rank has `num_rows`, padded ones among them. Returns
  // how many it runs.
  absl::StatusOr<int64_t> BeginStep(int64_t num_rows);
  // The parts of a step that is padded to `num_tokens`, written. Valid until the next call.
  absl::StatusOr<std::span<const Step>> WriteParts(const StepInput& input, int64_t num_tokens);
  // Fills the arrays of a part, padded to part.num_tokens, from `offset` of the workspace's on.
  // Returns where the next part's may begin.
  absl::StatusOr<int64_t> WriteStep(const StepInput& input, int64_t offset, Step& part);
  // Records or replays the layers, or runs them where there is nothing to record.
  absl::Status RunLayers(std::span<const Step> parts);
  absl::Status Layers(std::span<const Step> parts);
  // Up to the feed-forward of a layer, or until its tokens are on the way to other ranks.
  absl::Status BeginLayer(int32_t layer_idx, const Step& step);
  // Takes what the layer's experts on all ranks have given, where there are ranks, through the next
  // norm.
  absl::Status EndLayer(int32_t layer_idx, const Step& step);
  // `norm` of the workspace = norm of the residual, to which `pending` is added.
  RmsNormArgs Normed(const Step& step, const DeviceTensor& weight, const TensorView& pending);
  // Of a layer's input; behind the last layer of the head's.
  const DeviceTensor& InputNorm(int32_t layer_idx) const {
    return layer_idx < config_.num_hidden_layers ? weights_.layers[layer_idx].input_norm
                                                 : weights_.final_norm;
  }
  // The norm that follows a layer: its delta gets what the layer gives.
  RmsNormArgs NextNorm(int32_t layer_idx, const Step& step) {
    return Normed(step, InputNorm(layer_idx + 1), Rows(work_.delta, step));
  }
  // A step without queries.
  absl::Status WarmUpStep(int64_t num_tokens);
  // Memory for the experts' largest products: in a group they have rows that no warming step has.
  absl::Status PrepareExperts();
  absl::StatusOr<int64_t> WriteRows(std::span<const int32_t> rows);
  absl::Status ComputeLogits(int64_t num_rows);
  absl::Status ComputeSamples(int64_t num_rows);
  // `values` of the workspace = attention of the normed rows; its output product comes behind.
  absl::Status Attention(int32_t layer_idx, const Step& step);
  absl::Status DenseMlp(const MlpWeights& mlp, const Step& step, const TensorView& out);
  // In front of it stand the product `output` of attention and the norm `before`, which adds it to
  // the residual.
  absl::Status Moe(int32_t layer_idx, const Step& step, const LinearArgs& output,
                   const RmsNormArgs& before);
  // The experts of the choices, all of them on this rank, and the norm `after` them.
  absl::Status LocalExperts(const MoeWeights& moe, const DispatchPlan& plan,
                            const RoutedTokens& tokens, const RmsNormArgs& after);
  RoutedTokens Routed(const MoeWeights& moe, const Step& step);
  bool SharesExperts(int32_t layer_idx) const {
    return experts_ != nullptr && config_.IsMoeLayer(layer_idx);
  }
  static TensorView Rows(const DeviceTensor& tensor, const Step& step) {
    return tensor.view.Slice(step.first_row, step.num_tokens);
  }

  const ModelConfig config_;
  ModelWeights weights_;
  Backend* const backend_;
  const ModelRunnerOptions options_;
  RankGroup group_;
  std::vector<std::vector<int32_t>> held_;
  float softmax_scale_ = 0;
  DeviceTensor cos_sin_;
  KvCache cache_;
  std::unique_ptr<DeviceSampler> sampler_;  // null where the host samples
  Workspace work_;
  std::unique_ptr<ExpertParallel> experts_;  // null where this rank has all experts
  std::vector<uint8_t> host_arrays_;         // as work_.step_arrays
  StepPart cuts_[2];
  Step parts_[2];
  std::vector<int32_t> host_rows_;
  std::vector<float> host_logits_;
  int64_t last_num_tokens_ = 0;
};

// What one token of this model keeps in the cache, layer by layer; kU8: FP8 entries.
std::vector<KvLayerSpec> KvLayers(const ModelConfig& config, DType dtype);

}  // namespace jevons

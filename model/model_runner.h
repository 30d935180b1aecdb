// The graph of a DeepSeek V2 or V3 model: token ids in, logits out, keys to the cache.
#pragma once

#include <memory>
#include <span>

#include "base/status.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/model_weights.h"
#include "ops/backend.h"

namespace jevons {

struct ModelRunnerOptions {
  int32_t max_tokens = 512;      // query tokens of one step
  int32_t max_num_seqs = 64;     // sequences of one step
  int32_t max_positions = 4096;  // tokens of one sequence
  int32_t max_logits_rows = 64;  // rows of one Logits call
  int32_t num_blocks = 64;       // of the KV cache
  int32_t block_tokens = 64;
};

// One step's flat arrays; see Batch of the scheduler, which has the same shapes.
struct StepInput {
  std::span<const int32_t> token_ids = {};     // [num_tokens]
  std::span<const int32_t> positions = {};     // [num_tokens]
  std::span<const int64_t> slot_mapping = {};  // [num_tokens]
  std::span<const int32_t> cu_seqlens_q = {};  // [num_seqs + 1]
  std::span<const int32_t> context_lens = {};  // [num_seqs]
  std::span<const int32_t> block_tables = {};  // [num_seqs, max_blocks]
  int32_t max_blocks = 0;
};

// Used by one thread at a time. All memory is taken in Create.
class ModelRunner {
 public:
  static absl::StatusOr<std::unique_ptr<ModelRunner>> Create(const ModelConfig& config,
                                                             ModelWeights weights, Backend* backend,
                                                             const ModelRunnerOptions& options);

  // Computes the step: the cache holds its keys afterwards, and Logits may be asked for its rows.
  absl::Status Run(const StepInput& input);

  // Host memory f32 [rows.size(), vocab_size] for rows (token indices) of the last Run; valid until
  // the next call. At most max_logits_rows rows.
  absl::StatusOr<TensorView> Logits(std::span<const int32_t> rows);

  const ModelConfig& config() const { return config_; }
  const ModelWeights& weights() const { return weights_; }

 private:
  struct Workspace {
    DeviceTensor x, norm, delta, qkv, q_a, q, q_latent, attended, values, gate_up, act, shared;
    DeviceTensor router_logits, topk_idx, topk_weights, cu_rows, row_token, token_row;
    DeviceTensor expert_gate_up, expert_act, expert_out, row_idx, hidden, logits;
  };
  // The step's index arrays and the rows in use, as views.
  struct Step {
    int64_t num_tokens = 0;
    TensorView token_ids, positions, slot_mapping, cu_seqlens_q, context_lens, block_tables;
  };

  ModelRunner(const ModelConfig& config, ModelWeights weights, Backend* backend,
              const ModelRunnerOptions& options)
      : config_(config), weights_(std::move(weights)), backend_(backend), options_(options) {}

  absl::Status Allocate();
  absl::Status AllocateMoe();
  absl::Status AddTensor(DeviceTensor& out, DType dtype, std::initializer_list<int64_t> shape);
  absl::Status CheckStep(const StepInput& input) const;
  // The number of rows that a step of so many is padded to.
  int64_t Padded(int64_t num_rows, int64_t max_rows) const;
  absl::StatusOr<Step> WriteStep(const StepInput& input);
  absl::Status Layers(const Step& step);
  // `delta` of the workspace = attention of the normed rows.
  absl::Status Attention(int32_t layer_idx, const Step& step);
  absl::Status DenseMlp(const MlpWeights& mlp, int64_t num_tokens, const TensorView& out);
  absl::Status Moe(const MoeWeights& moe, const Step& step);

  const ModelConfig config_;
  const ModelWeights weights_;
  Backend* const backend_;
  const ModelRunnerOptions options_;
  float softmax_scale_ = 0;
  DeviceTensor cos_sin_;
  KvCache cache_;
  Workspace work_;
  // All index arrays of a step, on the device and as the host fills them.
  DeviceTensor step_arrays_;
  std::vector<uint8_t> host_arrays_;
  std::vector<int32_t> host_rows_;
  std::vector<float> host_logits_;
  int64_t last_num_tokens_ = 0;
};

// What one token of this model keeps in the cache, layer by layer.
std::vector<KvLayerSpec> KvLayers(const ModelConfig& config, DType dtype);

}  // namespace jevons

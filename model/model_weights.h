// The weights of a DeepSeek V2 or V3 model, packed for a backend.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "ops/backend.h"

namespace jevons {

// q_proj (or q_a_proj) and kv_a_proj_with_mqa read the same input and are one matrix here, query
// rows first. kv_b_proj is cut per head into UK and UV, UK transposed: the absorbed form.
struct AttentionWeights {
  DeviceTensor q_a_norm;  // absent without q_lora_rank
  DeviceTensor kv_a_norm;
  std::unique_ptr<Weight> qkv_a;
  DeviceTensor qkv_a_bias;      // absent unless attention_bias
  std::unique_ptr<Weight> q_b;  // null without q_lora_rank
  std::unique_ptr<Weight> uk;   // per head [kv_lora_rank, qk_nope_head_dim]
  std::unique_ptr<Weight> uv;   // per head [v_head_dim, kv_lora_rank]
  std::unique_ptr<Weight> o;
  DeviceTensor o_bias;  // absent unless attention_bias
};

// gate rows, then up rows, in one matrix.
struct MlpWeights {
  std::unique_ptr<Weight> gate_up;
  std::unique_ptr<Weight> down;
};

struct MoeWeights {
  std::unique_ptr<Weight> router;
  DeviceTensor router_bias;  // absent but for noaux_tc
  MlpWeights experts;        // one group an expert; then the shared ones where they are grouped
  MlpWeights shared;         // null weights without shared experts, or where they are grouped
};

struct LayerWeights {
  DeviceTensor input_norm;
  DeviceTensor post_attention_norm;
  AttentionWeights attention;
  MlpWeights dense;  // of a dense layer
  MoeWeights moe;    // of a MoE layer
};

struct ModelWeights {
  DeviceTensor embedding;
  std::vector<LayerWeights> layers;
  DeviceTensor final_norm;
  std::unique_ptr<Weight> head;

  // Bytes of the packed matrices: what a step that meets every weight reads.
  int64_t matrix_bytes = 0;
};

// Experts that every token has and that are groups behind the routed ones: all shared ones or none.
// f8 that would have to be cut within a block of scales stays whole.
int32_t NumGroupedSharedExperts(const ModelConfig& config, const BackendTraits& traits);

// Reads and packs every tensor; the checkpoint may be dropped afterwards. Tensors must have passed
// CheckTensors. Where `experts` is given, a MoE layer i has the routed experts experts[i] alone, in
// that order, and no others are read. `input` is that of all weights that are FP8; UK and UV are not.
absl::StatusOr<ModelWeights> LoadModelWeights(
    const ModelConfig& config, const Checkpoint& checkpoint, Backend& backend,
    std::span<const std::vector<int32_t>> experts = {},
    ActivationPrecision input = ActivationPrecision::kExact);

// The routed experts of one MoE layer, as LoadModelWeights reads them. Releases nothing of the
// checkpoint.
absl::StatusOr<MlpWeights> LoadExpertWeights(const ModelConfig& config,
                                             const Checkpoint& checkpoint, Backend& backend,
                                             int32_t layer_idx, std::span<const int32_t> experts,
                                             ActivationPrecision input);

}  // namespace jevons

// What config.json and generation_config.json of a checkpoint say, keys as published.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace jevons {

// YaRN; factor 1 with mscale 1 is plain RoPE.
struct RopeScaling {
  bool yarn = false;
  double factor = 1;
  int32_t original_max_position_embeddings = 4096;
  double beta_fast = 32;
  double beta_slow = 1;
  double mscale = 1;          // absent in the file: 1
  double mscale_all_dim = 0;  // absent: 0, the softmax scale stays untouched

  bool operator==(const RopeScaling&) const = default;
};

// DeepSeek V2 and V3 architectures. Nothing is guessed: a key that the architecture needs and the
// file lacks is an error.
struct ModelConfig {
  std::string model_type;  // deepseek_v2 or deepseek_v3
  int32_t vocab_size = 0;
  int32_t hidden_size = 0;
  int32_t intermediate_size = 0;
  int32_t moe_intermediate_size = 0;
  int32_t num_hidden_layers = 0;
  int32_t num_nextn_predict_layers = 0;
  int32_t num_attention_heads = 0;
  int32_t q_lora_rank = 0;  // 0: q_proj is one matrix
  int32_t kv_lora_rank = 0;
  int32_t qk_nope_head_dim = 0;
  int32_t qk_rope_head_dim = 0;
  int32_t v_head_dim = 0;
  int32_t n_routed_experts = 0;  // 0: every layer is dense
  int32_t n_shared_experts = 0;
  int32_t num_experts_per_tok = 0;
  int32_t n_group = 1;
  int32_t topk_group = 1;
  std::string topk_method;   // greedy, group_limited_greedy, noaux_tc
  std::string scoring_func;  // softmax, sigmoid
  bool norm_topk_prob = false;
  double routed_scaling_factor = 1;
  int32_t first_k_dense_replace = 0;
  int32_t moe_layer_freq = 1;
  double rms_norm_eps = 0;
  double rope_theta = 0;
  RopeScaling rope_scaling;
  int32_t max_position_embeddings = 0;
  bool attention_bias = false;
  bool tie_word_embeddings = false;
  int32_t bos_token_id = -1;           // -1: none
  std::vector<int32_t> eos_token_ids;  // union of config.json and generation_config.json, rising
  // What generation_config.json proposes; -1 where it says nothing. do_sample false is temperature
  // 0.
  double default_temperature = -1;
  double default_top_p = -1;
  int32_t default_top_k = -1;

  bool stores_fp8 = false;  // linear layers as f8_e4m3 with scales of 128 x 128 blocks

  int32_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  // Values that one token keeps in the cache in one layer.
  int32_t kv_entry_dim() const { return kv_lora_rank + qk_rope_head_dim; }
  bool IsMoeLayer(int32_t layer) const {
    return n_routed_experts > 0 && layer >= first_k_dense_replace && layer % moe_layer_freq == 0;
  }
};

// `config_json` is the text of config.json; `generation_json` that of generation_config.json or
// empty. INVALID_ARGUMENT lists every missing key, and every value of the wrong type, out of range
// or in contradiction to another, with key, limit and value. UNIMPLEMENTED names what this program
// does not support: the model_type, a kind of RoPE, a quantization, an activation.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view config_json,
                                             std::string_view generation_json);

// Reads both files of a checkpoint folder. NOT_FOUND names the file that is not there.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& folder);

// Rotation of the first half of the table's row: inv_freq[i] for i in [0, qk_rope_head_dim / 2).
std::vector<float> RopeInvFreq(const ModelConfig& config);
// What cos and sin are multiplied by; 1 for every released model.
double RopeCosSinFactor(const ModelConfig& config);
// qk_head_dim^-0.5, times the square of YaRN's factor where mscale_all_dim is set.
double SoftmaxScale(const ModelConfig& config);
// f32 [num_positions, qk_rope_head_dim]: cosines then sines of the fp32 angle position * inv_freq.
std::vector<float> RopeTable(const ModelConfig& config, int32_t num_positions);

}  // namespace jevons

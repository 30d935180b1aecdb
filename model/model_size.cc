#include "model/model_size.h"

#include "model/tensor_specs.h"

namespace jevons {

ModelSize ComputeModelSize(const ModelConfig& config) {
  ModelSize out;
  for (const TensorSpec& spec : ExpectedTensors(config)) {
    int64_t n = 1;
    for (int64_t dim : spec.shape) n *= dim;
    out.num_params += n;
  }
  int64_t num_idle_experts = 0;
  for (int32_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    if (config.IsMoeLayer(layer)) {
      num_idle_experts += config.n_routed_experts - config.num_experts_per_tok;
    }
  }
  const int64_t embedding = int64_t{config.vocab_size} * config.hidden_size;
  const int64_t expert = 3 * int64_t{config.hidden_size} * config.moe_intermediate_size;
  out.num_active_params =
      out.num_params - num_idle_experts * expert - (config.tie_word_embeddings ? 0 : embedding);
  out.kv_values_per_token = int64_t{config.num_hidden_layers} * config.kv_entry_dim();
  out.kv_bytes_per_token = 2 * out.kv_values_per_token;
  return out;
}

int64_t LeastWeightBytes(const ModelConfig& config, std::span<const std::vector<int32_t>> experts) {
  int64_t num_left_out = 0;
  for (size_t layer = 0; layer < experts.size(); ++layer) {
    if (!config.IsMoeLayer(static_cast<int32_t>(layer))) continue;
    num_left_out += config.n_routed_experts - static_cast<int64_t>(experts[layer].size());
  }
  const int64_t expert = 3 * int64_t{config.hidden_size} * config.moe_intermediate_size;
  const int64_t num_held = ComputeModelSize(config).num_params - num_left_out * expert;
  return num_held * (config.stores_fp8 ? 1 : 2);
}

std::map<std::string, int64_t> BytesByDType(const Checkpoint& checkpoint) {
  std::map<std::string, int64_t> out;
  for (const std::string& name : checkpoint.Names()) {
    const auto info = checkpoint.Info(name);
    if (info.ok()) out[info->dtype] += info->bytes;
  }
  return out;
}

}  // namespace jevons

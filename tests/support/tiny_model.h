// Small models with random weights, for tests of what runs around and inside a model.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bench/random_checkpoint.h"
#include "engine/loaded_model.h"
#include "gtest/gtest.h"
#include "tests/support/test_backend.h"

namespace jevons {

// V3: query compression, sigmoid routing with bias, groups, one dense and two MoE layers.
inline ModelConfig TinyV3Config() {
  ModelConfig c;
  c.model_type = "deepseek_v3";
  c.vocab_size = 130;
  c.hidden_size = 48;
  c.intermediate_size = 80;
  c.moe_intermediate_size = 24;
  c.num_hidden_layers = 3;
  c.num_attention_heads = 3;
  c.q_lora_rank = 20;
  c.kv_lora_rank = 24;
  c.qk_nope_head_dim = 12;
  c.qk_rope_head_dim = 8;
  c.v_head_dim = 10;
  c.n_routed_experts = 12;
  c.n_shared_experts = 1;
  c.num_experts_per_tok = 4;
  c.n_group = 4;
  c.topk_group = 2;
  c.topk_method = "noaux_tc";
  c.scoring_func = "sigmoid";
  c.norm_topk_prob = true;
  c.routed_scaling_factor = 2.5;
  c.first_k_dense_replace = 1;
  c.rms_norm_eps = 1e-6;
  c.rope_theta = 10000;
  c.max_position_embeddings = 1024;
  c.eos_token_ids = {1};
  return c;
}

// V2: one query matrix, softmax routing.
inline ModelConfig TinyV2Config() {
  ModelConfig c = TinyV3Config();
  c.model_type = "deepseek_v2";
  c.q_lora_rank = 0;
  c.n_shared_experts = 2;
  c.n_group = 1;
  c.topk_group = 1;
  c.topk_method = "greedy";
  c.scoring_func = "softmax";
  c.norm_topk_prob = false;
  c.routed_scaling_factor = 1;
  return c;
}

inline ModelConfig DenseConfig() {
  ModelConfig c = TinyV2Config();
  c.n_routed_experts = 0;
  c.n_shared_experts = 0;
  c.num_experts_per_tok = 0;
  c.first_k_dense_replace = c.num_hidden_layers;
  return c;
}

// A tiny model with one kind of cache, and of activations where its weights are FP8.
struct TinyCase {
  ModelConfig config;
  KvCacheType kv_cache = KvCacheType::kAuto;
  ActivationPrecision activations = ActivationPrecision::kExact;

  // "deepseek_v3", "deepseek_v3_fp8_cache"
  std::string name() const {
    return config.model_type + (kv_cache == KvCacheType::kFp8 ? "_fp8_cache" : "");
  }
};
inline std::vector<TinyCase> TinyCases() {
  return {{TinyV2Config()}, {TinyV3Config()}, {TinyV3Config(), KvCacheType::kFp8}};
}

inline BackendKind TestBackendKind() { return kTestsCuda ? BackendKind::kCuda : BackendKind::kCpu; }

inline std::unique_ptr<Engine> StartTinyEngine(const ModelConfig& config, EngineOptions options,
                                               const Clock* clock) {
  options.cpu_target = TestCpuTarget();
  options.backend = TestBackendKind();
  if (options.num_threads == 0) options.num_threads = 2;
  const RandomCheckpoint checkpoint(config, 7);
  auto model = LoadModel(options, config, checkpoint, nullptr, nullptr);
  EXPECT_TRUE(model.ok()) << model.status();
  return StartEngine(*std::move(model), clock);
}

}  // namespace jevons

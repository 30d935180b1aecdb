#include "model/config.h"

#include <limits>

#include "gtest/gtest.h"
#include "tests/support/checkpoint_writer.h"
#include "tests/support/status_matchers.h"
#include "tests/support/test_data.h"

namespace jevons {
namespace {

using nlohmann::json;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;

absl::StatusOr<ModelConfig> Parse(const json& config, const std::string& generation = "") {
  return ParseModelConfig(config.dump(), generation);
}

// The tiny config with one key set, to null too.
json With(const std::string& key, const json& value, json config = TinyConfigJson()) {
  config[key] = value;
  return config;
}

json Without(const std::string& key, json config = TinyConfigJson()) {
  config.erase(key);
  return config;
}

absl::StatusOr<ModelConfig> ParseReleased(const std::string& name) {
  return ParseModelConfig(ReadFile(DataPath("configs/" + name + "/config.json")), "");
}

TEST(ConfigTest, ReadsV2LiteAsReleased) {
  const auto c = ParseReleased("DeepSeek-V2-Lite");
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->model_type, "deepseek_v2");
  EXPECT_EQ(c->vocab_size, 102400);
  EXPECT_EQ(c->hidden_size, 2048);
  EXPECT_EQ(c->intermediate_size, 10944);
  EXPECT_EQ(c->moe_intermediate_size, 1408);
  EXPECT_EQ(c->num_hidden_layers, 27);
  EXPECT_EQ(c->num_nextn_predict_layers, 0);
  EXPECT_EQ(c->num_attention_heads, 16);
  EXPECT_EQ(c->q_lora_rank, 0);
  EXPECT_EQ(c->kv_lora_rank, 512);
  EXPECT_EQ(c->qk_head_dim(), 192);
  EXPECT_EQ(c->kv_entry_dim(), 576);
  EXPECT_EQ(c->v_head_dim, 128);
  EXPECT_EQ(c->n_routed_experts, 64);
  EXPECT_EQ(c->n_shared_experts, 2);
  EXPECT_EQ(c->num_experts_per_tok, 6);
  EXPECT_EQ(c->n_group, 1);
  EXPECT_EQ(c->topk_group, 1);
  EXPECT_EQ(c->topk_method, "greedy");
  EXPECT_EQ(c->scoring_func, "softmax");
  EXPECT_FALSE(c->norm_topk_prob);
  EXPECT_EQ(c->routed_scaling_factor, 1.0);
  EXPECT_EQ(c->first_k_dense_replace, 1);
  EXPECT_EQ(c->moe_layer_freq, 1);
  EXPECT_EQ(c->rms_norm_eps, 1e-6);
  EXPECT_EQ(c->rope_theta, 10000);
  EXPECT_TRUE(c->rope_scaling.yarn);
  EXPECT_EQ(c->rope_scaling.factor, 40);
  EXPECT_EQ(c->rope_scaling.mscale, 0.707);
  EXPECT_EQ(c->rope_scaling.mscale_all_dim, 0.707);
  EXPECT_EQ(c->max_position_embeddings, 163840);
  EXPECT_FALSE(c->attention_bias);
  EXPECT_FALSE(c->tie_word_embeddings);
  EXPECT_EQ(c->bos_token_id, 100000);
  EXPECT_EQ(c->eos_token_ids, std::vector<int32_t>{100001});
  EXPECT_EQ(c->default_temperature, -1);
  EXPECT_FALSE(c->IsMoeLayer(0));
  EXPECT_TRUE(c->IsMoeLayer(1));
}

TEST(ConfigTest, ReadsV2With236BParametersAsReleased) {
  const auto c = ParseReleased("DeepSeek-V2-236B-variant");
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->q_lora_rank, 1536);
  EXPECT_EQ(c->topk_method, "group_limited_greedy");
  EXPECT_EQ(c->n_group, 8);
  EXPECT_EQ(c->topk_group, 3);
  EXPECT_EQ(c->routed_scaling_factor, 16.0);
}

TEST(ConfigTest, ReadsV3AndR1AsReleased) {
  for (const char* name : {"DeepSeek-V3", "DeepSeek-R1", "DeepSeek-V3.1-NVFP4"}) {
    const auto c = ParseReleased(name);
    ASSERT_TRUE(c.ok()) << name << ": " << c.status();
    EXPECT_EQ(c->model_type, "deepseek_v3");
    EXPECT_EQ(c->num_hidden_layers, 61);
    EXPECT_EQ(c->num_nextn_predict_layers, 1);
    EXPECT_EQ(c->n_routed_experts, 256);
    EXPECT_EQ(c->topk_method, "noaux_tc");
    EXPECT_EQ(c->scoring_func, "sigmoid");
    EXPECT_TRUE(c->norm_topk_prob);
    EXPECT_EQ(c->routed_scaling_factor, 2.5);
    EXPECT_EQ(c->first_k_dense_replace, 3);
    EXPECT_EQ(c->bos_token_id, 0);
    EXPECT_EQ(c->eos_token_ids, std::vector<int32_t>{1});
  }
}

// Kimi K2 has a model_type of its own; its shape is that of V3.
TEST(ConfigTest, ReadsTheShapeOfKimiK2UnderTheV3Type) {
  json k2 = json::parse(ReadFile(DataPath("configs/Kimi-K2-Instruct/config.json")));
  ExpectError(Parse(k2), kUnimplemented, {"kimi_k2", "deepseek_v2", "deepseek_v3"});
  k2["model_type"] = "deepseek_v3";
  const auto c = Parse(k2);
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->n_group, 1);
  EXPECT_EQ(c->n_routed_experts, 384);
  EXPECT_EQ(c->rope_theta, 50000);
  const std::vector<float> inv_freq = RopeInvFreq(*c);
  for (float f : inv_freq) EXPECT_GT(f, 0);
  EXPECT_EQ(inv_freq[0], 1);
}

TEST(ConfigTest, OtherModelTypesAreUnimplementedByName) {
  ExpectError(ParseReleased("Mixtral-8x7B-v0.1"), kUnimplemented,
              {"model_type \"mixtral\"", "deepseek_v2 and deepseek_v3"});
  ExpectError(ParseReleased("DeepSeek-V3.2"), kUnimplemented, {"deepseek_v32"});
  ExpectError(Parse(Without("model_type")), kInvalid, {"missing keys: model_type"});
  ExpectError(Parse(With("model_type", 3)), kInvalid, {"model_type is 3, not a string"});
}

TEST(ConfigTest, OneErrorListsAllMissingKeys) {
  ExpectError(Parse({{"model_type", "deepseek_v3"}}), kInvalid,
              {"config.json: missing keys: vocab_size, hidden_size, intermediate_size, "
               "num_hidden_layers, max_position_embeddings, rms_norm_eps, num_attention_heads, "
               "kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim, rope_theta, "
               "n_routed_experts, moe_intermediate_size, num_experts_per_tok, "
               "routed_scaling_factor, first_k_dense_replace, norm_topk_prob"});
}

TEST(ConfigTest, EveryNeededKeyIsMissedByName) {
  for (const char* key :
       {"vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size",
        "num_hidden_layers", "num_attention_heads", "kv_lora_rank", "qk_nope_head_dim",
        "qk_rope_head_dim", "v_head_dim", "n_routed_experts", "num_experts_per_tok",
        "norm_topk_prob", "routed_scaling_factor", "first_k_dense_replace", "rms_norm_eps",
        "rope_theta", "max_position_embeddings"}) {
    ExpectError(Parse(Without(key)), kInvalid, {std::string("missing keys: ") + key});
  }
}

TEST(ConfigTest, MissingAndWrongKeysComeInOneError) {
  json config = Without("hidden_size");
  config["vocab_size"] = -1;
  config["v_head_dim"] = "8";
  ExpectError(Parse(config), kInvalid,
              {"missing keys: hidden_size", "vocab_size is -1; allowed are 1 to 16777216",
               "v_head_dim is \"8\", not an integer"});
}

TEST(ConfigTest, KeysThatReleasedFilesOmitHaveTheirPublishedMeaning) {
  json config = TinyConfigJson("deepseek_v3", {{"n_routed_experts", 16}});
  for (const char* key :
       {"topk_method", "scoring_func", "n_group", "topk_group", "moe_layer_freq", "attention_bias",
        "tie_word_embeddings", "hidden_act", "num_nextn_predict_layers", "q_lora_rank",
        "bos_token_id", "eos_token_id", "num_key_value_heads"}) {
    config.erase(key);
  }
  const auto v3 = Parse(config);
  ASSERT_TRUE(v3.ok()) << v3.status();
  EXPECT_EQ(v3->topk_method, "noaux_tc");
  EXPECT_EQ(v3->scoring_func, "sigmoid");
  EXPECT_EQ(v3->n_group, 8);
  EXPECT_EQ(v3->topk_group, 4);
  EXPECT_EQ(v3->moe_layer_freq, 1);
  EXPECT_FALSE(v3->attention_bias);
  EXPECT_FALSE(v3->tie_word_embeddings);
  EXPECT_EQ(v3->q_lora_rank, 0);
  EXPECT_EQ(v3->bos_token_id, -1);
  EXPECT_TRUE(v3->eos_token_ids.empty());

  json v2 = With("n_group", nullptr, With("topk_group", nullptr, TinyConfigJson("deepseek_v2")));
  v2.erase("scoring_func");
  const auto c = Parse(v2);
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->scoring_func, "softmax");
  EXPECT_EQ(c->n_group, 1);
  EXPECT_EQ(c->topk_group, 1);
  ExpectError(Parse(Without("topk_method", TinyConfigJson("deepseek_v2"))), kInvalid,
              {"missing keys: topk_method"});
  v2["topk_method"] = "group_limited_greedy";
  ExpectError(Parse(v2), kInvalid, {"missing keys: n_group, topk_group"});
}

TEST(ConfigTest, KeysOfTrainingAndUnknownKeysAreIgnored) {
  const json config = TinyConfigJson("deepseek_v3", {{"ep_size", 8},
                                                     {"pretraining_tp", 2},
                                                     {"aux_loss_alpha", 0.001},
                                                     {"seq_aux", true},
                                                     {"head_dim", 4},
                                                     {"some_new_key", json::array({1, 2})}});
  EXPECT_TRUE(Parse(config).ok()) << Parse(config).status();
}

TEST(ConfigTest, WrongTypesNameKeyAndValue) {
  ExpectError(Parse(With("hidden_size", "32")), kInvalid, {"hidden_size is \"32\", not an int"});
  ExpectError(Parse(With("hidden_size", 32.5)), kInvalid, {"hidden_size is 32.5, not an integer"});
  ExpectError(Parse(With("hidden_size", 32.0)), kInvalid, {"hidden_size is 32.0, not an integer"});
  ExpectError(Parse(With("hidden_size", true)), kInvalid, {"hidden_size is true, not an integer"});
  ExpectError(Parse(With("hidden_size", json::array({32}))), kInvalid, {"hidden_size is [32]"});
  ExpectError(Parse(With("rms_norm_eps", "tiny")), kInvalid, {"rms_norm_eps", "not a number"});
  ExpectError(Parse(With("norm_topk_prob", 1)), kInvalid, {"norm_topk_prob is 1, not true"});
  ExpectError(Parse(With("topk_method", 1)), kInvalid, {"topk_method is 1, not a string"});
  ExpectError(Parse(With("rope_scaling", "yarn")), kInvalid, {"rope_scaling", "not an object"});
  ExpectError(Parse(With("eos_token_id", "x")), kInvalid, {"eos_token_id is \"x\""});
  ExpectError(Parse(With("eos_token_id", json::array({1, 1.5}))), kInvalid,
              {"eos_token_id is 1.5"});
  ExpectError(Parse(With("quantization_config", 8)), kInvalid, {"quantization_config is 8"});
}

TEST(ConfigTest, SizesOutOfRangeNameKeyLimitAndValue) {
  const struct {
    const char* key;
    json value;
    const char* limit;
  } kCases[] = {
      {"vocab_size", 0, "1 to 16777216"},
      {"vocab_size", 1LL << 40, "1 to 16777216"},
      {"hidden_size", 0, "1 to 1048576"},
      {"hidden_size", -5, "1 to 1048576"},
      {"hidden_size", std::numeric_limits<uint64_t>::max(), "1 to 1048576"},
      {"intermediate_size", 0, "1 to 1048576"},
      {"moe_intermediate_size", 0, "1 to 1048576"},
      {"num_hidden_layers", 0, "1 to 1024"},
      {"num_hidden_layers", 1000000000, "1 to 1024"},
      {"num_nextn_predict_layers", -1, "0 to 64"},
      {"num_attention_heads", 0, "1 to 4096"},
      {"q_lora_rank", -1, "0 to 65536"},
      {"kv_lora_rank", 0, "1 to 65536"},
      {"qk_nope_head_dim", 0, "1 to 4096"},
      {"qk_rope_head_dim", 0, "2 to 4096"},
      {"v_head_dim", 0, "1 to 4096"},
      {"n_routed_experts", -1, "0 to 65536"},
      {"n_shared_experts", -1, "0 to 1024"},
      {"num_experts_per_tok", 0, "1 to 65536"},
      {"n_group", 0, "1 to 65536"},
      {"topk_group", 0, "1 to 65536"},
      {"moe_layer_freq", 0, "1 to 1024"},
      {"first_k_dense_replace", -1, "0 to 1024"},
      {"max_position_embeddings", 0, "1 to 134217728"},
      {"rms_norm_eps", 0, "above 0 up to 0.1"},
      {"rms_norm_eps", -1e-6, "above 0 up to 0.1"},
      {"rope_theta", 0, "above 1 up to 1e+12"},
      {"rope_theta", -10000, "above 1 up to 1e+12"},
      {"routed_scaling_factor", 0, "above 0 up to 1e+06"},
      {"bos_token_id", 64, "0 to 63"},
      {"bos_token_id", -1, "0 to 63"},
      {"eos_token_id", 64, "0 to 63"},
  };
  for (const auto& c : kCases) {
    ExpectError(Parse(With(c.key, c.value)), kInvalid,
                {std::string(c.key) + " is " + c.value.dump(), c.limit});
  }
}

TEST(ConfigTest, ContradictionsNameBothKeys) {
  ExpectError(Parse(With("num_experts_per_tok", 9)), kInvalid,
              {"num_experts_per_tok (9) is more than n_routed_experts (8)"});
  ExpectError(Parse(With("n_group", 3)), kInvalid,
              {"n_routed_experts (8) is not a multiple of n_group (3)"});
  ExpectError(Parse(With("topk_group", 5)), kInvalid, {"topk_group (5) is more than n_group (4)"});
  ExpectError(Parse(With("num_experts_per_tok", 5)), kInvalid,
              {"num_experts_per_tok (5) is more than the 4 experts in topk_group (2) groups of 2"});
  ExpectError(Parse(With("n_group", 8)), kInvalid, {"n_group (8) leaves groups of 1 expert"});
  ExpectError(Parse(With("qk_rope_head_dim", 5)), kInvalid, {"qk_rope_head_dim is 5", "even"});
  const json many =
      TinyConfigJson("deepseek_v3", {{"n_routed_experts", 65536}, {"num_hidden_layers", 1024}});
  ExpectError(Parse(many), kInvalid,
              {"n_routed_experts (65536) times num_hidden_layers (1024) is 67108864", "262144"});
}

TEST(ConfigTest, WithoutRoutedExpertsEveryLayerIsDense) {
  json config = With("n_routed_experts", nullptr);
  config.erase("moe_intermediate_size");
  config.erase("num_experts_per_tok");
  for (const json& none : {json(nullptr), json(0)}) {
    config["n_routed_experts"] = none;
    const auto c = Parse(config);
    ASSERT_TRUE(c.ok()) << c.status();
    EXPECT_FALSE(c->IsMoeLayer(1));
  }
}

TEST(ConfigTest, QLoraRankNullAbsentAndZeroMeanNone) {
  for (const json& config :
       {With("q_lora_rank", nullptr), Without("q_lora_rank"), With("q_lora_rank", 0)}) {
    const auto c = Parse(config);
    ASSERT_TRUE(c.ok()) << c.status();
    EXPECT_EQ(c->q_lora_rank, 0);
  }
}

TEST(ConfigTest, UnsupportedFeaturesAreUnimplementedByName) {
  ExpectError(Parse(With("hidden_act", "gelu")), kUnimplemented, {"hidden_act \"gelu\"", "silu"});
  ExpectError(Parse(With("topk_method", "greedy")), kUnimplemented,
              {"topk_method \"greedy\"", "deepseek_v3", "noaux_tc"});
  ExpectError(Parse(With("scoring_func", "softmax")), kUnimplemented,
              {"scoring_func \"softmax\"", "sigmoid"});
  ExpectError(Parse(With("scoring_func", "sigmoid", TinyConfigJson("deepseek_v2"))), kUnimplemented,
              {"scoring_func \"sigmoid\"", "softmax"});
  ExpectError(Parse(With("topk_method", "noaux_tc", TinyConfigJson("deepseek_v2"))), kUnimplemented,
              {"topk_method \"noaux_tc\"", "greedy"});
  ExpectError(Parse(With("rope_interleave", false)), kUnimplemented, {"rope_interleave"});
  ExpectError(Parse(With("mlp_bias", true)), kUnimplemented, {"mlp_bias"});
}

TEST(ConfigTest, OnlyFp8In128By128BlocksIsAQuantizationWeKnow) {
  json fp8 = {{"quant_method", "fp8"},
              {"fmt", "e4m3"},
              {"activation_scheme", "dynamic"},
              {"scale_fmt", "ue8m0"},
              {"weight_block_size", {128, 128}}};
  EXPECT_TRUE(Parse(With("quantization_config", fp8)).ok());
  EXPECT_TRUE(Parse(With("quantization_config", nullptr)).ok());
  json other = fp8;
  other["weight_block_size"] = {64, 64};
  ExpectError(Parse(With("quantization_config", other)), kUnimplemented, {"[64,64]", "[128,128]"});
  other = fp8;
  other["weight_block_size"] = nullptr;
  ExpectError(Parse(With("quantization_config", other)), kUnimplemented, {"null"});
  other = fp8;
  other["quant_method"] = "awq";
  ExpectError(Parse(With("quantization_config", other)), kUnimplemented, {"\"awq\"", "fp8"});
  other = fp8;
  other["fmt"] = "e5m2";
  ExpectError(Parse(With("quantization_config", other)), kUnimplemented, {"e5m2"});
}

TEST(ConfigTest, DeepNestingIsAnErrorAndNotAnOverflowOfTheStack) {
  const std::string deep = std::string(1000000, '[') + std::string(1000000, ']');
  ExpectError(ParseModelConfig("{\"vocab_size\": " + deep + "}", ""), kInvalid,
              {"more than 64 values in one another"});
}

TEST(ConfigTest, BrokenJsonIsAnErrorWithTheOffset) {
  ExpectError(ParseModelConfig("", ""), kInvalid, {"config.json: not JSON at byte"});
  ExpectError(ParseModelConfig("{\"a\": 1,}", ""), kInvalid, {"not JSON at byte 9"});
  ExpectError(ParseModelConfig("[1]", ""), kInvalid, {"config.json: not a JSON object"});
  ExpectError(ParseModelConfig("{\"vocab_size\": NaN}", ""), kInvalid, {"not JSON"});
  ExpectError(ParseModelConfig("{\"vocab_size\": 1e999}", ""), kInvalid, {"not JSON"});
  ExpectError(ParseModelConfig("{\"a\": \"\xFF\"}", ""), kInvalid, {"not JSON"});
  ExpectError(ParseModelConfig(std::string(60, '['), ""), kInvalid, {"not JSON"});
  ExpectError(Parse(TinyConfigJson(), "{"), kInvalid, {"generation_config.json: not JSON"});
}

}  // namespace
}  // namespace jevons

#include "model/model_size.h"

#include <cmath>

#include "gtest/gtest.h"
#include "model/tensor_specs.h"
#include "tests/support/checkpoint_writer.h"
#include "tests/support/test_data.h"

namespace jevons {
namespace {

ModelSize Released(const std::string& name) {
  const auto config = ParseModelConfig(ReadFile(DataPath("configs/" + name + "/config.json")), "");
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? ComputeModelSize(*config) : ModelSize{};
}

TEST(ModelSizeTest, V2LiteHasItsPublishedSize) {
  const ModelSize size = Released("DeepSeek-V2-Lite");
  EXPECT_NEAR(static_cast<double>(size.num_params) / 1e9, 15.71, 0.005);
  EXPECT_NEAR(static_cast<double>(size.num_active_params) / 1e9, 2.451, 0.0005);
  EXPECT_EQ(size.kv_values_per_token, 27 * 576);
  EXPECT_EQ(size.kv_bytes_per_token, 31104);
}

TEST(ModelSizeTest, V3HasItsPublishedSize) {
  const ModelSize size = Released("DeepSeek-V3");
  EXPECT_NEAR(static_cast<double>(size.num_params) / 1e9, 671.0, 0.05);
  EXPECT_NEAR(static_cast<double>(size.num_active_params) / 1e9, 36.6, 0.05);
  EXPECT_EQ(size.kv_values_per_token, 61 * 576);
  EXPECT_EQ(size.kv_bytes_per_token, 70272);
}

TEST(ModelSizeTest, V2HasItsPublishedSize) {
  const ModelSize size = Released("DeepSeek-V2-236B-variant");
  EXPECT_NEAR(static_cast<double>(size.num_params) / 1e9, 235.7, 0.1);
}

TEST(ModelSizeTest, TheLeastBytesOfWeightsAreThoseOfWhatIsHeld) {
  const auto config = ParseModelConfig(TinyConfigJson().dump(), "");
  ASSERT_TRUE(config.ok()) << config.status();
  const int64_t num_params = ComputeModelSize(*config).num_params;
  EXPECT_EQ(LeastWeightBytes(*config, {}), 2 * num_params);
  // Of eight experts of the one MoE layer.
  const std::vector<std::vector<int32_t>> three = {{}, {0, 4, 7}};
  const int64_t expert = 3 * config->hidden_size * config->moe_intermediate_size;
  EXPECT_EQ(LeastWeightBytes(*config, three), 2 * (num_params - 5 * expert));
  ModelConfig fp8 = *config;
  fp8.stores_fp8 = true;
  EXPECT_EQ(LeastWeightBytes(fp8, three), num_params - 5 * expert);
}

TEST(ModelSizeTest, ATiedHeadCountsOnce) {
  const auto untied = ParseModelConfig(TinyConfigJson().dump(), "");
  const auto tied =
      ParseModelConfig(TinyConfigJson("deepseek_v3", {{"tie_word_embeddings", true}}).dump(), "");
  ASSERT_TRUE(untied.ok() && tied.ok());
  EXPECT_EQ(ComputeModelSize(*untied).num_params - ComputeModelSize(*tied).num_params, 64 * 32);
  EXPECT_EQ(ComputeModelSize(*untied).num_active_params, ComputeModelSize(*tied).num_active_params);
}

TEST(ModelSizeTest, BytesOfACheckpointAddUpByDType) {
  const auto config = ParseModelConfig(TinyConfigJson().dump(), "");
  ASSERT_TRUE(config.ok());
  const TempFolder folder;
  CheckpointWriter writer = RandomTensors(*config, 3);
  writer.Add("odd", {"BOOL", {7}, "1234567"});
  writer.WriteShards(folder.path(), 2);
  const auto checkpoint = Checkpoint::Open(folder.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto bytes = BytesByDType(**checkpoint);
  // All in bf16 but the router's bias, which is 8 values of f32.
  EXPECT_EQ(bytes.at("BF16"), 2 * (ComputeModelSize(*config).num_params - 8));
  EXPECT_EQ(bytes.at("F32"), 32);
  EXPECT_EQ(bytes.at("BOOL"), 7);
  EXPECT_EQ(bytes.size(), 3u);
}

}  // namespace
}  // namespace jevons

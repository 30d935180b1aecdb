#include "model/tensor_specs.h"

#include <algorithm>

#include "gtest/gtest.h"
#include "tests/support/checkpoint_writer.h"
#include "tests/support/status_matchers.h"
#include "tests/support/test_data.h"

namespace jevons {
namespace {

using nlohmann::json;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

ModelConfig Config(const std::string& type = "deepseek_v3", const json& changes = json::object()) {
  const auto config = ParseModelConfig(TinyConfigJson(type, changes).dump(), "");
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? *config : ModelConfig{};
}

// A folder with the tensors, opened.
class Opened {
 public:
  explicit Opened(const CheckpointWriter& writer) {
    writer.WriteSingle(folder_.path());
    auto checkpoint = Checkpoint::Open(folder_.path());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    if (checkpoint.ok()) checkpoint_ = *std::move(checkpoint);
  }
  const Checkpoint& operator*() const { return *checkpoint_; }
  const Checkpoint* operator->() const { return checkpoint_.get(); }

 private:
  TempFolder folder_;
  std::unique_ptr<Checkpoint> checkpoint_;
};

// Turns a linear weight into F8 with scales, all zero.
void MakeF8(CheckpointWriter* writer, const std::string& name) {
  const std::vector<int64_t> shape = writer->Get(name).shape;
  writer->Add(name, {"F8_E4M3", shape, std::string(static_cast<size_t>(shape[0] * shape[1]), 0)});
  const std::vector<int64_t> scale = {(shape[0] + 127) / 128, (shape[1] + 127) / 128};
  writer->AddF32(name + "_scale_inv", scale,
                 std::vector<float>(static_cast<size_t>(scale[0] * scale[1]), 1.0f));
}

std::vector<std::string> NamesOf(const ModelConfig& config) {
  std::vector<std::string> names;
  for (const TensorSpec& spec : ExpectedTensors(config)) names.push_back(spec.name);
  return names;
}

bool Contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

TEST(TensorSpecsTest, EveryOracleCheckpointFits) {
  for (const char* name :
       {"deepseek_v2_lite", "deepseek_v2_groups", "deepseek_v3", "deepseek_v3_fp8"}) {
    const std::string folder = DataPath(std::string("oracles/") + name);
    const auto config = LoadModelConfig(folder);
    ASSERT_TRUE(config.ok()) << name << ": " << config.status();
    const auto checkpoint = Checkpoint::Open(folder);
    ASSERT_TRUE(checkpoint.ok()) << name << ": " << checkpoint.status();
    const absl::Status fits = CheckTensors(*config, **checkpoint);
    EXPECT_TRUE(fits.ok()) << name << ": " << fits;
    EXPECT_TRUE(UnknownTensors(*config, **checkpoint).empty()) << name;
    EXPECT_EQ(HeadTensorName(*config, **checkpoint).value_or(""), kHeadTensor);
  }
}

TEST(TensorSpecsTest, TheOracleWithRealHeadSizesFits) {
  SKIP_WITHOUT_SHARED("oracles/cases/deepseek_v3_real_heads");
  const std::string folder = SharedPath("oracles/cases/deepseek_v3_real_heads");
  const auto config = LoadModelConfig(folder);
  ASSERT_TRUE(config.ok()) << config.status();
  const auto checkpoint = Checkpoint::Open(folder);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const absl::Status fits = CheckTensors(*config, **checkpoint);
  EXPECT_TRUE(fits.ok()) << fits;
  EXPECT_TRUE(UnknownTensors(*config, **checkpoint).empty());
}

TEST(TensorSpecsTest, V3HasThePublishedNamesAndShapes) {
  const auto config = ParseModelConfig(ReadFile(DataPath("configs/DeepSeek-V3/config.json")), "");
  ASSERT_TRUE(config.ok()) << config.status();
  const std::vector<TensorSpec> specs = ExpectedTensors(*config);
  const auto shape = [&](const std::string& name) {
    for (const TensorSpec& spec : specs) {
      if (spec.name == name) return spec.shape;
    }
    ADD_FAILURE() << name << " is not expected";
    return std::vector<int64_t>{};
  };
  using Shape = std::vector<int64_t>;
  EXPECT_EQ(shape("model.embed_tokens.weight"), (Shape{129280, 7168}));
  EXPECT_EQ(shape("lm_head.weight"), (Shape{129280, 7168}));
  EXPECT_EQ(shape("model.norm.weight"), (Shape{7168}));
  EXPECT_EQ(shape("model.layers.0.mlp.gate_proj.weight"), (Shape{18432, 7168}));
  EXPECT_EQ(shape("model.layers.2.mlp.down_proj.weight"), (Shape{7168, 18432}));
  EXPECT_EQ(shape("model.layers.60.self_attn.q_a_proj.weight"), (Shape{1536, 7168}));
  EXPECT_EQ(shape("model.layers.60.self_attn.q_a_layernorm.weight"), (Shape{1536}));
  EXPECT_EQ(shape("model.layers.60.self_attn.q_b_proj.weight"), (Shape{24576, 1536}));
  EXPECT_EQ(shape("model.layers.60.self_attn.kv_a_proj_with_mqa.weight"), (Shape{576, 7168}));
  EXPECT_EQ(shape("model.layers.60.self_attn.kv_a_layernorm.weight"), (Shape{512}));
  EXPECT_EQ(shape("model.layers.60.self_attn.kv_b_proj.weight"), (Shape{32768, 512}));
  EXPECT_EQ(shape("model.layers.60.self_attn.o_proj.weight"), (Shape{7168, 16384}));
  EXPECT_EQ(shape("model.layers.3.mlp.gate.weight"), (Shape{256, 7168}));
  EXPECT_EQ(shape("model.layers.3.mlp.gate.e_score_correction_bias"), (Shape{256}));
  EXPECT_EQ(shape("model.layers.3.mlp.experts.255.up_proj.weight"), (Shape{2048, 7168}));
  EXPECT_EQ(shape("model.layers.3.mlp.experts.255.down_proj.weight"), (Shape{7168, 2048}));
  EXPECT_EQ(shape("model.layers.3.mlp.shared_experts.down_proj.weight"), (Shape{7168, 2048}));
  // 3 at the top; 9 of attention and norms a layer; 3 dense layers; 58 with 256 + 1 experts.
  EXPECT_EQ(specs.size(), 3u + 61 * 9 + 3 * 3 + 58 * (2 + 257 * 3));
}

TEST(TensorSpecsTest, ConfigVariantsChangeWhatIsExpected) {
  const std::vector<std::string> v2 = NamesOf(Config("deepseek_v2"));
  EXPECT_TRUE(Contains(v2, "model.layers.0.self_attn.q_proj.weight"));
  EXPECT_FALSE(Contains(v2, "model.layers.0.self_attn.q_a_proj.weight"));
  EXPECT_FALSE(Contains(v2, "model.layers.1.mlp.gate.e_score_correction_bias"));
  EXPECT_FALSE(Contains(v2, "model.layers.0.self_attn.o_proj.bias"));

  const std::vector<std::string> biased =
      NamesOf(Config("deepseek_v3", {{"attention_bias", true}}));
  for (const char* name : {"q_a_proj", "kv_a_proj_with_mqa", "o_proj"}) {
    EXPECT_TRUE(Contains(biased, std::string("model.layers.0.self_attn.") + name + ".bias"));
  }
  EXPECT_FALSE(Contains(biased, "model.layers.0.self_attn.q_b_proj.bias"));
  EXPECT_FALSE(Contains(biased, "model.layers.0.self_attn.kv_b_proj.bias"));
  EXPECT_FALSE(Contains(NamesOf(Config("deepseek_v2", {{"attention_bias", true}})),
                        "model.layers.0.self_attn.q_proj.bias"));

  EXPECT_FALSE(
      Contains(NamesOf(Config("deepseek_v3", {{"tie_word_embeddings", true}})), "lm_head.weight"));
  EXPECT_FALSE(Contains(NamesOf(Config("deepseek_v3", {{"n_shared_experts", 0}})),
                        "model.layers.1.mlp.shared_experts.up_proj.weight"));
  const std::vector<std::string> sparse =
      NamesOf(Config("deepseek_v3", {{"moe_layer_freq", 2}, {"num_hidden_layers", 3}}));
  EXPECT_TRUE(Contains(sparse, "model.layers.1.mlp.up_proj.weight"));
  EXPECT_TRUE(Contains(sparse, "model.layers.2.mlp.gate.weight"));
}

TEST(TensorSpecsTest, LayersAfterTheLastAreMtp) {
  const ModelConfig config = Config();
  EXPECT_TRUE(IsMtpTensor("model.layers.2.enorm.weight", config));
  EXPECT_TRUE(IsMtpTensor("model.layers.61.self_attn.o_proj.weight", config));
  EXPECT_FALSE(IsMtpTensor("model.layers.1.self_attn.o_proj.weight", config));
  EXPECT_FALSE(IsMtpTensor("model.norm.weight", config));
  EXPECT_FALSE(IsMtpTensor("model.layers.", config));
  EXPECT_FALSE(IsMtpTensor("model.layers.x.weight", config));
  EXPECT_FALSE(IsMtpTensor("model.layers.2", config));
  EXPECT_FALSE(IsMtpTensor("model.layers.-3.weight", config));
  EXPECT_FALSE(IsMtpTensor("model.layers.99999999999999999999.weight", config));
}

TEST(TensorSpecsTest, MissingTensorsAreCountedAndListed) {
  const ModelConfig config = Config();
  CheckpointWriter writer = RandomTensors(config, 1);
  for (int e = 0; e < 4; ++e) {
    const std::string expert = "model.layers.1.mlp.experts." + std::to_string(e);
    for (const char* part : {".gate_proj.weight", ".up_proj.weight", ".down_proj.weight"}) {
      writer.Remove(expert + part);
    }
  }
  ExpectError(CheckTensors(config, *Opened(writer)), kInvalid,
              {"missing tensors (12): model.layers.1.mlp.experts.0.gate_proj.weight",
               "model.layers.1.mlp.experts.2.up_proj.weight and 4 more"});
}

TEST(TensorSpecsTest, AllThatIsWrongComesInOneError) {
  const ModelConfig config = Config();
  CheckpointWriter writer = RandomTensors(config, 1);
  writer.Remove("model.norm.weight");
  writer.AddBf16("model.layers.0.self_attn.o_proj.weight", {32, 8}, std::vector<float>(256));
  writer.AddBf16("model.layers.1.mlp.gate.weight", {32, 8}, std::vector<float>(256));
  writer.Add("model.layers.0.input_layernorm.weight", {"F64", {32}, std::string(256, 0)});
  writer.Add("model.layers.0.mlp.up_proj.weight", {"I8", {48, 32}, std::string(48 * 32, 0)});
  writer.Add("model.embed_tokens.weight", {"F8_E4M3", {64, 32}, std::string(64 * 32, 0)});
  ExpectError(CheckTensors(config, *Opened(writer)), kInvalid,
              {"missing tensors (1): model.norm.weight",
               "model.layers.0.self_attn.o_proj.weight: expected [32, 16], file has [32, 8]",
               "model.layers.1.mlp.gate.weight: expected [8, 32], file has [32, 8]",
               "model.layers.0.input_layernorm.weight: expected BF16, F16 or F32, file has F64",
               "model.layers.0.mlp.up_proj.weight: expected BF16, F16, F32 or F8_E4M3, file has I8",
               "model.embed_tokens.weight: expected BF16, F16 or F32, file has F8_E4M3"});
}

TEST(TensorSpecsTest, F8WeightsNeedScalesOfTheRightShapeAndType) {
  // 144 rows of q_b_proj make two blocks, the second one partial.
  const ModelConfig config = Config("deepseek_v3", {{"num_attention_heads", 12}});
  const std::string name = "model.layers.0.self_attn.q_b_proj.weight";
  CheckpointWriter writer = RandomTensors(config, 1);
  MakeF8(&writer, name);
  const absl::Status fits = CheckTensors(config, *Opened(writer));
  EXPECT_TRUE(fits.ok()) << fits;

  CheckpointWriter bad = writer;
  bad.AddF32(name + "_scale_inv", {1, 2}, {1, 1});
  ExpectError(CheckTensors(config, *Opened(bad)), kInvalid,
              {name + "_scale_inv: expected [2, 1], file has [1, 2]"});
  bad = writer;
  bad.AddBf16(name + "_scale_inv", {2, 1}, {1, 1});
  ExpectError(CheckTensors(config, *Opened(bad)), kInvalid,
              {name + "_scale_inv: expected F32, file has BF16"});
  bad = writer;
  bad.Remove(name + "_scale_inv");
  ExpectError(CheckTensors(config, *Opened(bad)), kInvalid,
              {name + ": is F8_E4M3, but " + name + "_scale_inv is missing"});
}

TEST(TensorSpecsTest, TensorsThatNothingReadsAreNoError) {
  const ModelConfig config = Config("deepseek_v3", {{"num_nextn_predict_layers", 1}});
  CheckpointWriter writer = RandomTensors(config, 1);
  writer.AddF32("model.layers.0.self_attn.rotary_emb.inv_freq", {2}, {1, 1});
  writer.AddF32("model.layers.2.enorm.weight", {32}, std::vector<float>(32));
  writer.AddF32("model.norm.weight_scale_inv", {1}, {1});
  {
    const Opened checkpoint(writer);
    EXPECT_TRUE(UnknownTensors(config, *checkpoint).empty());
  }
  writer.AddF32("model.layers.3.enorm.weight", {1}, {1});
  writer.AddF32("vision.weight", {1}, {1});
  const Opened checkpoint(writer);
  EXPECT_EQ(UnknownTensors(config, *checkpoint),
            (std::vector<std::string>{"model.layers.3.enorm.weight", "vision.weight"}));
  const absl::Status fits = CheckTensors(config, *checkpoint);
  EXPECT_TRUE(fits.ok()) << fits;
}

TEST(TensorSpecsTest, ATiedHeadIsTheEmbeddingWhateverIsStored) {
  const ModelConfig tied = Config("deepseek_v3", {{"tie_word_embeddings", true}});
  CheckpointWriter writer = RandomTensors(tied, 1);
  const auto expect_tied = [&](bool differs) {
    const Opened checkpoint(writer);
    EXPECT_TRUE(CheckTensors(tied, *checkpoint).ok());
    EXPECT_EQ(HeadTensorName(tied, *checkpoint).value_or(""), kEmbedTensor);
    EXPECT_EQ(StoredHeadDiffers(tied, *checkpoint), differs);
    EXPECT_TRUE(UnknownTensors(tied, *checkpoint).empty());
  };
  expect_tied(false);
  writer.Add(kHeadTensor, writer.Get(kEmbedTensor));
  expect_tied(false);
  CheckpointWriter::Tensor other = writer.Get(kEmbedTensor);
  other.bytes[5] = static_cast<char>(other.bytes[5] ^ 1);
  writer.Add(kHeadTensor, other);
  expect_tied(true);
  writer.AddF32(kHeadTensor, {1}, {1});
  expect_tied(true);
}

TEST(TensorSpecsTest, AHeadThatIsNeitherTiedNorStoredIsAnErrorWithTheWayOut) {
  for (const ModelConfig& config :
       {Config(), Config("deepseek_v2", {{"tie_word_embeddings", nullptr}})}) {
    CheckpointWriter writer = RandomTensors(config, 1);
    writer.Remove(kHeadTensor);
    const Opened checkpoint(writer);
    ExpectError(HeadTensorName(config, *checkpoint), kInvalid,
                {"lm_head.weight", "tie_word_embeddings", "config.json"});
    ExpectError(CheckTensors(config, *checkpoint), kInvalid,
                {"lm_head.weight is missing", "tie_word_embeddings"});
  }
}

}  // namespace
}  // namespace jevons

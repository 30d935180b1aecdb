#include <cmath>
#include <cstring>
#include <limits>

#include "gtest/gtest.h"
#include "model/config.h"
#include "tests/support/checkpoint_writer.h"
#include "tests/support/status_matchers.h"
#include "tests/support/test_data.h"

namespace jevons {
namespace {

using nlohmann::json;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;

json Yarn(const json& changes = json::object()) {
  json out = {
      {"type", "yarn"},         {"factor", 40},   {"original_max_position_embeddings", 4096},
      {"beta_fast", 32},        {"beta_slow", 1}, {"mscale", 0.707},
      {"mscale_all_dim", 0.707}};
  out.merge_patch(changes);
  return out;
}

json With(const std::string& key, const json& value, json config = TinyConfigJson()) {
  config[key] = value;
  return config;
}

absl::StatusOr<ModelConfig> Parse(const json& config) {
  return ParseModelConfig(config.dump(), "");
}

ModelConfig MustParse(const json& config) {
  auto c = Parse(config);
  EXPECT_TRUE(c.ok()) << c.status();
  return c.ok() ? *c : ModelConfig{};
}

ModelConfig Released(const std::string& name) {
  return MustParse(json::parse(ReadFile(DataPath("configs/" + name + "/config.json"))));
}

double RelativeError(double got, double want) { return std::abs(got - want) / std::abs(want); }

// All that depends on RoPE is equal to the last bit.
void ExpectSameRope(const ModelConfig& a, const ModelConfig& b) {
  const std::vector<float> x = RopeTable(a, 300);
  const std::vector<float> y = RopeTable(b, 300);
  ASSERT_EQ(x.size(), y.size());
  EXPECT_EQ(std::memcmp(x.data(), y.data(), x.size() * sizeof(float)), 0);
  EXPECT_EQ(SoftmaxScale(a), SoftmaxScale(b));
  EXPECT_TRUE(a.rope_scaling == b.rope_scaling);
  EXPECT_EQ(a.rope_theta, b.rope_theta);
}

TEST(RopeTest, YarnMatchesTheReferenceTable) {
  const json reference = json::parse(ReadFile(DataPath("configs/yarn-deepseek.json")));
  int num_cases = 0;
  for (const auto& [name, want] : reference.items()) {
    const bool lite = name.find("V2-Lite") != std::string::npos;
    for (const char* model : {"DeepSeek-V2-Lite", "DeepSeek-V3", "DeepSeek-R1"}) {
      if (lite != (std::string(model) == "DeepSeek-V2-Lite")) continue;
      ++num_cases;
      const ModelConfig c = Released(model);
      const std::vector<float> inv_freq = RopeInvFreq(c);
      ASSERT_EQ(inv_freq.size(), want["inv_freq"].size());
      for (size_t i = 0; i < inv_freq.size(); ++i) {
        EXPECT_TRUE(RelativeError(inv_freq[i], want["inv_freq"][i].get<double>()) <= 1e-6) << i;
      }
      EXPECT_TRUE(RelativeError(SoftmaxScale(c), want["softmax_scale"].get<double>()) <= 1e-9);
      EXPECT_EQ(RopeCosSinFactor(c), want["cos_sin_factor"].get<double>());
    }
  }
  EXPECT_EQ(num_cases, 3);
  EXPECT_NEAR(SoftmaxScale(Released("DeepSeek-V2-Lite")), 0.1147213868, 5e-11);
  EXPECT_NEAR(SoftmaxScale(Released("DeepSeek-V3")), 0.1352337789, 5e-11);
}

TEST(RopeTest, TableHoldsCosinesThenSinesOfTheFloatAngle) {
  const ModelConfig c = Released("DeepSeek-V3");
  const std::vector<float> inv_freq = RopeInvFreq(c);
  const int32_t num_positions = 5000;
  const std::vector<float> table = RopeTable(c, num_positions);
  ASSERT_EQ(table.size(), static_cast<size_t>(num_positions) * 64);
  for (int32_t pos : {0, 1, 63, 64, 4095, 4999}) {
    for (size_t i = 0; i < 32; ++i) {
      const double angle = static_cast<float>(pos) * inv_freq[i];
      const float* row = table.data() + static_cast<size_t>(pos) * 64;
      EXPECT_EQ(row[i], static_cast<float>(std::cos(angle))) << pos << " " << i;
      EXPECT_EQ(row[32 + i], static_cast<float>(std::sin(angle))) << pos << " " << i;
    }
  }
  EXPECT_TRUE(RopeTable(c, 0).empty());
}

TEST(RopeTest, SpellingsOfNoScalingAreEqualBits) {
  const ModelConfig plain = MustParse(TinyConfigJson());
  ExpectSameRope(plain, MustParse(With("rope_scaling", nullptr)));
  ExpectSameRope(plain, MustParse(With("rope_scaling", {{"type", "default"}, {"factor", 1}})));
  ExpectSameRope(plain, MustParse(With("rope_scaling", {{"rope_type", "default"}})));
  const json inside = {{"rope_theta", 10000}, {"rope_type", "default"}};
  ExpectSameRope(plain, MustParse(With("rope_parameters", inside)));
  json moved = With("rope_parameters", inside);
  moved.erase("rope_theta");
  ExpectSameRope(plain, MustParse(moved));
  ExpectSameRope(plain, MustParse(With("rope_parameters", {{"rope_theta", 10000}})));
  EXPECT_EQ(RopeCosSinFactor(plain), 1);
  EXPECT_NEAR(SoftmaxScale(plain), 1 / std::sqrt(12.0), 1e-15);
}

TEST(RopeTest, SpellingsOfYarnAreEqualBits) {
  const ModelConfig yarn = MustParse(With("rope_scaling", Yarn()));
  EXPECT_TRUE(yarn.rope_scaling.yarn);
  json renamed = Yarn({{"type", nullptr}, {"rope_type", "yarn"}});
  ExpectSameRope(yarn, MustParse(With("rope_scaling", renamed)));
  ExpectSameRope(yarn, MustParse(With("rope_scaling", Yarn({{"rope_type", "yarn"}}))));
  renamed["rope_theta"] = 10000.0;
  json moved = With("rope_parameters", renamed);
  moved.erase("rope_theta");
  ExpectSameRope(yarn, MustParse(moved));
  ExpectSameRope(yarn, MustParse(With("rope_scaling", Yarn(), With("rope_parameters", renamed))));
  // Absent betas are 32 and 1.
  const json short_form = Yarn({{"beta_fast", nullptr}, {"beta_slow", nullptr}});
  ExpectSameRope(yarn, MustParse(With("rope_scaling", short_form)));
}

TEST(RopeTest, WithoutMscaleAllDimTheSoftmaxScaleIsUntouched) {
  const ModelConfig c =
      MustParse(With("rope_scaling", Yarn({{"mscale_all_dim", nullptr}, {"mscale", nullptr}})));
  EXPECT_NEAR(SoftmaxScale(c), 1 / std::sqrt(12.0), 1e-15);
  EXPECT_NEAR(RopeCosSinFactor(c), 0.1 * std::log(40.0) + 1, 1e-15);
  const ModelConfig with_mscale =
      MustParse(With("rope_scaling", Yarn({{"mscale_all_dim", nullptr}})));
  EXPECT_NEAR(RopeCosSinFactor(with_mscale), 0.0707 * std::log(40.0) + 1, 1e-15);
  const std::vector<float> table = RopeTable(with_mscale, 1);
  EXPECT_EQ(table[0], static_cast<float>(0.1 * 0.707 * std::log(40.0) + 1));
}

TEST(RopeTest, ContradictionsNameBothPlaces) {
  ExpectError(Parse(With("rope_scaling", Yarn({{"rope_type", "default"}}))), kInvalid,
              {"rope_scaling.type is \"yarn\"", "rope_scaling.rope_type is \"default\""});
  const json plain = {{"rope_type", "default"}, {"rope_theta", 10000}};
  ExpectError(Parse(With("rope_scaling", Yarn(), With("rope_parameters", plain))), kInvalid,
              {"rope_scaling {", "and rope_parameters {", "contradict"});
  const json other = Yarn({{"factor", 20}});
  ExpectError(Parse(With("rope_scaling", Yarn(), With("rope_parameters", other))), kInvalid,
              {"rope_scaling", "rope_parameters", "contradict"});
  ExpectError(Parse(With("rope_parameters", {{"rope_theta", 50000}})), kInvalid,
              {"rope_theta is 10000", "rope_parameters.rope_theta is 50000"});
  ExpectError(Parse(With("rope_scaling", Yarn({{"beta_fast", 1}, {"beta_slow", 32}}))), kInvalid,
              {"rope_scaling.beta_fast (1)", "rope_scaling.beta_slow (32)"});
}

TEST(RopeTest, OtherKindsOfScalingAreUnimplementedByName) {
  for (const char* type : {"linear", "dynamic", "llama3", "longrope", "su"}) {
    ExpectError(Parse(With("rope_scaling", {{"type", type}, {"factor", 2}})), kUnimplemented,
                {"rope_scaling.type", type, "default and yarn"});
  }
  ExpectError(Parse(With("rope_scaling", Yarn({{"attention_factor", 1.2}}))), kUnimplemented,
              {"rope_scaling.attention_factor"});
  ExpectError(Parse(With("rope_scaling", Yarn({{"truncate", false}}))), kUnimplemented,
              {"rope_scaling.truncate"});
}

TEST(RopeTest, YarnWithoutItsNumbersIsAnError) {
  ExpectError(Parse(With("rope_scaling", {{"type", "yarn"}})), kInvalid,
              {"missing keys: rope_scaling.factor, rope_scaling.original_max_position_embeddings"});
  ExpectError(Parse(With("rope_scaling", {{"factor", 40}})), kInvalid,
              {"rope_scaling.factor", "rope_scaling.type"});
  ExpectError(Parse(With("rope_scaling", Yarn({{"factor", 0.5}}))), kInvalid,
              {"rope_scaling.factor is 0.5", "1 up to 1e+06"});
  ExpectError(Parse(With("rope_scaling", Yarn({{"original_max_position_embeddings", 0}}))),
              kInvalid, {"rope_scaling.original_max_position_embeddings is 0"});
  ExpectError(Parse(With("rope_scaling", Yarn({{"beta_slow", 0}}))), kInvalid,
              {"rope_scaling.beta_slow is 0"});
  ExpectError(Parse(With("rope_scaling", Yarn({{"mscale", -1}}))), kInvalid,
              {"rope_scaling.mscale is -1"});
}

// Extreme but allowed values give finite frequencies.
TEST(RopeTest, FrequenciesAreFiniteAtTheLimits) {
  for (const json& changes :
       {json{{"original_max_position_embeddings", 1}}, json{{"factor", 1e6}},
        json{{"original_max_position_embeddings", 1 << 27}}, json{{"beta_fast", 1}},
        json{{"factor", 1}}, json{{"beta_slow", 1e-6}}, json{{"beta_fast", 1e6}}}) {
    const ModelConfig c = MustParse(With("rope_scaling", Yarn(changes)));
    for (float f : RopeInvFreq(c)) EXPECT_TRUE(f > 0 && f <= 1) << changes << " " << f;
  }
}

}  // namespace
}  // namespace jevons

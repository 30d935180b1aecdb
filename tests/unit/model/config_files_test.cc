#include <filesystem>

#include "base/random.h"
#include "gtest/gtest.h"
#include "model/config.h"
#include "tests/support/checkpoint_writer.h"
#include "tests/support/status_matchers.h"

namespace jevons {
namespace {

using nlohmann::json;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

absl::StatusOr<ModelConfig> Parse(const json& config, const std::string& generation) {
  return ParseModelConfig(config.dump(), generation);
}

json With(const std::string& key, const json& value) {
  json config = TinyConfigJson();
  config[key] = value;
  return config;
}

TEST(ConfigFilesTest, EosIsTheUnionOfBothFilesRising) {
  const auto eos = [](const json& config, const std::string& generation) {
    const auto c = Parse(With("eos_token_id", config), generation);
    EXPECT_TRUE(c.ok()) << c.status();
    return c.ok() ? c->eos_token_ids : std::vector<int32_t>{};
  };
  EXPECT_EQ(eos(5, R"({"eos_token_id": [6, 5]})"), (std::vector<int32_t>{5, 6}));
  EXPECT_EQ(eos(5, R"({"eos_token_id": [7]})"), (std::vector<int32_t>{5, 7}));
  EXPECT_EQ(eos(json::array({9, 3}), R"({"eos_token_id": 4})"), (std::vector<int32_t>{3, 4, 9}));
  EXPECT_EQ(eos(nullptr, R"({"eos_token_id": 2})"), (std::vector<int32_t>{2}));
  EXPECT_EQ(eos(2, R"({"eos_token_id": null})"), (std::vector<int32_t>{2}));
  EXPECT_EQ(eos(2, "{}"), (std::vector<int32_t>{2}));
  EXPECT_TRUE(eos(nullptr, "").empty());
  ExpectError(Parse(TinyConfigJson(), R"({"eos_token_id": [64]})"), kInvalid,
              {"generation_config.json: eos_token_id is 64", "0 to 63"});
}

TEST(ConfigFilesTest, GenerationConfigProposesSampling) {
  auto c = Parse(TinyConfigJson(),
                 R"({"do_sample": true, "temperature": 0.6, "top_p": 0.95, "top_k": 40})");
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->default_temperature, 0.6);
  EXPECT_EQ(c->default_top_p, 0.95);
  EXPECT_EQ(c->default_top_k, 40);
  c = Parse(TinyConfigJson(), R"({"do_sample": false, "temperature": 0.6})");
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->default_temperature, 0);
  c = Parse(TinyConfigJson(), R"({"temperature": null})");
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->default_temperature, -1);
  EXPECT_EQ(c->default_top_p, -1);
  EXPECT_EQ(c->default_top_k, -1);
  for (const char* bad : {R"({"temperature": -1})", R"({"top_p": 0})", R"({"top_p": 1.5})",
                          R"({"top_k": -1})", R"({"do_sample": "no"})"}) {
    ExpectError(Parse(TinyConfigJson(), bad), kInvalid, {"generation_config.json: "});
  }
}

TEST(ConfigFilesTest, LoadReadsBothFilesAndNamesWhatIsNotThere) {
  const TempFolder folder;
  ExpectError(LoadModelConfig(folder.path()), absl::StatusCode::kNotFound,
              {folder.Path("config.json")});
  ExpectError(LoadModelConfig(folder.Path("nowhere")), absl::StatusCode::kNotFound,
              {folder.Path("nowhere/config.json")});
  folder.Write("config.json", TinyConfigJson().dump());
  ASSERT_TRUE(LoadModelConfig(folder.path()).ok());
  folder.Write("generation_config.json", R"({"eos_token_id": [3]})");
  const auto c = LoadModelConfig(folder.path());
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->eos_token_ids, (std::vector<int32_t>{1, 3}));
  folder.Write("generation_config.json", "");
  ExpectError(LoadModelConfig(folder.path()), kInvalid,
              {folder.Path("generation_config.json"), "empty"});
  folder.Remove("generation_config.json");
  folder.Write("config.json", "{}");
  ExpectError(LoadModelConfig(folder.path()), kInvalid,
              {folder.Path("config.json: missing keys: model_type")});
  folder.Remove("config.json");
  std::filesystem::create_directory(folder.Path("config.json"));
  ExpectError(LoadModelConfig(folder.path()), kInvalid, {"is a folder, not a file"});
}

TEST(ConfigFilesTest, RandomDamageNeverCrashes) {
  const uint64_t seed = 20240601;
  SCOPED_TRACE(seed);
  Random random(seed);
  const std::string good =
      TinyConfigJson(
          "deepseek_v3",
          {{"rope_scaling",
            {{"type", "yarn"}, {"factor", 40}, {"original_max_position_embeddings", 4096}}}})
          .dump();
  for (int i = 0; i < 5000; ++i) {
    std::string text = good;
    for (int64_t n = 1 + random.Below(4); n > 0 && !text.empty(); --n) {
      const size_t at = static_cast<size_t>(random.Below(static_cast<int64_t>(text.size())));
      const int64_t kind = random.Below(3);
      if (kind == 0) text[at] = static_cast<char>(random.Below(256));
      if (kind == 1) text[at] = static_cast<char>('0' + random.Below(10));
      if (kind == 2) text.erase(at, static_cast<size_t>(1 + random.Below(8)));
    }
    const auto c = ParseModelConfig(text, i % 2 == 0 ? "" : text);
    if (!c.ok()) {
      EXPECT_FALSE(c.status().message().empty());
    }
  }
}

}  // namespace
}  // namespace jevons

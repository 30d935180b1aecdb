// Small inputs from the field that need the whole path from a checkpoint folder to tokens. The
// other cases of these areas are beside the part that they touch.
#include <filesystem>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/checkpoint_writer.h"
#include "tests/support/cpu_target.h"
#include "tests/support/engine_run.h"
#include "tests/support/parrot.h"
#include "tests/support/test_data.h"

namespace jevons {
namespace {

using nlohmann::json;

class FieldCases : public testing::Test {
 protected:
  void SetUp() override { SKIP_WITHOUT_CPU_TARGET(); }

  absl::StatusOr<std::unique_ptr<Engine>> Open(const std::string& folder) {
    EngineOptions options;
    options.model_folder = folder;
    options.cpu_target = TestCpuTarget();
    options.kv_cache_tokens = 1024;
    return Engine::Create(options, &clock_);
  }

  // Log-probabilities of a fixed text and a few greedy steps.
  Outcome Score(const std::string& folder) {
    auto engine = Open(folder);
    EXPECT_TRUE(engine.ok()) << engine.status();
    if (!engine.ok()) return {};
    GenerationRequest request;
    for (int32_t i = 0; i < 70; ++i) request.prompt_ids.push_back((i * 7 + 3) % 60);
    request.sampling.temperature = 0;
    request.ignore_eos = true;
    request.num_logprobs = 4;
    request.num_prompt_logprobs = 4;
    request.max_new_tokens = 8;
    return RunTogether(**engine, {request})[0];
  }

  // Greedy ids of the parrot of `folder` after `first`.
  Outcome Say(const std::string& folder, int32_t first, bool ignore_eos = false) {
    auto engine = Open(folder);
    EXPECT_TRUE(engine.ok()) << engine.status();
    if (!engine.ok()) return {};
    GenerationRequest request;
    request.prompt_ids = {first};
    request.sampling.temperature = 0;
    request.max_new_tokens = 6;
    request.ignore_eos = ignore_eos;
    return RunTogether(**engine, {request})[0];
  }

  const RealClock clock_{};
  TempFolder folder_;
};

TEST_F(FieldCases, G1AShardThatTheIndexNamesAndIsNotThereIsNamed) {
  const auto config = ParseModelConfig(TinyConfigJson().dump(), "");
  ASSERT_TRUE(config.ok()) << config.status();
  WriteFile(folder_.Path("config.json"), TinyConfigJson().dump());
  RandomTensors(*config, 5).WriteShards(folder_.path(), 2);
  const Outcome whole = Score(folder_.path());
  EXPECT_EQ(whole.end.reason, FinishReason::kLength);

  // A stray file with the same names and other values beside the index changes nothing.
  RandomTensors(*config, 6).WriteSingle(folder_.path());
  std::filesystem::rename(folder_.Path("model.safetensors"), folder_.Path("model-old.safetensors"));
  ExpectSame(Score(folder_.path()), whole);

  std::filesystem::remove(folder_.Path("model-00002-of-00002.safetensors"));
  const auto broken = Open(folder_.path());
  EXPECT_EQ(broken.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(broken.status().message()),
              testing::AllOf(testing::HasSubstr("model-00002-of-00002.safetensors"),
                             testing::HasSubstr("index")));
}

TEST_F(FieldCases, G4ATiedHeadIsTheEmbeddingWhateverElseIsStored) {
  const json tied = TinyConfigJson("deepseek_v3", {{"tie_word_embeddings", true}});
  WriteRandomModel(folder_.path(), tied, 5);
  const Outcome want = Score(folder_.path());

  // The same tensors and a head that differs.
  const auto untied = ParseModelConfig(TinyConfigJson().dump(), "");
  ASSERT_TRUE(untied.ok());
  TempFolder other;
  CheckpointWriter writer = RandomTensors(*ParseModelConfig(tied.dump(), ""), 5);
  std::vector<float> head(static_cast<size_t>(untied->vocab_size) * untied->hidden_size, 0.5f);
  writer.AddBf16(kHeadTensor, {untied->vocab_size, untied->hidden_size}, head);
  WriteFile(other.Path("config.json"), tied.dump());
  writer.WriteSingle(other.path());
  ExpectSame(Score(other.path()), want);

  // Not tied and no head.
  WriteFile(folder_.Path("config.json"), TinyConfigJson().dump());
  const auto headless = Open(folder_.path());
  EXPECT_EQ(headless.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(headless.status().message()), testing::HasSubstr("lm_head.weight"));
}

TEST_F(FieldCases, G6SpellingsOfTheSameRotationGiveTheSameBits) {
  const auto score = [&](const json& changes) {
    TempFolder folder;
    WriteRandomModel(folder.path(), TinyConfigJson("deepseek_v3", changes), 5);
    return Score(folder.path());
  };
  const json plain_type = {{"type", "default"}, {"factor", 1}};
  const Outcome plain = score({{"rope_scaling", nullptr}});
  ExpectSame(score({{"rope_scaling", plain_type}}), plain);
  ExpectSame(score({{"rope_theta", nullptr},
                    {"rope_parameters", {{"rope_theta", 10000}, {"rope_type", "default"}}}}),
             plain);

  json yarn = {{"type", "yarn"},       {"factor", 40},   {"original_max_position_embeddings", 64},
               {"beta_fast", 32},      {"beta_slow", 1}, {"mscale", 1.0},
               {"mscale_all_dim", 1.0}};
  const Outcome scaled = score({{"rope_scaling", yarn}});
  EXPECT_FALSE(SameBits(scaled.prompt_logprobs, plain.prompt_logprobs));
  yarn["rope_type"] = yarn["type"];
  yarn.erase("type");
  ExpectSame(score({{"rope_scaling", yarn}}), scaled);
}

TEST_F(FieldCases, G8EveryDeclaredEndIdStopsAndIsCounted) {
  // config.json declares 5; generation_config.json 6 and 7.
  for (int32_t end : {5, 6, 7}) {
    SCOPED_TRACE(end);
    TempFolder folder;
    WriteParrot(folder.path(), TinyConfigJson("deepseek_v3", {{"eos_token_id", 5}}),
                {20, 21, end, 22, 23});
    WriteFile(folder.Path("generation_config.json"), R"({"eos_token_id": [6, 7]})");
    const Outcome stopped = Say(folder.path(), 20);
    EXPECT_EQ(stopped.end.reason, FinishReason::kStop);
    EXPECT_EQ(stopped.ids, (std::vector<int32_t>{21, end}));
    EXPECT_EQ(stopped.end.usage.completion_tokens, 2);
    const Outcome ignored = Say(folder.path(), 20, true);
    EXPECT_EQ(ignored.end.reason, FinishReason::kLength);
    EXPECT_EQ(ignored.ids, (std::vector<int32_t>{21, end, 22, 23, 20, 21}));
  }
}

TEST_F(FieldCases, B1APromptThatEndsInsideACharacterIsNeverShown) {
  auto engine = Open(DemoModelPath());
  ASSERT_TRUE(engine.ok()) << engine.status();
  const auto ids = (*engine)->tokenizer().Encode("Secret words \xF0\x9F\xA5\x81");
  ASSERT_TRUE(ids.ok());
  GenerationRequest request;
  request.prompt_ids.assign(ids->begin(), ids->end() - 1);
  request.sampling.temperature = 0;
  request.max_new_tokens = 30;
  auto stream = (*engine)->Submit(request);
  ASSERT_TRUE(stream.ok()) << stream.status();
  std::string text;
  while (auto chunk = (*stream)->WaitChunk(kPatience)) {
    text += chunk->delta.text;
    if (chunk->end) break;
  }
  EXPECT_THAT(text, testing::Not(testing::HasSubstr("Secret")));
  EXPECT_EQ(FindInvalidUtf8(text), std::nullopt) << text;
}

}  // namespace
}  // namespace jevons

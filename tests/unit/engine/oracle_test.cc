// Random checkpoints with reference logits: the whole path from the folder to the token agrees with
// another implementation.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/engine_run.h"
#include "tests/support/test_data.h"
#include "tests/support/tiny_model.h"

namespace jevons {
namespace {

constexpr double kLargest = 2e-3;
constexpr double kMedian = 2e-4;

class Oracle : public testing::TestWithParam<std::string> {};

// Differences of log-probabilities, all of one case.
class Differences {
 public:
  void Add(double got, double want) { all_.push_back(std::abs(got - want)); }
  void Expect() {
    ASSERT_FALSE(all_.empty());
    std::sort(all_.begin(), all_.end());
    EXPECT_TRUE(all_.back() <= kLargest) << all_.back();
    EXPECT_TRUE(all_[all_.size() / 2] <= kMedian) << all_[all_.size() / 2];
    RecordProperty("largest", std::to_string(all_.back()));
  }

 private:
  static void RecordProperty(const std::string& key, const std::string& value) {
    testing::Test::RecordProperty(key, value);
  }
  std::vector<double> all_;
};

TEST_P(Oracle, LogprobsAndGreedyIdsAgreeWithTheReference) {
  SKIP_WITHOUT_CPU_TARGET();
  std::string folder = DataPath("oracles/" + GetParam());
  if (!std::filesystem::exists(folder)) {
    SKIP_WITHOUT_SHARED("oracles/cases/" + GetParam());
    folder = SharedPath("oracles/cases/" + GetParam());
  }
  const auto expected = nlohmann::json::parse(ReadFile(folder + "/expected.json"));
  EngineOptions options;
  options.model_folder = folder;
  options.cpu_target = TestCpuTarget();
  options.kv_cache_tokens = 4096;
  const RealClock clock;
  auto engine = Engine::Create(options, &clock);
  ASSERT_TRUE(engine.ok()) << engine.status();
  Differences differences;
  for (const auto& prompt : expected["prompts"]) {
    GenerationRequest request;
    request.prompt_ids = prompt["ids"].get<std::vector<int32_t>>();
    request.sampling.temperature = 0;
    request.ignore_eos = true;
    request.num_logprobs = 20;
    request.num_prompt_logprobs = 0;
    request.max_new_tokens = static_cast<int32_t>(prompt["greedy"].size());
    const Outcome out = RunTogether(**engine, {request})[0];
    ASSERT_EQ(out.end.reason, FinishReason::kLength) << out.end.error;
    ASSERT_EQ(out.prompt_logprobs.size(), prompt["next_logprobs"].size());
    for (size_t i = 0; i < out.prompt_logprobs.size(); ++i) {
      EXPECT_EQ(out.prompt_logprobs[i].chosen.id, request.prompt_ids[i + 1]);
      differences.Add(out.prompt_logprobs[i].chosen.logprob, prompt["next_logprobs"][i]);
    }
    for (size_t i = 0; i < out.ids.size(); ++i) {
      EXPECT_EQ(out.ids[i], prompt["greedy"][i][0].get<int32_t>()) << "greedy step " << i;
      differences.Add(out.logprobs[i].chosen.logprob, prompt["greedy"][i][1]);
    }
    for (size_t i = 0; i < 20; ++i) {
      differences.Add(out.logprobs[0].top[i].logprob, prompt["last_top20"][i][1]);
    }
  }
  differences.Expect();
}

INSTANTIATE_TEST_SUITE_P(DeepSeek, Oracle,
                         testing::Values("deepseek_v2_lite", "deepseek_v2_groups", "deepseek_v3",
                                         "deepseek_v3_fp8", "deepseek_v3_real_heads"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace jevons

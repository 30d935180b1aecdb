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

// The largest hundredth of a case's 332 differences is its fifth largest: a token whose router turned
// at a near tie, in one rounding or in the other. deepseek_v2_groups misses the reference's own by a
// twelfth. That is chance: the same roundings on the CPU, moved by an eighth of their size in 12
// ways, gave 0.14 to 1.16 and 0.40 in the median, where the reference has 0.65 and we have 0.71. This
// keeps the case from missing by more. The other cases must keep to it.
constexpr double kTurnedRouters = 1.25;

// What FP8 entries cost these models of random weights is up to 3.4 times what bf16 activations
// cost the reference, in the median and in the largest hundredth.
constexpr double kFp8Times = 4;
// FP8 activations cost up to 5.6 times that.
constexpr double kFp8ActivationTimes = 7;

struct OracleCase {
  std::string folder;
  KvCacheType kv_cache = KvCacheType::kAuto;
  ActivationPrecision activations = ActivationPrecision::kExact;

  bool fp8_cache() const { return kv_cache == KvCacheType::kFp8; }
  bool fp8_activations() const { return activations == ActivationPrecision::kFp8; }
  bool rounds() const { return fp8_cache() || fp8_activations(); }
};
std::vector<OracleCase> OracleCases() {
  std::vector<OracleCase> out;
  for (KvCacheType type : {KvCacheType::kAuto, KvCacheType::kFp8}) {
    for (const char* folder : {"deepseek_v2_lite", "deepseek_v2_groups", "deepseek_v3",
                               "deepseek_v3_fp8", "deepseek_v3_real_heads"}) {
      out.push_back({folder, type});
    }
  }
  // Each case takes an emulator minutes.
  if (!kTestsCuda) {
    out.push_back({"deepseek_v3_fp8", KvCacheType::kAuto, ActivationPrecision::kFp8});
  }
  return out;
}

class Oracle : public testing::TestWithParam<OracleCase> {};

// Differences of log-probabilities, all of one case.
class Differences {
 public:
  void Add(double got, double want) { all_.push_back(std::abs(got - want)); }
  void ExpectFloat() {
    EXPECT_LE(Quantile(1), kLargest);
    EXPECT_LE(Quantile(0.5), kMedian);
    testing::Test::RecordProperty("largest", std::to_string(Quantile(1)));
  }
  // `allowed`: what the reference itself loses with bf16 activations.
  void ExpectRounded(const nlohmann::json& allowed, double times_median, double times_p99) {
    EXPECT_LE(Quantile(0.5), times_median * allowed["median"].get<double>());
    EXPECT_LE(Quantile(0.99), times_p99 * allowed["p99"].get<double>());
    testing::Test::RecordProperty("median", std::to_string(Quantile(0.5)));
    testing::Test::RecordProperty("p99", std::to_string(Quantile(0.99)));
  }

 private:
  double Quantile(double q) {
    if (all_.empty()) return NAN;
    std::sort(all_.begin(), all_.end());
    return all_[static_cast<size_t>(q * static_cast<double>(all_.size() - 1))];
  }

  std::vector<double> all_;
};

TEST_P(Oracle, LogprobsAndGreedyIdsAgreeWithTheReference) {
  SKIP_WITHOUT_TEST_BACKEND();
  const OracleCase& oracle = GetParam();
  std::string folder = DataPath("oracles/" + oracle.folder);
  if (!std::filesystem::exists(folder)) {
    SKIP_WITHOUT_SHARED("oracles/cases/" + oracle.folder);
    folder = SharedPath("oracles/cases/" + oracle.folder);
  }
  const auto expected = nlohmann::json::parse(ReadFile(folder + "/expected.json"));
  EngineOptions options;
  options.model_folder = folder;
  options.cpu_target = TestCpuTarget();
  options.backend = TestBackendKind();
  options.kv_cache_tokens = 4096;
  options.kv_cache = oracle.kv_cache;
  options.activation_precision = oracle.activations;
  // Each size of a step is recorded at the start, which an emulator does slowly.
  if (kTestsCuda) options.max_num_batched_tokens = 64;
  const RealClock clock;
  auto engine = Engine::Create(options, &clock);
  ASSERT_TRUE(engine.ok()) << engine.status();
  Differences of_prompts, differences;
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
      for (Differences* sum : {&of_prompts, &differences}) {
        sum->Add(out.prompt_logprobs[i].chosen.logprob, prompt["next_logprobs"][i]);
      }
    }
    for (size_t i = 0; i < out.ids.size(); ++i) {
      // With bf16 or FP8 activations or FP8 entries a near tie may turn, and what follows has another
      // history.
      if ((kTestsCuda || oracle.rounds()) && out.ids[i] != prompt["greedy"][i][0].get<int32_t>())
        break;
      EXPECT_EQ(out.ids[i], prompt["greedy"][i][0].get<int32_t>()) << "greedy step " << i;
      differences.Add(out.logprobs[i].chosen.logprob, prompt["greedy"][i][1]);
    }
    for (size_t i = 0; i < 20; ++i) {
      differences.Add(out.logprobs[0].top[i].logprob, prompt["last_top20"][i][1]);
    }
  }
  // The reference's own error is that of the prompts.
  const nlohmann::json& allowed = expected["bf16_error_of_the_reference"];
  if (oracle.fp8_activations()) {
    of_prompts.ExpectRounded(allowed, kFp8ActivationTimes, kFp8ActivationTimes);
  } else if (oracle.fp8_cache()) {
    of_prompts.ExpectRounded(allowed, kFp8Times, kFp8Times);
  } else if (kTestsCuda) {
    of_prompts.ExpectRounded(allowed, 1,
                             oracle.folder == "deepseek_v2_groups" ? kTurnedRouters : 1);
  } else {
    differences.ExpectFloat();
  }
}

INSTANTIATE_TEST_SUITE_P(DeepSeek, Oracle, testing::ValuesIn(OracleCases()), [](const auto& info) {
  return info.param.folder + (info.param.fp8_cache() ? "_fp8_cache" : "") +
         (info.param.fp8_activations() ? "_fp8_activations" : "");
});

}  // namespace
}  // namespace jevons

// The demo model gives on the device what it gives on the CPU, as far as bf16 activations can: the
// same log-probabilities within a tolerance, and the same greedy tokens where no two are that
// close.
#include <algorithm>
#include <cmath>
#include <vector>

#include "engine/engine.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/engine_run.h"
#include "tests/support/test_backend.h"
#include "tests/support/test_data.h"

namespace jevons {
namespace {

// Of a token's log-probability; the emulator shows a median of 0.0003 and a largest of 0.01.
constexpr double kLargest = 0.25;
constexpr double kMedian = 0.005;
// An emulator does a few answers of many, and a few sizes of steps: each is recorded at the start.
constexpr size_t kNumConversations = JEVONS_DEMO_CONVERSATIONS;
constexpr int32_t kStepTokens = kNumConversations > 1 ? 64 : 8;

using Ids = std::vector<int32_t>;

GenerationRequest Greedy(const Ids& prompt, int32_t max_new_tokens) {
  GenerationRequest request;
  request.prompt_ids = prompt;
  request.sampling.temperature = 0;
  request.ignore_eos = true;
  request.max_new_tokens = max_new_tokens;
  request.num_logprobs = 2;
  return request;
}

std::unique_ptr<Engine> Start(BackendKind backend, const Clock& clock) {
  EngineOptions options;
  options.model_folder = DemoModelPath();
  options.backend = backend;
  options.max_num_seqs = 8;
  options.max_num_batched_tokens = kStepTokens;
  options.kv_cache_tokens = 8192;
  auto engine = Engine::Create(options, &clock);
  EXPECT_TRUE(engine.ok()) << engine.status();
  return engine.ok() ? *std::move(engine) : nullptr;
}

class DemoOnDevice : public testing::Test {
 protected:
  void SetUp() override {
    SKIP_WITHOUT_TEST_BACKEND();
    device_ = Start(BackendKind::kCuda, clock_);
    cpu_ = Start(BackendKind::kCpu, clock_);
    ASSERT_TRUE(device_ != nullptr && cpu_ != nullptr);
    const auto expected = nlohmann::json::parse(ReadFile(DataPath("demo_expected.json")));
    for (const auto& conversation : expected["conversations"]) {
      prompts_.push_back(conversation["prompt_ids"].get<Ids>());
      outputs_.push_back(conversation["output_ids"].get<Ids>());
      if (prompts_.size() == kNumConversations) break;
    }
  }

  RealClock clock_;
  std::unique_ptr<Engine> device_, cpu_;
  std::vector<Ids> prompts_, outputs_;
};

TEST_F(DemoOnDevice, LogprobsOfKnownTextAgreeWithTheCpu) {
  std::vector<double> differences;
  for (size_t i = 0; i < prompts_.size(); ++i) {
    Ids text = prompts_[i];
    text.insert(text.end(), outputs_[i].begin(), outputs_[i].end());
    GenerationRequest request = Greedy(text, 1);
    request.num_prompt_logprobs = 0;
    const Outcome got = RunTogether(*device_, {request})[0];
    const Outcome want = RunTogether(*cpu_, {request})[0];
    ASSERT_EQ(got.prompt_logprobs.size(), text.size() - 1) << got.end.error;
    ASSERT_EQ(want.prompt_logprobs.size(), text.size() - 1) << want.end.error;
    for (size_t t = 0; t + 1 < text.size(); ++t) {
      differences.push_back(
          std::abs(got.prompt_logprobs[t].chosen.logprob - want.prompt_logprobs[t].chosen.logprob));
      // A text has tokens that no model expects; there the logarithm magnifies.
      differences.back() /= std::max(1.0f, -want.prompt_logprobs[t].chosen.logprob);
    }
  }
  std::sort(differences.begin(), differences.end());
  const double median = differences[differences.size() / 2];
  RecordProperty("median", std::to_string(median));
  RecordProperty("largest", std::to_string(differences.back()));
  std::printf("differences of %zu log-probabilities: median %.2g, p99 %.2g, largest %.2g\n",
              differences.size(), median, differences[differences.size() * 99 / 100],
              differences.back());
  EXPECT_LE(median, kMedian);
  EXPECT_LE(differences.back(), kLargest);
}

TEST_F(DemoOnDevice, GreedyTokensAreThoseOfTheCpuUntilTwoAreClose) {
  std::vector<GenerationRequest> requests;
  for (size_t i = 0; i < prompts_.size(); ++i) {
    requests.push_back(Greedy(prompts_[i], static_cast<int32_t>(outputs_[i].size())));
  }
  const std::vector<Outcome> got = RunTogether(*device_, requests);
  const std::vector<Outcome> want = RunTogether(*cpu_, requests);
  size_t num_equal = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    SCOPED_TRACE(i);
    ASSERT_EQ(got[i].end.reason, FinishReason::kLength) << got[i].end.error;
    ASSERT_EQ(got[i].ids.size(), want[i].ids.size());
    const auto at = std::mismatch(got[i].ids.begin(), got[i].ids.end(), want[i].ids.begin());
    if (at.first == got[i].ids.end()) {
      ++num_equal;
      continue;
    }
    const auto& top = want[i].logprobs[at.first - got[i].ids.begin()].top;
    EXPECT_LE(top[0].logprob - top[1].logprob, kLargest)
        << "token " << at.first - got[i].ids.begin();
  }
  std::printf("%zu of %zu conversations are equal\n", num_equal, got.size());
  EXPECT_GE(2 * num_equal, got.size());
}

TEST_F(DemoOnDevice, ARequestAmongOthersGivesTheSameBits) {
  std::vector<GenerationRequest> requests;
  for (const Ids& prompt : prompts_) requests.push_back(Greedy(prompt, 8));
  const std::vector<Outcome> together = RunTogether(*device_, requests);
  for (size_t i = 0; i < requests.size(); ++i) {
    SCOPED_TRACE(i);
    ExpectSame(RunTogether(*device_, {requests[i]})[0], together[i]);
  }
}

}  // namespace
}  // namespace jevons

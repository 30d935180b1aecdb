#include "engine/generation.h"

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "base/random.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace jevons {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

GenerationLimits Limits() {
  return {.vocab_size = 1000, .num_tokens = 900, .max_model_len = 100, .kv_cache_tokens = 640};
}

GenerationRequest Good() {
  GenerationRequest request;
  request.prompt_ids = {1, 2, 3};
  return request;
}

// The error text of a good request that was changed so; it must be refused.
std::string Refusal(const std::function<void(GenerationRequest&)>& change,
                    const GenerationLimits& limits = Limits()) {
  GenerationRequest request = Good();
  change(request);
  const absl::Status status = ValidateGeneration(request, limits);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_LE(status.message().size(), 1024u);
  return std::string(status.message());
}

void ExpectAccepted(const std::function<void(GenerationRequest&)>& change) {
  GenerationRequest request = Good();
  change(request);
  EXPECT_TRUE(ValidateGeneration(request, Limits()).ok()) << ValidateGeneration(request, Limits());
}

TEST(GenerationTest, DefaultsAreAccepted) {
  ExpectAccepted([](GenerationRequest&) {});
}

TEST(GenerationTest, EveryLimitItselfIsAccepted) {
  ExpectAccepted([](GenerationRequest& r) { r.prompt_ids.assign(99, 899); });
  ExpectAccepted([](GenerationRequest& r) { r.prompt_ids = {0}; });
  ExpectAccepted([](GenerationRequest& r) { r.max_new_tokens = 1'000'000'000; });
  ExpectAccepted([](GenerationRequest& r) { r.max_new_tokens = 1; });
  ExpectAccepted([](GenerationRequest& r) { r.sampling.temperature = 0; });
  ExpectAccepted([](GenerationRequest& r) { r.sampling.temperature = 1e30f; });
  ExpectAccepted(
      [](GenerationRequest& r) { r.sampling.top_k = std::numeric_limits<int32_t>::max(); });
  ExpectAccepted([](GenerationRequest& r) { r.sampling.top_p = 1e-30f; });
  ExpectAccepted([](GenerationRequest& r) { r.sampling.min_p = 1; });
  ExpectAccepted([](GenerationRequest& r) { r.sampling.logit_bias = {{0, -100}, {899, 100}}; });
  ExpectAccepted([](GenerationRequest& r) { r.stop.assign(16, std::string(1024, 'x')); });
  ExpectAccepted([](GenerationRequest& r) { r.stop = {std::string("a\0b", 3), "终"}; });
  ExpectAccepted([](GenerationRequest& r) { r.num_logprobs = r.num_prompt_logprobs = 20; });
  ExpectAccepted([](GenerationRequest& r) { r.num_logprobs = r.num_prompt_logprobs = 0; });
  ExpectAccepted([](GenerationRequest& r) { r.deadline = absl::InfinitePast(); });
}

TEST(GenerationTest, EmptyPromptIsRefused) {
  EXPECT_THAT(Refusal([](GenerationRequest& r) { r.prompt_ids.clear(); }),
              HasSubstr("prompt_ids must hold at least 1 token"));
}

TEST(GenerationTest, PromptThatLeavesNoRoomInTheModelNamesBothNumbers) {
  const std::string text = Refusal([](GenerationRequest& r) { r.prompt_ids.assign(100, 1); });
  EXPECT_THAT(text, HasSubstr("prompt_ids has 100 tokens"));
  EXPECT_THAT(text, HasSubstr("max_model_len 100"));
  EXPECT_THAT(text, HasSubstr("the limit is 99"));
}

TEST(GenerationTest, PromptThatCanNeverFitThePoolNamesBothNumbers) {
  GenerationLimits limits = Limits();
  limits.kv_cache_tokens = 64;
  const std::string text =
      Refusal([](GenerationRequest& r) { r.prompt_ids.assign(64, 1); }, limits);
  EXPECT_THAT(text, HasSubstr("need 65 tokens of KV cache"));
  EXPECT_THAT(text, HasSubstr("pool has 64"));
  GenerationRequest fits = Good();
  fits.prompt_ids.assign(63, 1);
  EXPECT_TRUE(ValidateGeneration(fits, limits).ok());
}

TEST(GenerationTest, PromptIdOutsideTheVocabularyNamesIndexAndValue) {
  EXPECT_EQ(Refusal([](GenerationRequest& r) {
              r.prompt_ids = {1, 1000};
            }),
            "prompt_ids[1] is 1000, outside the vocabulary [0, 1000)");
  EXPECT_EQ(Refusal([](GenerationRequest& r) {
              r.prompt_ids = {-1, 2};
            }),
            "prompt_ids[0] is -1, outside the vocabulary [0, 1000)");
  EXPECT_THAT(Refusal([](GenerationRequest& r) {
                r.prompt_ids = {1, 2, std::numeric_limits<int32_t>::min()};
              }),
              HasSubstr("prompt_ids[2] is -2147483648"));
}

TEST(GenerationTest, PromptIdWithoutATokenNamesIndexAndValue) {
  EXPECT_EQ(Refusal([](GenerationRequest& r) {
              r.prompt_ids = {1, 900};
            }),
            "prompt_ids[1] is 900, an id without a token; the tokenizer's are [0, 900)");
}

TEST(GenerationTest, ATokenizerLargerThanTheMatrixDoesNotWidenTheVocabulary) {
  GenerationLimits limits = Limits();
  limits.num_tokens = 2000;
  EXPECT_THAT(Refusal([](GenerationRequest& r) { r.prompt_ids = {1500}; }, limits),
              HasSubstr("prompt_ids[0] is 1500, outside the vocabulary [0, 1000)"));
}

TEST(GenerationTest, NumbersOutOfRangeNameFieldLimitAndValue) {
  struct Case {
    std::function<void(GenerationRequest&)> change;
    std::vector<std::string> parts;
  };
  const std::vector<Case> cases = {
      {[](GenerationRequest& r) { r.max_new_tokens = -1; },
       {"max_new_tokens", "[0, 1000000000]", "is -1"}},
      {[](GenerationRequest& r) { r.max_new_tokens = 1'000'000'001; },
       {"max_new_tokens", "[0, 1000000000]", "is 1000000001"}},
      {[](GenerationRequest& r) { r.sampling.temperature = -0.5f; },
       {"temperature", "at least 0", "is -0.5"}},
      {[](GenerationRequest& r) { r.sampling.temperature = kNan; }, {"temperature", "is nan"}},
      {[](GenerationRequest& r) { r.sampling.temperature = kInf; }, {"temperature", "is inf"}},
      {[](GenerationRequest& r) { r.sampling.temperature = -kInf; }, {"temperature", "is -inf"}},
      {[](GenerationRequest& r) { r.sampling.top_k = -1; }, {"top_k", "at least 0", "is -1"}},
      {[](GenerationRequest& r) { r.sampling.top_p = 0; }, {"top_p", "(0, 1]", "is 0"}},
      {[](GenerationRequest& r) { r.sampling.top_p = 1.0000001f; },
       {"top_p", "(0, 1]", "is 1.00000012"}},
      {[](GenerationRequest& r) { r.sampling.top_p = kNan; }, {"top_p", "is nan"}},
      {[](GenerationRequest& r) { r.sampling.top_p = kInf; }, {"top_p", "is inf"}},
      {[](GenerationRequest& r) { r.sampling.min_p = -0.1f; }, {"min_p", "[0, 1]", "is -0.1"}},
      {[](GenerationRequest& r) { r.sampling.min_p = 1.5f; }, {"min_p", "[0, 1]", "is 1.5"}},
      {[](GenerationRequest& r) { r.sampling.min_p = kNan; }, {"min_p", "is nan"}},
      {[](GenerationRequest& r) { r.num_logprobs = 21; }, {"num_logprobs", "[-1, 20]", "is 21"}},
      {[](GenerationRequest& r) { r.num_logprobs = -2; }, {"num_logprobs", "[-1, 20]", "is -2"}},
      {[](GenerationRequest& r) { r.num_prompt_logprobs = 21; },
       {"num_prompt_logprobs", "[-1, 20]", "is 21"}},
  };
  for (const Case& c : cases) {
    const std::string text = Refusal(c.change);
    for (const std::string& part : c.parts) EXPECT_THAT(text, HasSubstr(part));
  }
}

TEST(GenerationTest, LogitBiasIsCheckedByIdValueCountAndTwins) {
  const auto refusal = [](std::vector<std::pair<int32_t, float>> bias) {
    return Refusal([&](GenerationRequest& r) { r.sampling.logit_bias = bias; });
  };
  EXPECT_THAT(refusal({{1, 1}, {1000, 1}}), HasSubstr("logit_bias[1] is 1000, outside"));
  EXPECT_THAT(refusal({{-5, 1}}), HasSubstr("logit_bias[0] is -5, outside"));
  EXPECT_THAT(refusal({{950, 1}}), HasSubstr("is 950, an id without a token"));
  EXPECT_THAT(refusal({{7, 100.5f}}), HasSubstr("token 7 must be in [-100, 100], but is 100.5"));
  EXPECT_THAT(refusal({{7, kNan}}), HasSubstr("but is nan"));
  EXPECT_THAT(refusal({{7, -kInf}}), HasSubstr("but is -inf"));
  EXPECT_THAT(refusal({{7, 1}, {8, 2}, {7, 1}}), HasSubstr("token 7 more than once"));
  EXPECT_THAT(refusal(std::vector<std::pair<int32_t, float>>(1025, {1, 1})),
              HasSubstr("at most 1024 entries, but has 1025"));
}

TEST(GenerationTest, StopStringsAreCheckedByCountSizeAndForm) {
  const auto refusal = [](std::vector<std::string> stop) {
    return Refusal([&](GenerationRequest& r) { r.stop = stop; });
  };
  EXPECT_THAT(refusal(std::vector<std::string>(17, "x")),
              HasSubstr("stop may have at most 16 strings, but has 17"));
  EXPECT_THAT(refusal({"ok", ""}), HasSubstr("stop[1] must have at least 1 byte"));
  EXPECT_THAT(refusal({"ok\xff"}),
              HasSubstr("stop[0] must be well-formed UTF-8, but is not at byte 2"));
  EXPECT_THAT(refusal({"\xe7\xbb"}), HasSubstr("\\xe7\\xbb"));
}

TEST(GenerationTest, LongValuesAreCutAndEscapedInTheText) {
  const std::string long_stop = "line\n\"quoted\"" + std::string(5000, 'x');
  const std::string text = Refusal([&](GenerationRequest& r) { r.stop = {long_stop}; });
  EXPECT_THAT(text, HasSubstr("at most 1024 bytes"));
  EXPECT_THAT(text, HasSubstr("line\\n\\\"quoted\\\"xxx"));
  EXPECT_THAT(text, HasSubstr("... (5013 bytes)"));
  EXPECT_THAT(text, Not(HasSubstr(std::string(200, 'x'))));
  EXPECT_THAT(text, Not(HasSubstr("\n")));
  Refusal([](GenerationRequest& r) { r.stop = {std::string(5000, '\x01')}; });
  Refusal([](GenerationRequest& r) { r.stop = {std::string(1000, '\xff')}; });
}

TEST(GenerationTest, RandomRequestsAreAcceptedOrRefusedButNeverMore) {
  constexpr uint64_t kSeed = 3;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  for (int i = 0; i < 3000; ++i) {
    GenerationRequest request;
    for (int64_t n = random.Below(110); n > 0; --n) {
      request.prompt_ids.push_back(static_cast<int32_t>(
          random.Below(40) == 0 ? static_cast<int64_t>(random.Bits()) : random.Below(900)));
    }
    request.max_new_tokens = static_cast<int32_t>(random.Bits() >> random.Below(60));
    request.sampling.temperature = static_cast<float>(std::tan(random.Uniform() * 3));
    request.sampling.top_p = static_cast<float>(random.Normal());
    request.num_logprobs = static_cast<int32_t>(random.Below(24)) - 2;
    for (int64_t n = random.Below(18); n > 0; --n) {
      std::string stop;
      for (int64_t m = random.Below(20); m > 0; --m) stop += static_cast<char>(random.Bits());
      request.stop.push_back(stop);
    }
    const absl::Status status = ValidateGeneration(request, Limits());
    EXPECT_TRUE(status.ok() || status.code() == absl::StatusCode::kInvalidArgument);
    EXPECT_LE(status.message().size(), 1024u);
  }
}

}  // namespace
}  // namespace jevons

#include "server/response_mapping.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace jevons {
namespace {

using testing::ElementsAre;

constexpr size_t kClientLimit = 4 << 20;

StreamEnd GoodEnd() {
  return {
      .reason = FinishReason::kLength,
      .usage = {
          .prompt_tokens = 1, .cached_tokens = 4, .completion_tokens = 2, .reasoning_tokens = 3}};
}

Logprobs MakeLogprobs(int32_t id, int num_top) {
  Logprobs out;
  out.chosen = {.id = id, .logprob = -1.5F};
  for (int i = 0; i < num_top; ++i) out.top.push_back({.id = 100'000 + i, .logprob = -20.25F});
  return out;
}

TEST(ResponseMappingTest, APieceIsOfItsChannel) {
  StreamChunk chunk;
  chunk.delta = {.channel = Channel::kThinking, .text = "hm", .token_ids = {4, 5}};
  const auto messages = MapChunk(chunk, TokenIdMode::kReturn);
  ASSERT_EQ(messages.size(), 1U);
  EXPECT_EQ(messages[0].thinking(), "hm");
  EXPECT_FALSE(messages[0].has_answer());
  EXPECT_THAT(messages[0].token_ids(), ElementsAre(4, 5));
  EXPECT_EQ(messages[0].finish_reason(), v1::FINISH_REASON_UNSPECIFIED);
  EXPECT_FALSE(messages[0].has_usage());
}

TEST(ResponseMappingTest, IdsAreLeftOutUnlessAskedFor) {
  StreamChunk chunk;
  chunk.delta = {.channel = Channel::kAnswer, .token_ids = {4}};
  const auto messages = MapChunk(chunk, TokenIdMode::kOmit);
  ASSERT_EQ(messages.size(), 1U);
  EXPECT_TRUE(messages[0].has_answer());
  EXPECT_EQ(messages[0].answer(), "");
  EXPECT_EQ(messages[0].token_ids_size(), 0);
}

TEST(ResponseMappingTest, AGoodEndIsInTheLastMessage) {
  StreamChunk chunk;
  chunk.delta = {.channel = Channel::kAnswer, .text = "x", .token_ids = {4}};
  chunk.end.emplace(GoodEnd());
  const auto messages = MapChunk(chunk, TokenIdMode::kOmit);
  ASSERT_EQ(messages.size(), 1U);
  EXPECT_EQ(messages[0].answer(), "x");
  EXPECT_EQ(messages[0].finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(messages[0].usage().prompt_tokens(), 1);
  EXPECT_EQ(messages[0].usage().completion_tokens(), 2);
  EXPECT_EQ(messages[0].usage().reasoning_tokens(), 3);
  EXPECT_EQ(messages[0].usage().cached_tokens(), 4);
}

TEST(ResponseMappingTest, ABadEndHasNoMessageAndAStatus) {
  struct Case {
    FinishReason reason;
    absl::StatusCode code;
  };
  for (const Case& c : {Case{FinishReason::kCancelled, absl::StatusCode::kCancelled},
                        Case{FinishReason::kDeadline, absl::StatusCode::kDeadlineExceeded},
                        Case{FinishReason::kError, absl::StatusCode::kInternal},
                        Case{FinishReason::kNone, absl::StatusCode::kInternal}}) {
    StreamChunk chunk;
    chunk.end.emplace().reason = c.reason;
    EXPECT_EQ(EndStatus(*chunk.end).code(), c.code);
    EXPECT_TRUE(MapChunk(chunk, TokenIdMode::kOmit).empty());
  }
  EXPECT_EQ(EndStatus({.reason = FinishReason::kError, .error = absl::UnavailableError("bye")}),
            absl::UnavailableError("bye"));
}

TEST(ResponseMappingTest, LargeListsAreSplitInOrder) {
  StreamChunk chunk;
  constexpr int kNumPrompt = 8000;
  constexpr int kNumNew = 3000;
  for (int i = 0; i < kNumPrompt; ++i) {
    chunk.delta.prompt_logprobs.push_back(MakeLogprobs(i, 20));
  }
  for (int i = 0; i < kNumNew; ++i) {
    chunk.delta.token_ids.push_back(i);
    chunk.delta.logprobs.push_back(MakeLogprobs(i, 20));
  }
  chunk.delta.text = "text";
  chunk.end.emplace(GoodEnd());
  const auto messages = MapChunk(std::move(chunk), TokenIdMode::kReturn);
  int next_prompt = 0;
  int next_new = 0;
  std::string text;
  for (size_t i = 0; i < messages.size(); ++i) {
    EXPECT_LT(messages[i].ByteSizeLong(), kClientLimit);
    for (const auto& entry : messages[i].prompt_logprobs()) {
      EXPECT_EQ(entry.chosen().token_id(), next_prompt++);
      EXPECT_EQ(entry.top_size(), 20);
    }
    EXPECT_EQ(messages[i].token_ids_size(), messages[i].logprobs_size());
    for (const auto& entry : messages[i].logprobs()) {
      EXPECT_EQ(entry.chosen().token_id(), next_new++);
    }
    text += messages[i].answer();
    EXPECT_EQ(messages[i].has_usage(), i + 1 == messages.size());
  }
  EXPECT_GT(messages.size(), 2U);
  EXPECT_EQ(next_prompt, kNumPrompt);
  EXPECT_EQ(next_new, kNumNew);
  EXPECT_EQ(text, "text");
}

}  // namespace
}  // namespace jevons

#include "server/rank_wire.h"

#include <bit>
#include <limits>

#include "gmock/gmock.h"
#include "tests/support/engine_run.h"

namespace jevons {
namespace {

// Through the bytes of the wire.
template <typename Message>
Message Carried(const Message& message) {
  Message out;
  EXPECT_TRUE(out.ParseFromString(message.SerializeAsString()));
  return out;
}

// Floats whose bits are easily lost.
std::vector<float> HardFloats() {
  return {0.0f,
          -0.0f,
          std::numeric_limits<float>::denorm_min(),
          -std::numeric_limits<float>::infinity(),
          std::numeric_limits<float>::max(),
          std::bit_cast<float>(0x7fc12345u),
          -0.1f};
}

void ExpectSameBits(float a, float b) {
  EXPECT_EQ(std::bit_cast<uint32_t>(a), std::bit_cast<uint32_t>(b));
}

TEST(RankWireTest, ARequestArrivesAsItWasToTheBit) {
  const absl::Time now = absl::FromUnixSeconds(1'700'000'000);
  for (const float value : HardFloats()) {
    GenerationRequest request;
    request.prompt_ids = {0, 5, std::numeric_limits<int32_t>::max()};
    request.max_new_tokens = 77;
    request.sampling = {.temperature = value,
                        .top_k = 40,
                        .top_p = value,
                        .min_p = value,
                        .seed = std::numeric_limits<uint64_t>::max(),
                        .logit_bias = {{3, value}, {9, -100.0f}}};
    request.stop = {"a", std::string("\0\xff", 2)};
    request.ignore_eos = true;
    request.num_logprobs = -1;
    request.num_prompt_logprobs = 4;
    request.cache_salt = std::numeric_limits<uint64_t>::max() - 1;
    request.deadline = now + absl::Nanoseconds(123456789);
    const absl::Time later = now + absl::Hours(1);  // another clock
    const wire::Submit submit = Carried(ToWire(12, request, now));
    EXPECT_EQ(submit.id(), 12u);
    const GenerationRequest got = FromWire(submit, later);
    EXPECT_EQ(got.prompt_ids, request.prompt_ids);
    EXPECT_EQ(got.max_new_tokens, request.max_new_tokens);
    ExpectSameBits(got.sampling.temperature, value);
    EXPECT_EQ(got.sampling.top_k, 40);
    ExpectSameBits(got.sampling.top_p, value);
    ExpectSameBits(got.sampling.min_p, value);
    EXPECT_EQ(got.sampling.seed, request.sampling.seed);
    ASSERT_EQ(got.sampling.logit_bias.size(), 2u);
    EXPECT_EQ(got.sampling.logit_bias[0].first, 3);
    ExpectSameBits(got.sampling.logit_bias[0].second, value);
    EXPECT_EQ(got.stop, request.stop);
    EXPECT_TRUE(got.ignore_eos);
    EXPECT_EQ(got.num_logprobs, -1);
    EXPECT_EQ(got.num_prompt_logprobs, 4);
    EXPECT_EQ(got.cache_salt, request.cache_salt);
    EXPECT_EQ(got.deadline - later, request.deadline - now);
  }
}

TEST(RankWireTest, WhatARequestHasGivenArrivesWithIt) {
  GenerationRequest request;
  wire::Submit submit = ToWire(3, request, absl::Now());
  EXPECT_FALSE(Carried(submit).has_given());
  // Nothing is given, and yet it is a request that is taken over.
  SetGiven({}, &submit);
  EXPECT_TRUE(Carried(submit).has_given());
  submit = ToWire(3, request, absl::Now());
  SetGiven({.token_ids = {7, 0, 9}, .num_prompt_logprobs = 4}, &submit);
  const GenerationRequest got = FromWire(Carried(submit), absl::Now());
  EXPECT_THAT(got.given.token_ids, testing::ElementsAre(7, 0, 9));
  EXPECT_EQ(got.given.num_prompt_logprobs, 4);
}

TEST(RankWireTest, AMembershipArrivesAsItWas) {
  const wire::ToRank message = Carried(ToWire(Membership{
      .epoch = 5, .ranks = {0, 2, 7}, .rendezvous = "[::1]:9", .reason = "rank \xff is lost"}));
  const Membership got = FromWire(message.regroup());
  EXPECT_EQ(got.epoch, 5);
  EXPECT_THAT(got.ranks, testing::ElementsAre(0, 2, 7));
  EXPECT_EQ(got.rendezvous, "[::1]:9");
  EXPECT_EQ(got.reason, "rank \xff is lost");
}

TEST(RankWireTest, NoDeadlineStaysNone) {
  const GenerationRequest got =
      FromWire(Carried(ToWire(1, GenerationRequest(), absl::Now())), absl::Now());
  EXPECT_EQ(got.deadline, absl::InfiniteFuture());
  EXPECT_EQ(got.num_logprobs, -1);
}

TEST(RankWireTest, AChunkArrivesAsItWasToTheBit) {
  StreamChunk chunk;
  chunk.delta.channel = Channel::kThinking;
  chunk.delta.text = std::string("half \xe2\x82 and \0 nul", 16);
  chunk.delta.token_ids = {1, -1, 99};
  for (const float value : HardFloats()) {
    chunk.delta.logprobs.push_back(
        {.chosen = {.id = 4, .logprob = value},
         .top = {{.id = 5, .logprob = -value}, {.id = 0, .logprob = 0}}});
    chunk.delta.prompt_logprobs.push_back({.chosen = {.id = 7, .logprob = value}, .top = {}});
  }
  StreamChunk got = FromWire(Carried(ToWire(9, chunk)));
  EXPECT_EQ(got.delta.channel, chunk.delta.channel);
  EXPECT_EQ(got.delta.text, chunk.delta.text);
  EXPECT_EQ(got.delta.token_ids, chunk.delta.token_ids);
  EXPECT_TRUE(SameBits(got.delta.logprobs, chunk.delta.logprobs));
  EXPECT_TRUE(SameBits(got.delta.prompt_logprobs, chunk.delta.prompt_logprobs));
  EXPECT_FALSE(got.end.has_value());

  chunk.end = {
      .reason = FinishReason::kDeadline,
      .error = absl::DeadlineExceededError("too late \xff"),
      .usage = {
          .prompt_tokens = 3, .cached_tokens = 1, .completion_tokens = 4, .reasoning_tokens = 2}};
  got = FromWire(Carried(ToWire(9, chunk)));
  ASSERT_TRUE(got.end.has_value());
  EXPECT_EQ(got.end->reason, FinishReason::kDeadline);
  EXPECT_EQ(got.end->error, chunk.end->error);
  EXPECT_EQ(got.end->usage.prompt_tokens, 3);
  EXPECT_EQ(got.end->usage.cached_tokens, 1);
  EXPECT_EQ(got.end->usage.completion_tokens, 4);
  EXPECT_EQ(got.end->usage.reasoning_tokens, 2);
}

TEST(RankWireTest, AnEndWithoutAnErrorHasNone) {
  const StreamChunk chunk = {.delta = {}, .end = StreamEnd{.reason = FinishReason::kStop}};
  const StreamChunk got = FromWire(Carried(ToWire(9, chunk)));
  ASSERT_TRUE(got.end.has_value());
  EXPECT_TRUE(got.end->error.ok());
}

TEST(RankWireTest, StatsArriveAsTheyWere) {
  const EngineStats stats = {.num_queued = 1,
                             .num_running = 2,
                             .num_blocks = 3,
                             .num_free_blocks = 4,
                             .num_steps = 5,
                             .num_preemptions = 6,
                             .num_requests = 7,
                             .num_prompt_tokens = 8,
                             .num_cached_tokens = 11,
                             .num_new_tokens = int64_t{9} << 40,
                             .num_moved_layers = 0,
                             .group_epoch = 10,
                             .step_age = absl::Microseconds(11),
                             .largest_token_gap = absl::Seconds(12),
                             .place = {.position = 13, .waits_for = 0, .behind_rows = true},
                             .place_epoch = 14};
  const EngineStats got = FromWire(Carried(ToWire(stats)));
  EXPECT_EQ(got.num_queued, 1);
  EXPECT_EQ(got.num_running, 2);
  EXPECT_EQ(got.num_blocks, 3);
  EXPECT_EQ(got.num_free_blocks, 4);
  EXPECT_EQ(got.num_steps, 5);
  EXPECT_EQ(got.num_preemptions, 6);
  EXPECT_EQ(got.num_requests, 7);
  EXPECT_EQ(got.num_prompt_tokens, 8);
  EXPECT_EQ(got.num_cached_tokens, 11);
  EXPECT_EQ(got.num_new_tokens, int64_t{9} << 40);
  EXPECT_EQ(got.group_epoch, 10);
  EXPECT_EQ(got.step_age, absl::Microseconds(11));
  EXPECT_EQ(got.largest_token_gap, absl::Seconds(12));
  EXPECT_EQ(got.place.position, 13);
  EXPECT_EQ(got.place.waits_for, 0);
  EXPECT_TRUE(got.place.behind_rows);
  EXPECT_EQ(got.place_epoch, 14);
  const EngineStats alone = FromWire(Carried(ToWire(EngineStats())));
  EXPECT_EQ(alone.place.waits_for, -1);
  EXPECT_EQ(alone.place_epoch, -1);
}

TEST(RankWireTest, TheShapeOfAGroupArrivesAsItWas) {
  const GroupShape shape = {
      .max_model_len = 3, .kv_cache_tokens = int64_t{4} << 40, .num_slots = 5};
  const GroupShape got = FromWire(Carried(ToWire(shape)).start().shape());
  EXPECT_EQ(got.max_model_len, 3);
  EXPECT_EQ(got.kv_cache_tokens, int64_t{4} << 40);
  EXPECT_EQ(got.num_slots, 5);
}

TEST(RankWireTest, WhatARankHasSeenOfItsGroupsEndArrives) {
  const GroupBreak seen = {
      .epoch = 3, .status = absl::DeadlineExceededError("a\xff"), .unreached = {2, 0}};
  const GroupBreak got = FromWire(Carried(ToWire(seen)).broken());
  EXPECT_EQ(got.epoch, 3);
  EXPECT_EQ(got.status, seen.status);
  EXPECT_EQ(got.unreached, seen.unreached);
}

TEST(RankWireTest, ChangesOfThePrefixCacheArriveWithAHeartbeat) {
  wire::Heartbeat heartbeat = ToWire(EngineStats());
  SetPrefixChanges({.removed = {1, ~uint64_t{0}}, .added = {7}}, &heartbeat);
  const PrefixChanges got = PrefixChangesFromWire(Carried(heartbeat));
  EXPECT_FALSE(got.cleared);
  EXPECT_THAT(got.removed, testing::ElementsAre(1u, ~uint64_t{0}));
  EXPECT_THAT(got.added, testing::ElementsAre(7u));
}

}  // namespace
}  // namespace jevons

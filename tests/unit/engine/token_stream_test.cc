#include "engine/token_stream.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/allocation_counter.h"

namespace jevons {
namespace {

using testing::ElementsAre;

StreamDelta Text(Channel channel, std::string text, int32_t token_id) {
  return {.channel = channel, .text = std::move(text), .token_ids = {token_id}};
}

StreamEnd Stop() { return {.reason = FinishReason::kStop, .usage = {.completion_tokens = 3}}; }

TEST(TokenStreamTest, NothingIsThereAtFirst) {
  TokenStream stream;
  EXPECT_FALSE(stream.TakeChunk().has_value());
  EXPECT_FALSE(stream.WaitChunk(absl::ZeroDuration()).has_value());
  EXPECT_FALSE(stream.WaitChunk(-absl::InfiniteDuration()).has_value());
  EXPECT_FALSE(stream.cancelled());
}

TEST(TokenStreamTest, DeltasOfOneChannelComeMergedInOrder) {
  TokenStream stream;
  StreamDelta first = Text(Channel::kAnswer, "one ", 1);
  first.logprobs = {{.chosen = {.id = 1, .logprob = -1}, .top = {{.id = 1, .logprob = -1}}}};
  first.prompt_logprobs = {{.chosen = {.id = 8, .logprob = -8}, .top = {}}};
  StreamDelta second = Text(Channel::kAnswer, "two", 2);
  second.logprobs = {{.chosen = {.id = 2, .logprob = -2}, .top = {}}};
  second.prompt_logprobs = {{.chosen = {.id = 9, .logprob = -9}, .top = {}}};
  stream.Push(std::move(first));
  stream.Push(std::move(second));
  const std::optional<StreamChunk> chunk = stream.TakeChunk();
  ASSERT_TRUE(chunk.has_value());
  EXPECT_EQ(chunk->delta.channel, Channel::kAnswer);
  EXPECT_EQ(chunk->delta.text, "one two");
  EXPECT_THAT(chunk->delta.token_ids, ElementsAre(1, 2));
  ASSERT_EQ(chunk->delta.logprobs.size(), 2u);
  EXPECT_EQ(chunk->delta.logprobs[0].top.size(), 1u);
  EXPECT_EQ(chunk->delta.logprobs[1].chosen.id, 2);
  ASSERT_EQ(chunk->delta.prompt_logprobs.size(), 2u);
  EXPECT_EQ(chunk->delta.prompt_logprobs[1].chosen.id, 9);
  EXPECT_FALSE(chunk->end.has_value());
  EXPECT_FALSE(stream.TakeChunk().has_value());
}

TEST(TokenStreamTest, AChunkNeverHoldsTwoChannels) {
  TokenStream stream;
  stream.Push(Text(Channel::kThinking, "hm", 1));
  stream.Push(Text(Channel::kThinking, "m", 2));
  stream.Push(Text(Channel::kAnswer, "yes", 3));
  stream.Push(Text(Channel::kThinking, "or", 4));
  stream.End(Stop());
  const auto a = stream.TakeChunk();
  const auto b = stream.TakeChunk();
  const auto c = stream.TakeChunk();
  ASSERT_TRUE(a.has_value() && b.has_value() && c.has_value());
  EXPECT_EQ(a->delta.text, "hmm");
  EXPECT_EQ(a->delta.channel, Channel::kThinking);
  EXPECT_EQ(b->delta.text, "yes");
  EXPECT_EQ(b->delta.channel, Channel::kAnswer);
  EXPECT_EQ(c->delta.text, "or");
  EXPECT_FALSE(a->end.has_value() || b->end.has_value());
  ASSERT_TRUE(c->end.has_value());
  EXPECT_EQ(c->end->reason, FinishReason::kStop);
  EXPECT_EQ(c->end->usage.completion_tokens, 3);
}

TEST(TokenStreamTest, ChunksStayWithinTheirSizeAndALargerDeltaComesAlone) {
  TokenStream stream;
  constexpr size_t kMax = TokenStream::kMaxChunkBytes;
  const std::string third(kMax / 3, 'x');
  for (int i = 0; i < 4; ++i) stream.Push({.text = third});
  stream.Push({.text = std::string(2 * kMax, 'y')});
  stream.Push({.text = "z"});
  std::vector<size_t> sizes;
  while (const auto chunk = stream.TakeChunk()) sizes.push_back(chunk->delta.text.size());
  EXPECT_THAT(sizes, ElementsAre(3 * third.size(), third.size(), 2 * kMax, 1));
}

TEST(TokenStreamTest, LogprobsCountForTheSizeOfAChunk) {
  TokenStream stream;
  StreamDelta delta;
  delta.prompt_logprobs.resize(1000);
  for (Logprobs& entry : delta.prompt_logprobs) entry.top.resize(20);
  for (int i = 0; i < 20; ++i) stream.Push(delta);
  size_t num_entries = 0;
  int num_chunks = 0;
  while (const auto chunk = stream.TakeChunk()) {
    num_entries += chunk->delta.prompt_logprobs.size();
    ++num_chunks;
  }
  EXPECT_EQ(num_entries, 20000u);
  EXPECT_GE(num_chunks, 4);
}

TEST(TokenStreamTest, AnEndAloneIsAChunkAndTheLastOne) {
  TokenStream stream;
  stream.Push(Text(Channel::kThinking, "a", 1));
  ASSERT_TRUE(stream.TakeChunk().has_value());
  stream.End({.reason = FinishReason::kCancelled, .error = absl::CancelledError("by the client")});
  const auto chunk = stream.TakeChunk();
  ASSERT_TRUE(chunk.has_value() && chunk->end.has_value());
  EXPECT_TRUE(chunk->delta.text.empty() && chunk->delta.token_ids.empty());
  EXPECT_EQ(chunk->end->error.code(), absl::StatusCode::kCancelled);
  EXPECT_FALSE(stream.TakeChunk().has_value());
  EXPECT_FALSE(stream.WaitChunk(absl::InfiniteDuration()).has_value());
}

TEST(TokenStreamTest, AnEmptyDeltaIsDropped) {
  int num_ready = 0;
  TokenStream stream([&] { ++num_ready; });
  stream.Push({});
  EXPECT_EQ(num_ready, 0);
  EXPECT_FALSE(stream.TakeChunk().has_value());
}

TEST(TokenStreamTest, ReadyIsCalledOncePerTimeThatSomethingCameAfterNothing) {
  int num_ready = 0;
  TokenStream stream([&] { ++num_ready; });
  stream.Push(Text(Channel::kAnswer, "a", 1));
  stream.Push(Text(Channel::kAnswer, "b", 2));
  EXPECT_EQ(num_ready, 1);
  stream.TakeChunk();
  stream.Push(Text(Channel::kAnswer, "c", 3));
  EXPECT_EQ(num_ready, 2);
  stream.End(Stop());
  EXPECT_EQ(num_ready, 2);
  stream.TakeChunk();

  TokenStream ended([&] { ++num_ready; });
  ended.End(Stop());
  EXPECT_EQ(num_ready, 3);
}

TEST(TokenStreamTest, CancelIsSeenByTheEngineAndTheStreamStillEnds) {
  TokenStream stream;
  stream.Cancel();
  EXPECT_TRUE(stream.cancelled());
  stream.Push(Text(Channel::kAnswer, "late", 1));
  stream.End({.reason = FinishReason::kCancelled});
  const auto chunk = stream.TakeChunk();
  ASSERT_TRUE(chunk.has_value() && chunk->end.has_value());
  EXPECT_EQ(chunk->end->reason, FinishReason::kCancelled);
}

TEST(TokenStreamTest, MemoryOfTakenDeltasIsFreed) {
  TokenStream stream;
  const int64_t before = NumLiveAllocations();
  for (int i = 0; i < 20000; ++i) {
    stream.Push(Text(i % 2 == 0 ? Channel::kAnswer : Channel::kThinking, std::string(50, 'x'), i));
  }
  EXPECT_GT(NumLiveAllocations(), before + 20000);
  // All but one, so that the stream never becomes empty.
  for (int i = 0; i < 19999; ++i) ASSERT_TRUE(stream.TakeChunk().has_value());
  EXPECT_LT(NumLiveAllocations(), before + 20);
}

TEST(TokenStreamTest, ABacklogOfOneChannelIsHeldMerged) {
  TokenStream stream;
  const int64_t before = NumLiveAllocations();
  for (int i = 0; i < 20000; ++i) stream.Push(Text(Channel::kAnswer, "x", i));
  EXPECT_LT(NumLiveAllocations(), before + 20);
  EXPECT_EQ(stream.TakeChunk()->delta.token_ids.size(), 20000u);
}

TEST(TokenStreamTest, WaitingReaderWakesForAPushAndForTheEnd) {
  TokenStream stream;
  std::thread engine([&] {
    stream.Push(Text(Channel::kAnswer, "a", 1));
    stream.End(Stop());
  });
  std::string text;
  bool ended = false;
  while (!ended) {
    const auto chunk = stream.WaitChunk(absl::InfiniteDuration());
    ASSERT_TRUE(chunk.has_value());
    text += chunk->delta.text;
    ended = chunk->end.has_value();
  }
  engine.join();
  EXPECT_EQ(text, "a");
}

// What one reader got of a stream.
struct Received {
  std::string text;
  std::vector<int32_t> token_ids;
  int num_ends = 0;
};

void Collect(const StreamChunk& chunk, Received& received) {
  received.text += chunk.delta.text;
  received.token_ids.insert(received.token_ids.end(), chunk.delta.token_ids.begin(),
                            chunk.delta.token_ids.end());
  received.num_ends += chunk.end.has_value();
}

TEST(TokenStreamTest, RacingEngineReaderAndCancellerLoseAndDoubleNothing) {
  constexpr int kRounds = 50;
  constexpr int kMaxTokens = 2000;
  for (int round = 0; round < kRounds; ++round) {
    auto stream = std::make_shared<TokenStream>();
    int num_pushed = 0;
    std::thread engine([&num_pushed, stream] {
      while (num_pushed < kMaxTokens && !stream->cancelled()) {
        const Channel channel = num_pushed % 97 < 40 ? Channel::kThinking : Channel::kAnswer;
        stream->Push(Text(channel, "t", num_pushed++));
      }
      stream->End(Stop());
    });
    Received received;
    std::thread reader([&received, stream] {
      while (received.num_ends == 0) {
        const auto chunk = stream->WaitChunk(absl::Milliseconds(1));
        if (chunk.has_value()) Collect(*chunk, received);
      }
    });
    std::thread canceller([round, stream] {
      if (round % 2 == 0) return;
      std::this_thread::sleep_for(std::chrono::microseconds(20 * round));
      stream->Cancel();
    });
    stream.reset();
    engine.join();
    reader.join();
    canceller.join();
    EXPECT_EQ(received.num_ends, 1);
    EXPECT_EQ(received.text.size(), static_cast<size_t>(num_pushed));
    ASSERT_EQ(received.token_ids.size(), static_cast<size_t>(num_pushed));
    for (int i = 0; i < num_pushed; ++i) ASSERT_EQ(received.token_ids[i], i);
  }
}

// A reader that is driven by `ready` alone, as a server's is.
TEST(TokenStreamTest, ReadyAloneIsEnoughToReadEverything) {
  constexpr int kTokens = 20000;
  Mutex mutex;
  CondVar called;
  bool is_ready = false;
  TokenStream stream([&] {
    MutexLock lock(&mutex);
    is_ready = true;
    called.NotifyOne();
  });
  std::thread engine([&] {
    for (int i = 0; i < kTokens; ++i) stream.Push(Text(Channel::kAnswer, "t", i));
    stream.End(Stop());
  });
  Received received;
  while (received.num_ends == 0) {
    {
      MutexLock lock(&mutex);
      while (!is_ready) called.Wait(&mutex);
      is_ready = false;
    }
    while (const auto chunk = stream.TakeChunk()) Collect(*chunk, received);
  }
  engine.join();
  EXPECT_EQ(received.token_ids.size(), static_cast<size_t>(kTokens));
  EXPECT_TRUE(std::is_sorted(received.token_ids.begin(), received.token_ids.end()));
}

TEST(TokenStreamDeathTest, NothingMayFollowTheEnd) {
  TokenStream stream;
  stream.End(Stop());
  EXPECT_DEATH(stream.Push(Text(Channel::kAnswer, "a", 1)), "CHECK failed");
  EXPECT_DEATH(stream.End(Stop()), "CHECK failed");
}

TEST(TokenStreamTest, OnlyTheFirstCancelCalls) {
  int num_calls = 0;
  TokenStream stream({}, [&] { ++num_calls; });
  EXPECT_EQ(num_calls, 0);
  stream.Cancel();
  stream.Cancel();
  EXPECT_EQ(num_calls, 1);
  EXPECT_TRUE(stream.cancelled());
}

}  // namespace
}  // namespace jevons

#include "server/server.h"

#include <atomic>
#include <map>
#include <mutex>
#include <thread>

#include "absl/synchronization/notification.h"
#include "client/client.h"
#include "gmock/gmock.h"
#include "grpcpp/create_channel.h"
#include "gtest/gtest.h"
#include "jevons/v1/inference.grpc.pb.h"
#include "tests/support/fake_engine.h"
#include "tests/support/wait_for.h"

namespace jevons {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using Messages = std::vector<v1::GenerateResponse>;

constexpr Usage kUsage = {.prompt_tokens = 2, .completion_tokens = 1, .reasoning_tokens = 0};

class ServerTest : public testing::Test {
 protected:
  void SetUp() override {
    auto server = Server::Start({.listen = "127.0.0.1:0"}, &engine_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    client_ = Client::Connect(server_->address());
  }
  void TearDown() override {
    if (call_.joinable()) call_.join();
  }

  static v1::GenerateRequest Request() {
    v1::GenerateRequest out;
    out.set_text("q");
    return out;
  }
  // One call on a thread of its own; TearDown or Join waits for it.
  void StartCall(const v1::GenerateRequest& request, CallOptions options = {}) {
    call_ = std::thread([this, request, options] {
      status_ = client_->Generate(
          request, [this](const v1::GenerateResponse& m) { messages_.push_back(m); }, options);
    });
  }
  void Join() { call_.join(); }

  FakeEngine engine_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<Client> client_;
  std::thread call_;
  absl::Status status_;
  Messages messages_;
};

TEST_F(ServerTest, AStreamStartsWithStartedAndEndsWithOneTerminalMessage) {
  v1::GenerateRequest request = Request();
  request.mutable_sampling()->set_seed(5);
  StartCall(request);
  const auto stream = engine_.WaitStream(0);
  stream->Push({.channel = Channel::kThinking, .text = "hm", .token_ids = {1}});
  stream->Push({.channel = Channel::kAnswer, .text = "42", .token_ids = {2}});
  engine_.End(0, {.reason = FinishReason::kStop, .usage = kUsage});
  Join();
  EXPECT_TRUE(status_.ok()) << status_;
  ASSERT_GE(messages_.size(), 2U);
  EXPECT_EQ(messages_[0].started().model(), "fake-model");
  EXPECT_EQ(messages_[0].started().prompt_tokens(), 2);
  EXPECT_EQ(messages_[0].started().seed(), 5U);
  std::string thinking;
  std::string answer;
  int terminal = 0;
  for (const v1::GenerateResponse& message : messages_) {
    thinking += message.thinking();
    answer += message.answer();
    terminal += message.finish_reason() != v1::FINISH_REASON_UNSPECIFIED ? 1 : 0;
  }
  EXPECT_EQ(thinking, "hm");
  EXPECT_EQ(answer, "42");
  EXPECT_EQ(terminal, 1);
  EXPECT_EQ(messages_.back().finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(messages_.back().usage().prompt_tokens(), kUsage.prompt_tokens);
}

TEST_F(ServerTest, SeedsThatAreDrawnDiffer) {
  std::vector<uint64_t> seeds;
  for (size_t i = 0; i < 2; ++i) {
    messages_.clear();
    StartCall(Request());
    engine_.WaitStream(i);
    engine_.End(i, {.reason = FinishReason::kStop, .usage = kUsage});
    Join();
    ASSERT_FALSE(messages_.empty());
    seeds.push_back(messages_[0].started().seed());
    EXPECT_EQ(seeds.back(), engine_.WaitRequest(i).sampling.seed);
  }
  EXPECT_NE(seeds[0], seeds[1]);
}

TEST_F(ServerTest, ABadEndIsAStatusAfterWhatWasWritten) {
  StartCall(Request());
  engine_.WaitStream(0)->Push({.channel = Channel::kAnswer, .text = "4", .token_ids = {1}});
  engine_.End(0, {.reason = FinishReason::kError, .error = absl::InternalError("row has NaN")});
  Join();
  EXPECT_EQ(status_, absl::InternalError("row has NaN"));
  std::string answer;
  for (const v1::GenerateResponse& message : messages_) {
    answer += message.answer();
    EXPECT_EQ(message.finish_reason(), v1::FINISH_REASON_UNSPECIFIED);
  }
  EXPECT_EQ(answer, "4");
}

TEST_F(ServerTest, WhatTheEngineRefusesReachesTheClient) {
  engine_.RefuseWith(absl::ResourceExhaustedError("the queue is full"));
  StartCall(Request());
  Join();
  EXPECT_EQ(status_, absl::ResourceExhaustedError("the queue is full"));
  EXPECT_TRUE(messages_.empty());
}

TEST_F(ServerTest, ClientCancelReachesTheEngineAndEndsTheCall) {
  CallHandle handle;
  StartCall(Request(), {.handle = &handle});
  const auto stream = engine_.WaitStream(0);
  handle.Cancel();
  Join();
  EXPECT_TRUE(absl::IsCancelled(status_)) << status_;
  EXPECT_TRUE(WaitFor([&] { return stream->cancelled(); }));
}

TEST_F(ServerTest, ACallCancelledBeforeItBeginsEnds) {
  CallHandle handle;
  handle.Cancel();
  StartCall(Request(), {.handle = &handle});
  Join();
  EXPECT_TRUE(absl::IsCancelled(status_)) << status_;
}

TEST_F(ServerTest, DeadlineOfTheCallReachesTheEngine) {
  const absl::Time deadline = absl::Now() + absl::Hours(1);
  StartCall(Request(), {.deadline = deadline});
  const absl::Time got = engine_.WaitRequest(0).deadline;
  // The wire carries what remains, in units of at least a millisecond.
  EXPECT_LT(absl::AbsDuration(got - deadline), absl::Minutes(1));
  engine_.End(0, {.reason = FinishReason::kDeadline});
  Join();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status_)) << status_;
}

TEST_F(ServerTest, TheServersOwnTimerEndsACallThatTheEngineDoesNot) {
  const auto channel = grpc::CreateChannel(server_->address(), grpc::InsecureChannelCredentials());
  StartCall(Request(), {.deadline = absl::Now() + absl::Milliseconds(300)});
  const auto stream = engine_.WaitStream(0);
  Join();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status_)) << status_;
  EXPECT_TRUE(WaitFor([&] { return stream->cancelled(); }));
}

TEST_F(ServerTest, ASlowReaderGetsFewerLargerMessagesAndTheEngineDoesNotWait) {
  constexpr int kNumDeltas = 30'000;
  const std::string piece(100, 'x');
  absl::Notification first;
  absl::Notification pushed;
  std::string answer;
  int num_messages = 0;
  std::thread reader([&] {
    status_ = client_->Generate(Request(), [&](const v1::GenerateResponse& message) {
      if (!first.HasBeenNotified()) first.Notify();
      pushed.WaitForNotification();
      answer += message.answer();
      ++num_messages;
    });
  });
  const auto stream = engine_.WaitStream(0);
  first.WaitForNotification();
  for (int i = 0; i < kNumDeltas; ++i) {
    stream->Push({.channel = Channel::kAnswer, .text = piece, .token_ids = {1}});
  }
  engine_.End(0, {.reason = FinishReason::kStop, .usage = kUsage});
  pushed.Notify();
  reader.join();
  EXPECT_TRUE(status_.ok()) << status_;
  EXPECT_EQ(answer.size(), piece.size() * kNumDeltas);
  EXPECT_LT(num_messages, kNumDeltas / 2);
}

TEST_F(ServerTest, AbortAllEndsOpenAndLaterCalls) {
  StartCall(Request());
  const auto stream = engine_.WaitStream(0);
  server_->AbortAll();
  Join();
  EXPECT_EQ(status_, absl::UnavailableError("the server was told to stop at once"));
  EXPECT_TRUE(stream->cancelled());
  StartCall(Request());
  Join();
  EXPECT_TRUE(absl::IsUnavailable(status_)) << status_;
}

TEST_F(ServerTest, DrainEndsTheRestWithUnavailable) {
  StartCall(Request());
  engine_.WaitStream(0);
  server_->Drain(absl::ZeroDuration());
  Join();
  EXPECT_EQ(status_, absl::UnavailableError("shutting down"));
}

// Clients that call again and again while the server drains and closes, each over its own connection.
TEST_F(ServerTest, WhateverArrivesWhileItClosesIsUnavailable) {
  constexpr int kNumClients = 12;
  std::atomic<bool> stop = false;
  std::mutex mutex;
  std::map<grpc::StatusCode, int> counts;
  std::string other;
  std::vector<std::thread> threads;
  for (int i = 0; i < kNumClients; ++i) {
    threads.emplace_back([&] {
      grpc::ChannelArguments arguments;
      arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
      const auto stub = v1::Inference::NewStub(grpc::CreateCustomChannel(
          server_->address(), grpc::InsecureChannelCredentials(), arguments));
      while (!stop) {
        grpc::ClientContext context;
        const auto reader = stub->Generate(&context, Request());
        v1::GenerateResponse message;
        while (reader->Read(&message)) continue;
        const grpc::Status status = reader->Finish();
        const std::lock_guard<std::mutex> lock(mutex);
        ++counts[status.error_code()];
        if (status.error_code() != grpc::StatusCode::UNAVAILABLE) other = status.error_message();
      }
    });
  }
  engine_.WaitStream(kNumClients - 1);
  server_->Drain(absl::ZeroDuration());
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(counts.size(), 1u) << other;
  EXPECT_GT(counts[grpc::StatusCode::UNAVAILABLE], 2 * kNumClients);
  for (const auto& [code, count] : counts) RecordProperty(absl::StrCat("code_", code), count);
}

TEST_F(ServerTest, DestroyingTheServerEndsOpenCalls) {
  StartCall(Request());
  engine_.WaitStream(0);
  server_.reset();
  Join();
  EXPECT_TRUE(absl::IsUnavailable(status_)) << status_;
}

TEST_F(ServerTest, AMessageAboveTheLimitIsRefusedWithLimitAndSize) {
  v1::GenerateRequest request;
  request.set_text(std::string(17 << 20, 'x'));
  StartCall(request);
  Join();
  EXPECT_EQ(status_.code(), absl::StatusCode::kResourceExhausted) << status_;
  EXPECT_THAT(std::string(status_.message()),
              AllOf(HasSubstr("16777216"), HasSubstr(std::to_string(request.ByteSizeLong()))));
}

TEST_F(ServerTest, ALargeRequestIsPreparedAsASmallOneIs) {
  v1::GenerateRequest request;
  request.set_text(std::string(90'000, 'x'));
  StartCall(request);
  EXPECT_EQ(engine_.WaitRequest(0).prompt_ids.size(), 90'001U);
  engine_.End(0, {.reason = FinishReason::kStop, .usage = kUsage});
  Join();
  EXPECT_TRUE(status_.ok()) << status_;
}

TEST_F(ServerTest, UnaryAnswersAboveTheLimitAreRefused) {
  engine_.mutable_limits().max_model_len = 100'000'000;
  v1::TokenizeRequest request;
  request.set_text(std::string(15 << 20, '\x7f'));
  const auto answer = client_->Tokenize(request);
  EXPECT_EQ(answer.status().code(), absl::StatusCode::kResourceExhausted) << answer.status();
  EXPECT_THAT(std::string(answer.status().message()), HasSubstr("4000000"));
}

TEST_F(ServerTest, TokenizeAndDetokenize) {
  v1::TokenizeRequest request;
  request.set_text("a\u00e9");
  EXPECT_THAT(client_->Tokenize(request)->token_ids(), testing::ElementsAre('a', 0xC3, 0xA9));
  request.set_add_bos(true);
  EXPECT_THAT(client_->Tokenize(request)->token_ids(),
              testing::ElementsAre(kFakeBosId, 'a', 0xC3, 0xA9));
  v1::DetokenizeRequest ids;
  for (const int32_t id : {kFakeBosId, 0x61, 0xC3}) ids.add_token_ids(id);
  EXPECT_EQ(client_->Detokenize(ids)->text(), "<s>a\uFFFD");
  ids.set_skip_special(true);
  EXPECT_EQ(client_->Detokenize(ids)->text(), "a\uFFFD");
  ids.add_token_ids(999);
  EXPECT_EQ(
      client_->Detokenize(ids).status(),
      absl::InvalidArgumentError("token_ids[3] must be in [0, 257), the vocabulary, given 999"));
  EXPECT_EQ(client_->Tokenize({}).status(),
            absl::InvalidArgumentError("input is missing: set one of text, chat"));
}

TEST(ServerStartTest, APortInUseIsAnErrorThatSaysSo) {
  FakeEngine engine;
  const auto first = Server::Start({.listen = "127.0.0.1:0"}, &engine);
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = Server::Start({.listen = (*first)->address()}, &engine);
  EXPECT_EQ(second.status(),
            absl::UnavailableError("listen: cannot listen on " + (*first)->address() +
                                   ": Address already in use"));
}

TEST(ServerStartTest, AnIllFormedAddressIsRefused) {
  FakeEngine engine;
  for (const std::string listen : {"127.0.0.1", "127.0.0.1:", ":50051", "127.0.0.1:70000", "a:b"}) {
    const auto server = Server::Start({.listen = listen}, &engine);
    EXPECT_EQ(server.status(),
              absl::InvalidArgumentError(
                  "listen must be HOST:PORT with a port in [0, 65535], given \"" + listen + "\""));
  }
}

TEST(ClientTest, NoServerIsAnErrorThatNamesTheAddress) {
  const auto client = Client::Connect("127.0.0.1:1");
  EXPECT_EQ(client->WaitConnected(absl::Milliseconds(200)),
            absl::UnavailableError("no server answers at 127.0.0.1:1"));
}

}  // namespace
}  // namespace jevons

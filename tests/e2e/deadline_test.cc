// The server keeps deadlines by itself: these clients never give up on their own.
#include <thread>

#include "tests/e2e/demo_server.h"
#include "tests/support/http2_client.h"

namespace jevons {
namespace {

constexpr char kGenerate[] = "/jevons.v1.Inference/Generate";
constexpr int kDeadlineExceeded = 4;
constexpr absl::Duration kLimit = absl::Seconds(60);

Http2Call WithTimeout(const v1::GenerateRequest& request, const std::string& timeout) {
  return {.path = kGenerate,
          .message = request.SerializeAsString(),
          .headers = {{"grpc-timeout", timeout}}};
}

// Keeps the engine busy until it is destroyed.
class Background {
 public:
  Background(DemoServer& server, int num_requests) {
    handles_ = std::vector<CallHandle>(static_cast<size_t>(num_requests));
    for (CallHandle& handle : handles_) {
      threads_.emplace_back([&] {
        while (!stop_) {
          Generate(server.client(), EndlessRequest(), {.handle = &handle});
        }
      });
    }
  }
  ~Background() {
    stop_ = true;
    for (CallHandle& handle : handles_) handle.Cancel();
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  std::atomic<bool> stop_{false};
  std::vector<CallHandle> handles_;
  std::vector<std::thread> threads_;
};

void ExpectDeadline(DemoServer& server, const v1::GenerateRequest& request,
                    const std::string& timeout, absl::Duration least) {
  const Http2Answer answer =
      CallHttp2(server.server().address(), WithTimeout(request, timeout), kLimit);
  EXPECT_TRUE(answer.closed);
  EXPECT_EQ(answer.status(), kDeadlineExceeded);
  EXPECT_GE(answer.end - answer.start, least);
}

TEST(DeadlineTest, InDecode) {
  DemoServer server;
  ASSERT_TRUE(server.ok());
  {
    // Others slow the steps down, so that the answer is not complete within the second.
    Background background(server, 24);
    ASSERT_TRUE(WaitFor([&] { return server.engine().stats().num_running >= 24; }));
    ExpectDeadline(server, EndlessRequest(), "1S", absl::Milliseconds(900));
  }
  server.ExpectIdleSoon();
}

TEST(DeadlineTest, InTheQueue) {
  EngineOptions options;
  options.max_num_seqs = 1;
  DemoServer server(options);
  ASSERT_TRUE(server.ok());
  {
    Background background(server, 1);
    ASSERT_TRUE(WaitFor([&] { return server.engine().stats().num_running == 1; }));
    ExpectDeadline(server, EndlessRequest(), "200m", absl::Milliseconds(100));
    EXPECT_TRUE(WaitFor([&] { return server.engine().stats().num_queued <= 1; }));
  }
  server.ExpectIdleSoon();
}

TEST(DeadlineTest, InPrefill) {
  // One prompt token a step: four thousand steps before the first new token.
  EngineOptions options;
  options.max_prefill_chunk_tokens = 1;
  DemoServer server(options);
  ASSERT_TRUE(server.ok());
  v1::GenerateRequest request;
  for (int i = 0; i < 4000; ++i) request.mutable_token_ids()->add_ids(20 + i % 10);
  const Http2Answer answer =
      CallHttp2(server.server().address(), WithTimeout(request, "100m"), kLimit);
  EXPECT_EQ(answer.status(), kDeadlineExceeded);
  server.ExpectIdleSoon();
  EXPECT_EQ(server.engine().stats().num_new_tokens, 0);
}

TEST(DeadlineTest, InThePast) {
  DemoServer server;
  ASSERT_TRUE(server.ok());
  ExpectDeadline(server, EndlessRequest(), "1n", absl::ZeroDuration());
  server.ExpectIdleSoon();
}

TEST(DeadlineTest, TheClientLibrarySeesItToo) {
  DemoServer server;
  ASSERT_TRUE(server.ok());
  Background background(server, 8);
  const Generation got = Generate(server.client(), EndlessRequest(),
                                  {.deadline = absl::Now() + absl::Milliseconds(300)});
  EXPECT_TRUE(absl::IsDeadlineExceeded(got.status)) << got.status;
  EXPECT_EQ(got.num_terminal, 0);
}

}  // namespace
}  // namespace jevons

// A real engine and server with the demo model, in the test's process.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "client/client.h"
#include "engine/engine.h"
#include "gtest/gtest.h"
#include "server/server.h"
#include "tests/support/test_data.h"
#include "tests/support/wait_for.h"

namespace jevons {

class DemoServer {
 public:
  // `options` without the model folder. A failure fails the test, and ok() is false.
  explicit DemoServer(EngineOptions options = {}, ServerOptions server_options = {}) {
    options.model_folder = DemoModelPath();
    options.model_name = "demo";
    server_options.listen = "127.0.0.1:0";
    auto engine = Engine::Create(options, &clock_);
    EXPECT_TRUE(engine.ok()) << engine.status();
    if (!engine.ok()) return;
    engine_ = *std::move(engine);
    auto server = Server::Start(server_options, engine_.get());
    EXPECT_TRUE(server.ok()) << server.status();
    if (!server.ok()) return;
    server_ = *std::move(server);
    client_ = Client::Connect(server_->address());
  }

  bool ok() const { return client_ != nullptr; }
  Engine& engine() { return *engine_; }
  Server& server() { return *server_; }
  Client& client() { return *client_; }

  // Nothing runs or waits, and every block is free.
  bool IsIdle() const {
    const EngineStats stats = engine_->stats();
    return stats.num_running == 0 && stats.num_queued == 0 &&
           stats.num_free_blocks == stats.num_blocks;
  }
  void ExpectIdleSoon() {
    EXPECT_TRUE(WaitFor([this] { return IsIdle(); }))
        << engine_->stats().num_running << " running, " << engine_->stats().num_queued
        << " queued, " << engine_->stats().num_free_blocks << " of " << engine_->stats().num_blocks
        << " blocks free";
    EXPECT_TRUE(engine_->CheckIntegrity().ok()) << engine_->CheckIntegrity();
  }

 private:
  RealClock clock_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<Client> client_;
};

// A whole generation as a client saw it.
struct Generation {
  absl::Status status;
  v1::Started started;
  std::string thinking;
  std::string answer;
  std::vector<int32_t> token_ids;
  std::vector<v1::Logprobs> logprobs;
  std::vector<v1::Logprobs> prompt_logprobs;
  v1::FinishReason finish_reason = v1::FINISH_REASON_UNSPECIFIED;
  v1::Usage usage;
  int num_messages = 0;
  int num_terminal = 0;

  void Add(const v1::GenerateResponse& message) {
    if (num_messages++ == 0) started = message.started();
    thinking += message.thinking();
    answer += message.answer();
    token_ids.insert(token_ids.end(), message.token_ids().begin(), message.token_ids().end());
    logprobs.insert(logprobs.end(), message.logprobs().begin(), message.logprobs().end());
    prompt_logprobs.insert(prompt_logprobs.end(), message.prompt_logprobs().begin(),
                           message.prompt_logprobs().end());
    if (message.finish_reason() == v1::FINISH_REASON_UNSPECIFIED) return;
    ++num_terminal;
    finish_reason = message.finish_reason();
    usage = message.usage();
  }
};

inline Generation Generate(Client& client, const v1::GenerateRequest& request,
                           const CallOptions& options = {}) {
  Generation out;
  out.status = client.Generate(
      request, [&](const v1::GenerateResponse& message) { out.Add(message); }, options);
  return out;
}

inline v1::GenerateRequest ChatRequest(const std::string& question, const std::string& effort) {
  v1::GenerateRequest out;
  v1::ChatMessage& message = *out.mutable_chat()->add_messages();
  message.set_role("user");
  message.set_content(question);
  out.mutable_chat()->set_reasoning_effort(effort);
  out.set_return_token_ids(true);
  return out;
}

// Goes on until it is stopped: for the tests of cancel and deadline.
inline v1::GenerateRequest EndlessRequest() {
  v1::GenerateRequest out;
  out.set_text("1");
  out.set_ignore_eos(true);
  return out;
}

}  // namespace jevons

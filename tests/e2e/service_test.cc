// Health, reflection, the unary methods, lost connections, draining.
#include <csignal>
#include <thread>

#include "gmock/gmock.h"
#include "tests/e2e/demo_server.h"
#include "tests/support/grpc_health.h"
#include "tests/support/http2_client.h"
#include "tests/support/process.h"

namespace jevons {
namespace {

using testing::HasSubstr;

constexpr char kReflection[] = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
constexpr char kGenerate[] = "/jevons.v1.Inference/Generate";
constexpr absl::Duration kLimit = absl::Minutes(2);

TEST(ServiceTest, HealthServes) {
  DemoServer server;
  ASSERT_TRUE(server.ok());
  EXPECT_EQ(GrpcHealthOf(server.server().address(), ""), 1);
  EXPECT_EQ(GrpcHealthOf(server.server().address(), "jevons.v1.Inference"), 1);
}

TEST(ServiceTest, ReflectionListsTheService) {
  DemoServer server;
  ASSERT_TRUE(server.ok());
  // list_services is field 7 of the request.
  const Http2Answer answer =
      CallHttp2(server.server().address(), {.path = kReflection, .message = "\x3a\x01*"});
  EXPECT_EQ(answer.status(), 0);
  EXPECT_THAT(answer.data, HasSubstr("jevons.v1.Inference"));
  // file_containing_symbol is field 4.
  const Http2Answer file = CallHttp2(
      server.server().address(), {.path = kReflection, .message = "\x22\x13jevons.v1.Inference"});
  EXPECT_THAT(file.data, HasSubstr("GenerateRequest"));
}

TEST(ServiceTest, ListModelsDescribesTheModel) {
  DemoServer server;
  ASSERT_TRUE(server.ok());
  const auto models = server.client().ListModels();
  ASSERT_TRUE(models.ok()) << models.status();
  ASSERT_EQ(models->models_size(), 1);
  const v1::Model& model = models->models(0);
  EXPECT_EQ(model.name(), "demo");
  EXPECT_EQ(model.model_type(), "deepseek_v3");
  EXPECT_EQ(model.vocab_size(), 512);
  EXPECT_EQ(model.max_model_len(), 4096);
  EXPECT_TRUE(model.has_chat_template());
  EXPECT_EQ(model.default_temperature(), 0);
  EXPECT_FALSE(model.backend().empty());
}

TEST(ServiceTest, AClientThatDisconnectsFreesItsBlocks) {
  DemoServer server;
  ASSERT_TRUE(server.ok());
  for (const size_t num_bytes : {size_t{0}, size_t{1}, size_t{2000}}) {
    auto client = Http2Client::Connect(server.server().address());
    ASSERT_NE(client, nullptr);
    client->Send({.path = kGenerate, .message = EndlessRequest().SerializeAsString()});
    client->Read(num_bytes, kLimit);
    client.reset();
    server.ExpectIdleSoon();
  }
}

TEST(ServiceTest, AClientThatDoesNotReadHoldsNobodyUp) {
  DemoServer server;
  ASSERT_TRUE(server.ok());
  auto deaf = Http2Client::Connect(server.server().address());
  ASSERT_NE(deaf, nullptr);
  v1::GenerateRequest request = EndlessRequest();
  request.set_logprobs(20);
  request.set_max_tokens(1500);
  deaf->Send({.path = kGenerate, .message = request.SerializeAsString()});
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(Generate(server.client(), ChatRequest("What is 2 + 2?", "low")).status.ok());
  }
  // Its tokens are computed all the same, and its blocks come back.
  server.ExpectIdleSoon();
}

TEST(ServiceTest, DrainFinishesWhatRunsAndRefusesTheRest) {
  DemoServer server;
  ASSERT_TRUE(server.ok());
  const std::string address = server.server().address();
  v1::GenerateRequest request = EndlessRequest();
  request.set_max_tokens(1500);
  Generation running;
  std::thread call([&] { running = Generate(server.client(), request); });
  ASSERT_TRUE(WaitFor([&] { return server.engine().stats().num_running == 1; }));
  std::thread drain([&] { server.server().Drain(absl::Minutes(2)); });
  EXPECT_TRUE(WaitFor(
      [&] { return server.engine().stats().num_running == 0 || GrpcHealthOf(address, "") == 2; }));
  call.join();
  drain.join();
  EXPECT_TRUE(running.status.ok()) << running.status;
  EXPECT_EQ(running.usage.completion_tokens(), 1500);
  EXPECT_EQ(running.num_terminal, 1);
  EXPECT_TRUE(absl::IsUnavailable(Generate(server.client(), request).status));
}

TEST(ServiceTest, DrainWithoutPatienceEndsStreamsWithUnavailable) {
  DemoServer server;
  ASSERT_TRUE(server.ok());
  Generation running;
  std::thread call([&] { running = Generate(server.client(), EndlessRequest()); });
  ASSERT_TRUE(WaitFor([&] { return server.engine().stats().num_running == 1; }));
  server.server().Drain(absl::ZeroDuration());
  call.join();
  EXPECT_TRUE(absl::IsUnavailable(running.status)) << running.status;
  EXPECT_EQ(running.num_terminal, 0);
}

// The real binary as a server.
class BinaryServer {
 public:
  explicit BinaryServer(const std::vector<std::string>& more_flags) {
    std::vector<std::string> argv = {JEVONS_BINARY,   "serve",    "--model",
                                     DemoModelPath(), "--listen", "127.0.0.1:0"};
    argv.insert(argv.end(), more_flags.begin(), more_flags.end());
    process_ = Process::Start(argv);
    ready_ = process_->ReadLine(kLimit);
    const size_t begin = ready_.find("listen=");
    if (begin == std::string::npos) return;
    address_ = ready_.substr(begin + 7, ready_.find(' ', begin) - begin - 7);
    client_ = Client::Connect(address_);
  }

  bool ok() const { return client_ != nullptr; }
  const std::string& ready() const { return ready_; }
  const std::string& address() const { return address_; }
  Client& client() { return *client_; }
  Process& process() { return *process_; }

 private:
  std::unique_ptr<Process> process_;
  std::string ready_;
  std::string address_;
  std::unique_ptr<Client> client_;
};

// A call that has begun, beside the test.
class RunningCall {
 public:
  RunningCall(Client& client, const v1::GenerateRequest& request) {
    thread_ = std::thread([this, &client, request] {
      result_.status = client.Generate(request, [this](const v1::GenerateResponse& message) {
        result_.Add(message);
        if (result_.num_messages >= 2) begun_ = true;
      });
      begun_ = true;
    });
  }
  ~RunningCall() { Join(); }
  bool begun() const { return begun_; }
  const Generation& Join() {
    if (thread_.joinable()) thread_.join();
    return result_;
  }

 private:
  std::atomic<bool> begun_{false};
  Generation result_;
  std::thread thread_;
};

TEST(BinaryTest, SigtermDrainsAndExitsWithZero) {
  BinaryServer server({"--max-model-len", "3000", "--model-name", "mini"});
  ASSERT_TRUE(server.ok()) << server.ready();
  EXPECT_THAT(server.ready(), HasSubstr("model=mini"));
  EXPECT_THAT(server.ready(), HasSubstr("max_model_len=3000"));
  RunningCall call(server.client(), EndlessRequest());
  ASSERT_TRUE(WaitFor([&] { return call.begun(); }));
  server.process().Signal(SIGTERM);
  const Generation& got = call.Join();
  EXPECT_TRUE(got.status.ok()) << got.status;
  EXPECT_EQ(got.finish_reason, v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(server.process().Wait(kLimit), 0);
}

TEST(BinaryTest, ASecondSignalEndsAtOnce) {
  BinaryServer server({"--threads", "1"});
  ASSERT_TRUE(server.ok()) << server.ready();
  std::vector<std::unique_ptr<RunningCall>> calls;
  for (int i = 0; i < 16; ++i) {
    calls.push_back(std::make_unique<RunningCall>(server.client(), EndlessRequest()));
  }
  for (const auto& call : calls) ASSERT_TRUE(WaitFor([&] { return call->begun(); }));
  server.process().Signal(SIGTERM);
  ASSERT_TRUE(WaitFor([&] { return GrpcHealthOf(server.address(), "") != 1; }));
  server.process().Signal(SIGTERM);
  for (const auto& call : calls) {
    const Generation& got = call->Join();
    EXPECT_TRUE(absl::IsUnavailable(got.status)) << got.status;
    EXPECT_EQ(got.num_terminal, 0);
  }
  EXPECT_NE(server.process().Wait(kLimit), -1);
}

TEST(BinaryTest, DrainSecondsBoundsTheWait) {
  BinaryServer server({"--drain-seconds", "0"});
  ASSERT_TRUE(server.ok()) << server.ready();
  RunningCall call(server.client(), EndlessRequest());
  ASSERT_TRUE(WaitFor([&] { return call.begun(); }));
  server.process().Signal(SIGINT);
  EXPECT_TRUE(absl::IsUnavailable(call.Join().status)) << call.Join().status;
  EXPECT_EQ(server.process().Wait(kLimit), 0);
}

TEST(BinaryTest, APortInUseIsAnErrorThatSaysSo) {
  BinaryServer server({});
  ASSERT_TRUE(server.ok()) << server.ready();
  const ProcessResult second = RunProcess(
      {JEVONS_BINARY, "serve", "--model", DemoModelPath(), "--listen", server.address()});
  EXPECT_EQ(second.exit_code, 1);
  EXPECT_THAT(second.err, HasSubstr("error: listen: cannot listen on " + server.address() +
                                    ": Address already in use"));
}

TEST(BinaryTest, ChatAsksARunningServer) {
  BinaryServer server({});
  ASSERT_TRUE(server.ok()) << server.ready();
  const ProcessResult once = RunProcess({JEVONS_BINARY, "chat", "--connect", server.address(),
                                         "--effort", "high", "What is 347 * 86?"});
  EXPECT_EQ(once.exit_code, 0) << once.err;
  EXPECT_EQ(once.out, "347 * 86 = 29842\n");
  const ProcessResult loop = RunProcess(
      {JEVONS_BINARY, "chat", "--connect", server.address()},
      {.input = "What is 347 * 86?\n/effort none\n/nonsense\n/new\nWhat is 2 + 2?\n/exit\n"});
  EXPECT_EQ(loop.exit_code, 0) << loop.err;
  EXPECT_THAT(loop.out, HasSubstr("347 * 86 = 29842\n"));
  EXPECT_THAT(loop.out, HasSubstr("effort is none now\n"));
  EXPECT_THAT(loop.out, HasSubstr("/nonsense is no command."));
  EXPECT_THAT(loop.out, HasSubstr("2 + 2 = "));
}

}  // namespace
}  // namespace jevons

// Probes of a server whose group of ranks works, or stands still.
#include "engine/loaded_model.h"
#include "gmock/gmock.h"
#include "parallel/faulty_communicator.h"
#include "server/server.h"
#include "tests/chaos/long_calls.h"
#include "tests/support/grpc_health.h"

namespace jevons {
namespace {

using testing::HasSubstr;

constexpr absl::Duration kStall = absl::Seconds(2);
constexpr int kNumRanks = 3;
constexpr int kServing = 1;
constexpr int kNotServing = 2;

class HealthTest : public testing::Test {
 protected:
  // The calls are those by which ranks agree on a step, of the last rank.
  void Start(const FaultPlan& plan) {
    EngineOptions options;
    options.model_folder = model_.path();
    options.backend = BackendKind::kCpu;
    options.num_threads = 1;
    options.max_num_seqs = 8;
    options.kv_cache_tokens = 8192;
    options.num_ranks = kNumRanks;
    auto group = LoadModelGroup(options);
    ASSERT_TRUE(group.ok()) << group.status();
    std::unique_ptr<Communicator>& last = group->models[kNumRanks - 1].communicator;
    last = CreateFaultyCommunicator(std::move(last), plan);
    last_ = last.get();
    engine_ = StartEngine(*std::move(group), &clock_);
    auto server = Server::Start({.listen = "127.0.0.1:0", .stall_time = kStall}, engine_.get());
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    client_ = Client::Connect(server_->address());
  }

  int HealthOf(const std::string& name) const { return GrpcHealthOf(server_->address(), name); }

  const TinyModelFolder model_;
  const RealClock clock_;
  Communicator* last_ = nullptr;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<Client> client_;
};

TEST_F(HealthTest, ARankThatStandsStillShowsByItsNumberAndProbesAnswerAllTheSame) {
  ASSERT_NO_FATAL_FAILURE(Start({.faults = {{.kind = FaultKind::kDrop, .call_number = 100}}}));
  EXPECT_EQ(HealthOf("ready"), kServing);
  LongCalls calls(server_->address(), kNumRanks);
  ASSERT_TRUE(WaitFor([&] { return HealthOf("progress") == kNotServing; }));
  EXPECT_EQ(HealthOf("ready"), kNotServing);
  EXPECT_EQ(HealthOf("jevons.v1.Inference"), kNotServing);
  EXPECT_EQ(HealthOf("live"), kServing);
  const absl::Time start = absl::Now();
  const auto status = client_->GetStatus();
  const absl::Duration took = absl::Now() - start;
  ASSERT_TRUE(status.ok()) << status.status();
  RecordProperty("status_us", absl::StrCat(absl::ToInt64Microseconds(took)));
  EXPECT_LT(took, kStall);
  EXPECT_FALSE(status->ready());
  EXPECT_FALSE(status->progresses());
  EXPECT_THAT(status->reason(), HasSubstr("rank 2 has work and has made no step for "));
  ASSERT_EQ(status->ranks_size(), kNumRanks);
  for (const v1::RankStatus& rank : status->ranks()) {
    EXPECT_FALSE(rank.progresses());
    EXPECT_GE(rank.step_age_ms(), absl::ToInt64Milliseconds(kStall));
    EXPECT_EQ(rank.num_running(), 1);
  }
  last_->Abort("the test is over");
  EXPECT_TRUE(calls.AllEnded(kLongest));
}

TEST_F(HealthTest, RanksThatWorkForLongStayReady) {
  ASSERT_NO_FATAL_FAILURE(Start({}));
  LongCalls calls(server_->address(), kNumRanks);
  ASSERT_TRUE(calls.AllStarted());
  const absl::Time end = absl::Now() + kStall * 1.5;
  while (absl::Now() < end) {
    ASSERT_EQ(HealthOf("ready"), kServing);
    ASSERT_EQ(HealthOf("progress"), kServing);
    const auto status = client_->GetStatus();
    ASSERT_TRUE(status.ok() && status->ready() && status->progresses()) << status->reason();
    absl::SleepFor(absl::Milliseconds(50));
  }
  calls.Join();
}

TEST_F(HealthTest, IdleRanksStayReady) {
  ASSERT_NO_FATAL_FAILURE(Start({}));
  absl::SleepFor(kStall * 1.2);
  const auto status = client_->GetStatus();
  ASSERT_TRUE(status.ok()) << status.status();
  EXPECT_TRUE(status->ready());
  for (const v1::RankStatus& rank : status->ranks()) EXPECT_EQ(rank.step_age_ms(), 0);
}

}  // namespace
}  // namespace jevons

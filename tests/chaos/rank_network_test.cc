// Ranks on networks of their own: delay, loss, and ways that are cut.
#include <csignal>
#include <memory>

#include "gmock/gmock.h"
#include "tests/chaos/canaries.h"
#include "tests/chaos/chaos_group.h"
#include "tests/chaos/long_calls.h"
#include "tests/e2e/rank_group.h"
#include "tests/support/network_lab.h"

namespace jevons {
namespace {

constexpr int kNumRanks = 4;
constexpr absl::Duration kTimeout = absl::Milliseconds(1500);
// From a cut to the end of the streams, beside the timeout; a machine that is busy is given more.
constexpr absl::Duration kToNotice = absl::Seconds(1);
constexpr absl::Duration kMoreTime = absl::Seconds(10);
// Less than an exchange waits for what was sent, which is 3 s, and the timeout.
constexpr absl::Duration kShortCut = absl::Seconds(4);
// Until two ranks that do not reach each other are parted: these 3 s, an attempt to connect, which takes
// 4 s, the timeout, and a group of the rest.
constexpr absl::Duration kToPart = absl::Seconds(15);

// The lab is made before any test has started a thread.
class RankNetworkTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    lab_ = new absl::StatusOr<std::unique_ptr<NetworkLab>>(NetworkLab::Create(kNumRanks, 7));
  }
  static void TearDownTestSuite() { delete lab_; }

  void SetUp() override {
    if (!lab_->ok()) GTEST_SKIP() << "needs network namespaces: " << lab_->status();
    for (int host = 0; host < kNumRanks; ++host) {
      lab().SetHost(host, {});
      ASSERT_TRUE(lab().SetDevice(host, true).ok());
    }
  }

  static NetworkLab& lab() { return ***lab_; }
  static std::vector<int> Ranks() { return {0, 1, 2, 3}; }

  Arguments Serve(int num_ranks, const Arguments& more) const {
    return Join(
        {JEVONS_BINARY, "serve", "--model", model_.path(), "--backend", "cpu", "--threads", "1",
         "--max-num-seqs", "8", "--kv-cache-tokens", "8192", "--ranks", absl::StrCat(num_ranks)},
        more);
  }
  std::unique_ptr<ChaosGroup> StartGroup(absl::Duration timeout) const {
    const std::string ms = absl::StrCat(absl::ToInt64Milliseconds(timeout));
    auto group = ChaosGroup::Start(
        {.serve = Serve(kNumRanks, {"--transport", "processes", "--rank-timeout-ms", ms}),
         .num_ranks = kNumRanks,
         .lab = &lab()});
    EXPECT_TRUE(group.ok()) << group.status();
    return group.ok() ? *std::move(group) : nullptr;
  }

  // What came before they were cancelled is what one rank alone gives.
  void ExpectBeginnings(const LongCalls& calls) const {
    std::vector<v1::GenerateRequest> requests;
    size_t most = 0;
    for (int i = 0; i < calls.count(); ++i) most = std::max(most, calls.got(i).token_ids.size());
    for (int i = 0; i < calls.count(); ++i) {
      requests.push_back(TinyRequest(i, static_cast<int>(most)));
    }
    const auto want = AnswerAlone(Serve(1, {"--listen", "127.0.0.1:0"}), requests);
    ASSERT_TRUE(want.ok()) << want.status();
    for (int i = 0; i < calls.count(); ++i) {
      EXPECT_EQ(calls.got(i).status.code(), absl::StatusCode::kCancelled) << calls.got(i).status;
      EXPECT_EQ(DifferenceOfCut(calls.got(i), (*want)[i].want), "") << "call " << i;
    }
  }

  const TinyModelFolder model_;

 private:
  static absl::StatusOr<std::unique_ptr<NetworkLab>>* lab_;
};

absl::StatusOr<std::unique_ptr<NetworkLab>>* RankNetworkTest::lab_ = nullptr;

std::vector<v1::GenerateRequest> SomeRequests() {
  std::vector<v1::GenerateRequest> out;
  for (int i = 0; i < 5; ++i) out.push_back(TinyRequest(i, 6 + i));
  return out;
}

TEST_F(RankNetworkTest, DelayAndLossCostTimeAndChangeNoByte) {
  const auto want = AnswerAlone(Serve(1, {"--listen", "127.0.0.1:0"}), SomeRequests());
  ASSERT_TRUE(want.ok()) << want.status();
  const auto group = StartGroup(absl::Seconds(10));
  ASSERT_NE(group, nullptr);
  const auto client = Client::Connect(group->address());
  const auto run = [&](const std::string& name) {
    const absl::Time start = absl::Now();
    const std::vector<Generation> got = GenerateTogether(*client, SomeRequests());
    for (size_t i = 0; i < got.size(); ++i) ExpectSameGeneration(got[i], (*want)[i].want);
    const absl::Duration took = absl::Now() - start;
    RecordProperty(name + "_ms", absl::StrCat(absl::ToInt64Milliseconds(took)));
    return took;
  };
  const absl::Duration quick = run("as_it_is");
  const int64_t lost = lab().num_lost();
  lab().SetBetween(Ranks(), {.delay = absl::Milliseconds(5), .loss = 0.01});
  EXPECT_GT(run("delay_5_ms_loss_1_percent"), quick);
  EXPECT_GT(lab().num_lost(), lost);
  lab().SetBetween(Ranks(), {});
  EXPECT_EQ(group->End(SIGTERM, kLongest), "");
}

TEST_F(RankNetworkTest, ACutShorterThanTheTimeoutLosesNothing) {
  const auto want = AnswerAlone(Serve(1, {"--listen", "127.0.0.1:0"}), {TinyRequest(1, 120)});
  ASSERT_TRUE(want.ok()) << want.status();
  const auto group = StartGroup(kTimeout);
  ASSERT_NE(group, nullptr);
  const auto client = Client::Connect(group->address());
  Generation got;
  std::thread caller([&] { got = Generate(*client, TinyRequest(1, 120)); });
  for (int rank = 1; rank < kNumRanks; ++rank) {
    lab().SetHost(rank, {.loss = 1});
    absl::SleepFor(kTimeout / 3);
    lab().SetHost(rank, {});
  }
  caller.join();
  ExpectSameGeneration(got, (*want)[0].want);
  EXPECT_EQ(group->CheckProcesses(), "");
  EXPECT_EQ(group->End(SIGTERM, kLongest), "");
}

// The ways of rank 3 to all others go, as a cable is pulled, or its own device goes down.
TEST_F(RankNetworkTest, TheOthersGoOnWithoutARankThatIsCutOff) {
  for (const bool device : {false, true}) {
    SCOPED_TRACE(device ? "device" : "ways");
    const auto group = StartGroup(kTimeout);
    ASSERT_NE(group, nullptr);
    LongCalls calls(group->address(), 2 * kNumRanks);
    ASSERT_TRUE(calls.AllStarted());
    if (device) {
      ASSERT_TRUE(lab().SetDevice(3, false).ok());
    } else {
      lab().SetHost(3, {.loss = 1});
    }
    group->ExpectLoss(3);
    const absl::Duration paused = calls.UntilAllGoOn(kLongest);
    RecordProperty(device ? "device_down_ms" : "ways_cut_ms",
                   absl::StrCat(absl::ToInt64Milliseconds(paused)));
    EXPECT_LT(paused, kTimeout + kToNotice + kMoreTime);
    // It finds that out by itself.
    EXPECT_TRUE(WaitFor([&] { return !group->Runs(3); }));
    EXPECT_EQ(group->CheckProcesses(), "");
    calls.Join();
    ExpectBeginnings(calls);
    EXPECT_EQ(group->End(SIGTERM, kLongest), "");
    ASSERT_TRUE(lab().SetDevice(3, true).ok());
    lab().SetHost(3, {});
  }
}

// Heartbeats of all arrive, but two ranks do not reach each other. The way is back when the others would
// form a group for the first time.
TEST_F(RankNetworkTest, TwoRanksThatDoNotReachEachOtherForAWhileLoseNothing) {
  const auto group = StartGroup(kTimeout);
  ASSERT_NE(group, nullptr);
  LongCalls calls(group->address(), 2 * kNumRanks);
  ASSERT_TRUE(calls.AllStarted());
  lab().SetBetween({1, 2}, {.loss = 1});
  absl::SleepFor(kShortCut);
  lab().SetBetween({1, 2}, {});
  const absl::Duration paused = calls.UntilAllGoOn(kLongest);
  RecordProperty("paused_after_the_cut_ms", absl::StrCat(absl::ToInt64Milliseconds(paused)));
  EXPECT_LT(paused, kMoreTime);
  EXPECT_EQ(group->CheckProcesses(), "");
  calls.Join();
  ExpectBeginnings(calls);
  EXPECT_EQ(group->End(SIGTERM, kLongest), "");
}

TEST_F(RankNetworkTest, OfTwoRanksThatNeverReachEachOtherOneIsLeftBehind) {
  const auto group = StartGroup(kTimeout);
  ASSERT_NE(group, nullptr);
  LongCalls calls(group->address(), 2 * kNumRanks);
  ASSERT_TRUE(calls.AllStarted());
  lab().SetBetween({1, 2}, {.loss = 1});
  group->ExpectLoss(2);
  const auto client = Client::Connect(group->address());
  EXPECT_TRUE(WaitFor([&] {
    const auto status = client->GetStatus();
    return status.ok() && status->ranks(1).waits_for() == 2;
  }));
  const absl::Duration paused = calls.UntilAllGoOn(kLongest);
  RecordProperty("parted_after_ms", absl::StrCat(absl::ToInt64Milliseconds(paused)));
  EXPECT_LT(paused, kToPart + kMoreTime);
  EXPECT_TRUE(WaitFor([&] { return !group->Runs(2); }));
  // It would break the group again.
  const std::string leader = absl::StrCat(NetworkLab::Address(0), ":50052");
  const auto again = lab().Start(
      2, Serve(kNumRanks, {"--transport", "processes", "--rank", "2", "--leader", leader}));
  EXPECT_EQ(again->Wait(kSoon), 1);
  const auto status = client->GetStatus();
  ASSERT_TRUE(status.ok()) << status.status();
  EXPECT_NE(status->ranks(2).lost(), "");
  EXPECT_EQ(group->CheckProcesses(), "");
  calls.Join();
  ExpectBeginnings(calls);
  EXPECT_EQ(group->End(SIGTERM, kLongest), "");
  lab().SetBetween({1, 2}, {});
}

// What one rank sends to another is lost, and nothing else.
TEST_F(RankNetworkTest, AWayThatIsCutInOneDirectionIsFoundToo) {
  const auto group = StartGroup(kTimeout);
  ASSERT_NE(group, nullptr);
  LongCalls calls(group->address(), 2 * kNumRanks);
  ASSERT_TRUE(calls.AllStarted());
  lab().SetPath(3, 1, {.loss = 1});
  group->ExpectLoss(3);
  EXPECT_LT(calls.UntilAllGoOn(kLongest), kToPart + kMoreTime);
  EXPECT_EQ(group->CheckProcesses(), "");
  calls.Join();
  ExpectBeginnings(calls);
  EXPECT_EQ(group->End(SIGTERM, kLongest), "");
  lab().SetPath(3, 1, {});
}

}  // namespace
}  // namespace jevons

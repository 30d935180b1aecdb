// Checkpoints and disks that go wrong while a group serves.
#include <csignal>
#include <filesystem>

#include "gmock/gmock.h"
#include "tests/chaos/chaos_group.h"
#include "tests/chaos/long_calls.h"
#include "tests/support/namespaces.h"

namespace jevons {
namespace {

using testing::HasSubstr;

constexpr int kNumRanks = 3;
constexpr int64_t kDiskBytes = 4 << 20;

// The disk is made before any test has started a thread.
class RankDiskTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    disk_ = new absl::StatusOr<std::unique_ptr<SmallDisk>>(SmallDisk::Create(kDiskBytes));
  }
  static void TearDownTestSuite() { delete disk_; }

  void SetUp() override {
    if (!disk_->ok()) GTEST_SKIP() << "needs mount namespaces: " << disk_->status();
    for (const auto& entry : std::filesystem::directory_iterator(disk())) {
      std::filesystem::remove_all(entry.path());
    }
    WriteModel();
  }

  static void WriteModel() {
    WriteRandomModel(disk(), TinyConfigJson("deepseek_v3", {{"max_position_embeddings", 60000}}),
                     5);
  }

  static const std::string& disk() { return (**disk_)->path(); }
  static void FillDisk() { (**disk_)->Fill(); }
  std::string file() const { return disk() + "/model.safetensors"; }

  std::unique_ptr<ChaosGroup> StartGroup(const std::string& log) const {
    const Arguments serve = {
        JEVONS_BINARY,       "serve",     "--model",           disk(),
        "--backend",         "cpu",       "--threads",         "1",
        "--max-num-seqs",    "8",         "--ranks",           absl::StrCat(kNumRanks),
        "--transport",       "processes", "--kv-cache-tokens", "8192",
        "--restart-seconds", "0"};
    auto group = ChaosGroup::Start({.serve = serve, .num_ranks = kNumRanks, .log = log});
    EXPECT_TRUE(group.ok()) << group.status();
    return group.ok() ? *std::move(group) : nullptr;
  }

 private:
  static absl::StatusOr<std::unique_ptr<SmallDisk>>* disk_;
};

absl::StatusOr<std::unique_ptr<SmallDisk>>* RankDiskTest::disk_ = nullptr;

// Logs cannot be written any more; experts that nobody holds after the loss are read.
TEST_F(RankDiskTest, ADiskWithoutAByteLeftStopsNothing) {
  const auto group = StartGroup(disk() + "/log");
  ASSERT_NE(group, nullptr);
  const auto client = Client::Connect(group->address());
  const Generation want = Generate(*client, TinyRequest(1, 40));
  ASSERT_TRUE(want.status.ok()) << want.status;
  LongCalls calls(group->address(), 2 * kNumRanks);
  ASSERT_TRUE(calls.AllStarted());
  FillDisk();
  group->ExpectLoss(2);
  group->Signal(2, SIGKILL);
  EXPECT_LT(calls.UntilAllGoOn(kLongest), kSoon);
  ExpectSameGeneration(Generate(*client, TinyRequest(1, 40)), want);
  EXPECT_EQ(group->CheckProcesses(), "");
  calls.Join();
  EXPECT_EQ(group->End(SIGTERM, kLongest), "");
}

// What only the lost rank held can not be read again: a reason with the file, and no hang.
TEST_F(RankDiskTest, ACheckpointThatIsGoneOrCutShortUnderWayIsAReason) {
  for (const bool gone : {true, false}) {
    SCOPED_TRACE(gone ? "gone" : "cut short");
    WriteModel();
    const auto group = StartGroup("");
    ASSERT_NE(group, nullptr);
    LongCalls calls(group->address(), 2 * kNumRanks);
    ASSERT_TRUE(calls.AllStarted());
    if (gone) {
      std::filesystem::remove(file());
    } else {
      std::filesystem::resize_file(file(), std::filesystem::file_size(file()) / 2);
    }
    group->ExpectLoss(2);
    group->Signal(2, SIGKILL);
    EXPECT_TRUE(calls.AllEnded(kSoon));
    for (const absl::Status& status : calls.Join()) {
      EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr(gone ? disk() : file()));
    }
    EXPECT_TRUE(WaitFor([&] { return !group->Runs(0) && !group->Runs(1); }));
  }
}

}  // namespace
}  // namespace jevons

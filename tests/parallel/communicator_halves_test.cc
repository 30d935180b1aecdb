// An exchange in halves: what may happen between them.
#include <atomic>
#include <barrier>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "parallel/communicator.h"
#include "tests/parallel/communicator_suite.h"
#include "tests/support/status_matchers.h"
#include "tests/support/wait_for.h"

namespace jevons {
namespace {

constexpr absl::Duration kShort = absl::Milliseconds(300);
constexpr absl::Duration kLong = absl::Seconds(60);

// What each of two ranks sends to the other, and expects of it.
class OneToOther {
 public:
  OneToOther(TestGroup& group, int32_t rank, int64_t send_bytes, int64_t recv_bytes)
      : send_(group, rank, std::vector<uint8_t>(send_bytes, static_cast<uint8_t>(rank))),
        recv_(group, rank, recv_bytes) {
    send_bytes_[1 - rank] = send_bytes;
    recv_bytes_[1 - rank] = recv_bytes;
  }

  AllToAllArgs args() {
    return {.send = send_.data(),
            .send_offsets = offsets_,
            .send_bytes = send_bytes_,
            .recv = recv_.data(),
            .recv_offsets = offsets_,
            .recv_bytes = recv_bytes_};
  }
  std::vector<uint8_t> Received() const { return recv_.Read(); }

 private:
  RankBytes send_, recv_;
  std::vector<int64_t> offsets_ = {0, 0}, send_bytes_ = {0, 0}, recv_bytes_ = {0, 0};
};

absl::Status InHalves(TestGroup& group, Communicator& member, int64_t send_bytes,
                      int64_t recv_bytes) {
  OneToOther data(group, member.info().rank, send_bytes, recv_bytes);
  return Exchange(member, Form::kHalves, data.args());
}

class CommunicatorHalvesTest : public testing::TestWithParam<GroupKind> {};

TEST_P(CommunicatorHalvesTest, StartWaitsForNoOtherRank) {
  if (GetParam().start_waits) GTEST_SKIP() << "calls are compared when they start";
  for (const int64_t bytes : {0, 100, 300'000}) {
    std::atomic<bool> started{false};
    const auto results = RunRanks(
        GetParam(), 2, {.timeout = kLong},
        [&](int32_t rank, TestGroup& group, Communicator& member) -> absl::Status {
          OneToOther data(group, rank, bytes, bytes);
          if (rank == 1) WaitFor([&] { return started.load(); });
          RETURN_IF_ERROR(member.StartAllToAll(data.args()));
          started = true;
          RETURN_IF_ERROR(Finish(member, member.FinishAllToAll()));
          EXPECT_EQ(data.Received(), std::vector<uint8_t>(bytes, static_cast<uint8_t>(1 - rank)));
          return member.Barrier(kLong);
        });
    for (const absl::Status& result : results) EXPECT_TRUE(result.ok()) << result;
  }
}

TEST_P(CommunicatorHalvesTest, SizesThatDoNotFitNameBoth) {
  if (!GetParam().compares_calls) GTEST_SKIP() << "calls are not compared";
  for (const int64_t bytes : {0, 16, 100'000}) {
    const auto results = RunRanks(GetParam(), 2, {.timeout = kLong},
                                  [&](int32_t rank, TestGroup& group, Communicator& member) {
                                    return InHalves(group, member, rank == 0 ? bytes : 64, 64);
                                  });
    for (const absl::Status& result : results) {
      ExpectError(
          result, absl::StatusCode::kInvalidArgument,
          {"AllToAll", absl::StrCat("rank 0 sends ", bytes, " bytes to rank 1, which expects 64")});
    }
  }
}

TEST_P(CommunicatorHalvesTest, ARankThatStaysAwayIsADeadlineAndTheErrorStays) {
  std::atomic<bool> done{false};
  const auto results =
      RunRanks(GetParam(), 2, {.timeout = kShort},
               [&](int32_t rank, TestGroup& group, Communicator& member) -> absl::Status {
                 if (rank == 1) {
                   WaitFor([&] { return done.load(); });
                   return absl::OkStatus();
                 }
                 const absl::Status first = InHalves(group, member, 50'000, 50'000);
                 EXPECT_EQ(InHalves(group, member, 50'000, 50'000), first);
                 EXPECT_EQ(member.Barrier(kLong), first);
                 done = true;
                 return first;
               });
  ExpectError(results[0], absl::StatusCode::kDeadlineExceeded, {"AllToAll", "300ms"});
  if (GetParam().names_missing_rank) {
    ExpectError(results[0], results[0].code(), {"rank 1 did not take part"});
  }
}

// The ranks' buffers go right after Finish.
TEST_P(CommunicatorHalvesTest, AbortBetweenStartAndFinishEndsTheExchangeHereAndElsewhere) {
  if (GetParam().start_waits) GTEST_SKIP() << "one rank starts alone";
  for (const int64_t bytes : {0, 100, 200'000}) {
    std::atomic<bool> done{false};
    const auto results =
        RunRanks(GetParam(), 2, {.timeout = kLong},
                 [&](int32_t rank, TestGroup& group, Communicator& member) -> absl::Status {
                   OneToOther data(group, rank, bytes, bytes);
                   if (rank == 1) {
                     WaitFor([&] { return done.load(); });
                     // Without bytes nothing may be waited for.
                     RETURN_IF_ERROR(InHalves(group, member, bytes, bytes));
                     return member.Barrier(kLong);
                   }
                   RETURN_IF_ERROR(member.StartAllToAll(data.args()));
                   member.Abort("the operator pulled the plug");
                   const absl::Status status = Finish(member, member.FinishAllToAll());
                   EXPECT_EQ(member.Barrier(kLong), status);
                   done = true;
                   return status;
                 });
    ExpectError(results[0], absl::StatusCode::kAborted, {"the operator pulled the plug"});
    ExpectError(results[1], absl::StatusCode::kAborted, {});
  }
}

TEST_P(CommunicatorHalvesTest, ARankThatGoesBetweenStartAndFinishIsSeenByTheNextCallAtTheLatest) {
  for (const int64_t bytes : {100, 200'000}) {
    const auto group = GetParam().make(2, {.timeout = kLong});
    std::barrier<> joined(2);  // else one may go while the other still comes
    std::thread goes([&] {
      std::unique_ptr<Communicator> member = *group->Join(1);
      joined.arrive_and_wait();
      OneToOther data(*group, 1, bytes, bytes);
      EXPECT_TRUE(member->StartAllToAll(data.args()).ok());
      member = nullptr;
    });
    std::thread stays([&] {
      const std::unique_ptr<Communicator> member = *group->Join(0);
      joined.arrive_and_wait();
      const absl::Status status = InHalves(*group, *member, bytes, bytes);
      EXPECT_TRUE(status.ok() || absl::IsAborted(status)) << status;
      ExpectError(member->Barrier(kLong), absl::StatusCode::kAborted, {});
    });
    goes.join();
    stays.join();
  }
}

TEST_P(CommunicatorHalvesTest, NoOtherCallFitsBetweenStartAndFinish) {
  const auto results =
      RunRanks(GetParam(), 2, {.timeout = kLong},
               [](int32_t rank, TestGroup& group, Communicator& member) -> absl::Status {
                 OneToOther data(group, rank, 100'000, 100'000);
                 RETURN_IF_ERROR(member.StartAllToAll(data.args()));
                 if (rank == 1) return Finish(member, member.FinishAllToAll());
                 const absl::Status status = member.Barrier(kLong);
                 EXPECT_EQ(Finish(member, member.FinishAllToAll()), status);
                 return status;
               });
  ExpectError(results[0], absl::StatusCode::kInvalidArgument,
              {"Barrier between StartAllToAll and FinishAllToAll"});
  ExpectError(RunRanks(GetParam(), 1, {},
                       [](int32_t, TestGroup&, Communicator& member) {
                         return member.FinishAllToAll();
                       })[0],
              absl::StatusCode::kInvalidArgument, {"FinishAllToAll without StartAllToAll"});
}

INSTANTIATE_TEST_SUITE_P(Over, CommunicatorHalvesTest, testing::ValuesIn(GroupKinds()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace jevons

// What happens when a rank does something else, comes late, or does not come.
#include <time.h>

#include <array>
#include <atomic>
#include <filesystem>
#include <vector>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "parallel/communicator.h"
#include "tests/parallel/communicator_suite.h"
#include "tests/support/proc_self.h"
#include "tests/support/status_matchers.h"
#include "tests/support/wait_for.h"

namespace jevons {
namespace {

constexpr absl::Duration kShort = absl::Milliseconds(300);
constexpr absl::Duration kLong = absl::Seconds(60);

class CommunicatorFailureTest : public testing::TestWithParam<GroupKind> {
 protected:
  // Two ranks that do not fit together: the one error of both, or ABORTED where it is not seen.
  void ExpectMismatch(const RankFn& fn, std::initializer_list<std::string> parts) {
    if (!GetParam().compares_calls) GTEST_SKIP() << "calls are not compared";
    const auto results = RunRanks(GetParam(), 2, {.timeout = kLong}, fn);
    for (const absl::Status& result : results) {
      ExpectError(result, absl::StatusCode::kInvalidArgument, parts);
    }
  }
};

absl::Status SendOneTo(Communicator& member, TestGroup& group, int64_t send_bytes,
                       int64_t recv_bytes) {
  const int32_t rank = member.info().rank;
  RankBytes send(group, rank, 2 * send_bytes);
  RankBytes recv(group, rank, 2 * recv_bytes);
  const std::array<int64_t, 2> send_offsets = {0, send_bytes};
  const std::array<int64_t, 2> recv_offsets = {0, recv_bytes};
  std::array<int64_t, 2> sends = {send_bytes, send_bytes};
  std::array<int64_t, 2> recvs = {recv_bytes, recv_bytes};
  sends[rank] = recvs[rank] = 0;
  return Finish(member, member.AllToAll({.send = send.data(),
                                         .send_offsets = send_offsets,
                                         .send_bytes = sends,
                                         .recv = recv.data(),
                                         .recv_offsets = recv_offsets,
                                         .recv_bytes = recvs}));
}

TEST_P(CommunicatorFailureTest, DifferentCallsNameBoth) {
  ExpectMismatch(
      [](int32_t rank, TestGroup& group, Communicator& member) {
        return rank == 0 ? SendOneTo(member, group, 8, 8) : member.Barrier(kLong);
      },
      {"call 1", "AllToAll", "Barrier", "rank 0", "rank 1"});
}

TEST_P(CommunicatorFailureTest, SizesThatDoNotFitNameBoth) {
  for (const int64_t bytes : {16, 100'000}) {
    ExpectMismatch(
        [&](int32_t rank, TestGroup& group, Communicator& member) {
          return SendOneTo(member, group, rank == 0 ? bytes : 64, 64);
        },
        {"AllToAll", absl::StrCat("rank 0 sends ", bytes, " bytes to rank 1, which expects 64")});
  }
  ExpectMismatch(
      [](int32_t rank, TestGroup& group, Communicator& member) {
        RankBytes data(group, rank, 100);
        return Finish(member, member.Broadcast(data.data(), rank == 0 ? 10 : 20, 0));
      },
      {"Broadcast", "10 bytes", "20 bytes"});
  ExpectMismatch(
      [](int32_t rank, TestGroup&, Communicator& member) {
        std::vector<int64_t> values(rank + 1);
        return member.AllReduce(std::span(values), ReduceOp::kSum);
      },
      {"AllReduce", "8 bytes", "16 bytes"});
}

TEST_P(CommunicatorFailureTest, RootsAndOpsThatDifferNameBoth) {
  ExpectMismatch(
      [](int32_t rank, TestGroup& group, Communicator& member) {
        RankBytes data(group, rank, 10);
        return Finish(member, member.Broadcast(data.data(), 10, rank));
      },
      {"Broadcast", "root is 0 at rank 0 and 1 at rank 1"});
  ExpectMismatch(
      [](int32_t rank, TestGroup&, Communicator& member) {
        int64_t value = 1;
        return member.AllReduce(std::span(&value, 1), rank == 0 ? ReduceOp::kSum : ReduceOp::kMax);
      },
      {"AllReduce", "sum", "max"});
}

TEST_P(CommunicatorFailureTest, ArgumentsOutOfRangeBreakTheGroup) {
  const auto results = RunRanks(GetParam(), 2, {.timeout = kLong},
                                [](int32_t rank, TestGroup& group, Communicator& member) {
                                  RankBytes data(group, rank, 16);
                                  if (rank == 0) return member.Broadcast(data.data(), -5, 0);
                                  return Finish(member, member.Broadcast(data.data(), 16, 0));
                                });
  ExpectError(results[0], absl::StatusCode::kInvalidArgument, {"Broadcast", "-5"});
  EXPECT_FALSE(results[1].ok());
  ExpectError(RunRanks(GetParam(), 1, {},
                       [](int32_t rank, TestGroup& group, Communicator& member) {
                         RankBytes data(group, rank, 16);
                         return member.Broadcast(data.data(), 16, 7);
                       })[0],
              absl::StatusCode::kInvalidArgument, {"root", "7"});
  ExpectError(RunRanks(GetParam(), 1, {},
                       [](int32_t rank, TestGroup& group, Communicator& member) {
                         const int64_t zero = 0;
                         return member.AllToAll({.send_offsets = std::span(&zero, 1),
                                                 .send_bytes = std::span(&zero, 1)});
                       })[0],
              absl::StatusCode::kInvalidArgument, {"AllToAll", "recv", "1 ranks"});
}

// Rank 2 stays away, with its member alive, until the others are done.
void ExpectMissingRank(const GroupKind& kind, const std::string& call, const RankFn& fn) {
  std::atomic<int> num_done{0};
  const absl::Time start = absl::Now();
  const auto results = RunRanks(
      kind, 3, {.timeout = kShort}, [&](int32_t rank, TestGroup& group, Communicator& member) {
        if (rank == 2) {
          WaitFor([&] { return num_done == 2; });
          return absl::OkStatus();
        }
        const absl::Status first = Finish(member, fn(rank, group, member));
        EXPECT_FALSE(first.ok());
        EXPECT_EQ(Finish(member, fn(rank, group, member)), first);
        EXPECT_EQ(member.Barrier(kLong), first);
        ++num_done;
        return first;
      });
  EXPECT_GE(absl::Now() - start, kShort);
  EXPECT_LT(absl::Now() - start, kShort + absl::Seconds(20));
  int num_deadline = 0;
  for (int32_t rank = 0; rank < 2; ++rank) {
    // The one whose time is up first ends the group; the other may hear of it before its own is.
    num_deadline += absl::IsDeadlineExceeded(results[rank]);
    EXPECT_TRUE(absl::IsDeadlineExceeded(results[rank]) || absl::IsAborted(results[rank]));
    if (absl::IsDeadlineExceeded(results[rank])) {
      ExpectError(results[rank], absl::StatusCode::kDeadlineExceeded, {call, "300ms"});
    }
    if (kind.names_missing_rank) {
      ExpectError(results[rank], results[rank].code(), {"rank 2 did not take part"});
    }
  }
  EXPECT_GE(num_deadline, 1);
}

TEST_P(CommunicatorFailureTest, AMissingRankIsADeadlineThatNamesItAndTheErrorStays) {
  ExpectMissingRank(GetParam(), "Barrier", [](int32_t, TestGroup&, Communicator& member) {
    return member.Barrier(kShort);
  });
  ExpectMissingRank(GetParam(), "AllReduce", [](int32_t, TestGroup&, Communicator& member) {
    int64_t value = 1;
    return member.AllReduce(std::span(&value, 1), ReduceOp::kSum);
  });
  ExpectMissingRank(GetParam(), "AllGather",
                    [](int32_t rank, TestGroup& group, Communicator& member) {
                      RankBytes send(group, rank, 50'000), recv(group, rank, 150'000);
                      return Finish(member, member.AllGather(send.data(), 50'000, recv.data()));
                    });
}

TEST_P(CommunicatorFailureTest, ALateRankIsWaitedFor) {
  const auto results = RunRanks(
      GetParam(), 3, {.timeout = kLong}, [](int32_t rank, TestGroup&, Communicator& member) {
        if (rank == 1) absl::SleepFor(kShort);
        int64_t value = rank;
        RETURN_IF_ERROR(member.AllReduce(std::span(&value, 1), ReduceOp::kSum));
        EXPECT_EQ(value, 3);
        return absl::OkStatus();
      });
  for (const absl::Status& result : results) EXPECT_TRUE(result.ok()) << result;
}

TEST_P(CommunicatorFailureTest, AWaitingRankUsesNoCpu) {
  const auto cpu_time = [] {
    timespec now = {};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return absl::DurationFromTimespec(now);
  };
  RunRanks(GetParam(), 2, {.timeout = kLong}, [&](int32_t rank, TestGroup&, Communicator& member) {
    RETURN_IF_ERROR(member.Barrier(kLong));
    const absl::Duration before = cpu_time();
    if (rank == 1) absl::SleepFor(absl::Seconds(1));
    RETURN_IF_ERROR(member.Barrier(kLong));
    EXPECT_LT(cpu_time() - before, absl::Milliseconds(150));
    return absl::OkStatus();
  });
}

TEST_P(CommunicatorFailureTest, AbortEndsAWaitHereAndElsewhere) {
  for (int round = 0; round < 5; ++round) {
    std::atomic<int> num_done{0};
    const auto results = RunRanks(GetParam(), 3, {.timeout = kLong},
                                  [&](int32_t rank, TestGroup& group, Communicator& member) {
                                    if (rank == 2) {
                                      WaitFor([&] { return num_done == 2; });
                                      return absl::OkStatus();
                                    }
                                    std::thread aborter;
                                    if (rank == 0) {
                                      aborter = std::thread([&] {
                                        absl::SleepFor(absl::Milliseconds(20));
                                        member.Abort("the operator pulled the plug");
                                        member.Abort("twice");
                                      });
                                    }
                                    RankBytes send(group, rank, 50'000), recv(group, rank, 150'000);
                                    const absl::Status first = Finish(
                                        member, member.AllGather(send.data(), 50'000, recv.data()));
                                    if (rank == 0) aborter.join();
                                    EXPECT_EQ(member.Barrier(kLong), first);
                                    ++num_done;
                                    return first;
                                  });
    ExpectError(results[0], absl::StatusCode::kAborted, {"the operator pulled the plug"});
    ExpectError(results[1], absl::StatusCode::kAborted, {});
  }
}

TEST_P(CommunicatorFailureTest, AbortBetweenCallsIsSeenByTheNextOfEveryRank) {
  std::atomic<bool> aborted{false};
  const auto results = RunRanks(GetParam(), 2, {.timeout = kLong},
                                [&](int32_t rank, TestGroup&, Communicator& member) {
                                  RETURN_IF_ERROR(member.Barrier(kLong));
                                  if (rank == 0) {
                                    member.Abort("between calls");
                                    aborted = true;
                                  }
                                  WaitFor([&] { return aborted.load(); });
                                  return member.Barrier(kLong);
                                });
  ExpectError(results[0], absl::StatusCode::kAborted, {"between calls"});
  ExpectError(results[1], absl::StatusCode::kAborted, {});
}

TEST_P(CommunicatorFailureTest, ARankThatIsGoneIsAborted) {
  const absl::Time start = absl::Now();
  const auto results = RunRanks(GetParam(), 4, {.timeout = kLong},
                                [](int32_t rank, TestGroup&, Communicator& member) {
                                  RETURN_IF_ERROR(member.Barrier(kLong));
                                  return rank == 3 ? absl::OkStatus() : member.Barrier(kLong);
                                });
  for (int32_t rank = 0; rank < 3; ++rank) {
    ExpectError(results[rank], absl::StatusCode::kAborted, {});
  }
  EXPECT_LT(absl::Now() - start, kLong / 2);
}

TEST_P(CommunicatorFailureTest, AbortRacingWithCallsNeverHangsAndLosesNoBytes) {
  for (int round = 0; round < 20; ++round) {
    RunRanks(GetParam(), 3, {.timeout = kLong},
             [&](int32_t rank, TestGroup& group, Communicator& member) {
               std::thread aborter;
               if (rank == round % 3) {
                 aborter = std::thread([&] {
                   absl::SleepFor(absl::Microseconds(500 * (round % 7)));
                   member.Abort("raced");
                 });
               }
               absl::Status status;
               for (int call = 0; status.ok(); ++call) {
                 RankBytes send(group, rank, std::vector<uint8_t>(90'000, rank)),
                     recv(group, rank, 270'000);
                 status = Finish(member, member.AllGather(send.data(), 90'000, recv.data()));
                 if (!status.ok()) break;
                 const std::vector<uint8_t> got = recv.Read();
                 for (int32_t r = 0; r < 3; ++r) EXPECT_EQ(got[90'000 * r + 89'999], r);
               }
               if (aborter.joinable()) aborter.join();
               ExpectError(status, absl::StatusCode::kAborted, {});
               return status;
             });
  }
}

int NumOpenFiles() {
  int count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    ++count;
  }
  return count;
}

TEST_P(CommunicatorFailureTest, NoSocketAndNoThreadIsLeft) {
  const auto use = [&] {
    RunRanks(GetParam(), 4, {.timeout = kShort},
             [](int32_t rank, TestGroup&, Communicator& member) {
               RETURN_IF_ERROR(member.Barrier(kLong));
               return rank == 0 ? absl::OkStatus() : member.Barrier(kLong);
             });
    RunRanks(GetParam(), 2, {.timeout = kLong}, [](int32_t rank, TestGroup&, Communicator& member) {
      if (rank == 0) member.Abort("done");
      return member.Barrier(kLong);
    });
  };
  use();
  const int files = NumOpenFiles();
  const long threads = ProcSelf("Threads:");
  for (int i = 0; i < 5; ++i) use();
  EXPECT_TRUE(WaitFor([&] { return ProcSelf("Threads:") <= threads; }, absl::Seconds(5)))
      << ProcSelf("Threads:") << " threads, " << threads << " before";
  EXPECT_LE(NumOpenFiles(), files);
}

INSTANTIATE_TEST_SUITE_P(Over, CommunicatorFailureTest, testing::ValuesIn(GroupKinds()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace jevons

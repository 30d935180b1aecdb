#include "parallel/faulty_communicator.h"

#include <atomic>
#include <functional>
#include <numeric>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "parallel/thread_communicator.h"
#include "tests/support/status_matchers.h"

namespace jevons {
namespace {

constexpr absl::Duration kLong = absl::Seconds(60);

// Runs `fn` on two threads; rank 1 has the faults.
std::vector<absl::Status> RunWithFaults(const FaultPlan& plan, absl::Duration timeout,
                                        const std::function<absl::Status(Communicator&)>& fn) {
  ThreadGroup group(2, {.timeout = timeout});
  std::vector<absl::Status> results(2);
  std::vector<std::thread> threads;
  for (int32_t rank = 0; rank < 2; ++rank) {
    threads.emplace_back([&, rank] {
      std::unique_ptr<Communicator> member = *group.Join(rank);
      if (rank == 1) member = CreateFaultyCommunicator(std::move(member), plan);
      results[rank] = fn(*member);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return results;
}

// Exchanges a kilobyte whose last byte is the sum of the others, and looks at what comes.
absl::Status ExchangeWithChecksum(Communicator& member) {
  const auto checksum = [](const uint8_t* data) {
    return static_cast<uint8_t>(std::accumulate(data, data + 1023, 0));
  };
  std::vector<uint8_t> send(1024);
  for (size_t i = 0; i < 1023; ++i) send[i] = static_cast<uint8_t>(i * 7 + member.info().rank);
  send[1023] = checksum(send.data());
  std::vector<uint8_t> recv(2048);
  RETURN_IF_ERROR(member.AllGather(send.data(), 1024, recv.data()));
  for (const int offset : {0, 1024}) {
    if (checksum(recv.data() + offset) != recv[offset + 1023]) {
      return absl::DataLossError("checksum");
    }
  }
  return absl::OkStatus();
}

TEST(FaultyCommunicatorTest, ACorruptBitIsCaughtByAChecksumInThatCallAlone) {
  int num_bad = 0;
  const FaultPlan plan = {.seed = 3, .faults = {{.kind = FaultKind::kCorrupt, .call_number = 7}}};
  const auto results = RunWithFaults(plan, kLong, [&](Communicator& member) {
    for (int call = 1; call <= 20; ++call) {
      const absl::Status status = ExchangeWithChecksum(member);
      if (status.ok()) continue;
      if (!absl::IsDataLoss(status)) return status;
      EXPECT_EQ(member.info().rank, 1);
      EXPECT_EQ(call, 7);
      ++num_bad;
    }
    return absl::OkStatus();
  });
  for (const absl::Status& result : results) EXPECT_TRUE(result.ok()) << result;
  EXPECT_EQ(num_bad, 1);
}

TEST(FaultyCommunicatorTest, ABitOfAnExchangeInHalvesIsAnotherAfterFinish) {
  const FaultPlan plan = {.seed = 3, .faults = {{.kind = FaultKind::kCorrupt, .call_number = 2}}};
  const auto results = RunWithFaults(plan, kLong, [](Communicator& member) {
    const std::vector<int64_t> offsets = {0, 32}, sizes = {32, 32};
    for (int call = 1; call <= 3; ++call) {
      const std::vector<uint8_t> send(64, 0x5A);
      std::vector<uint8_t> recv(64);
      RETURN_IF_ERROR(member.StartAllToAll({.send = send.data(),
                                            .send_offsets = offsets,
                                            .send_bytes = sizes,
                                            .recv = recv.data(),
                                            .recv_offsets = offsets,
                                            .recv_bytes = sizes}));
      RETURN_IF_ERROR(member.FinishAllToAll());
      EXPECT_EQ(recv == send, member.info().rank == 0 || call != 2) << call;
    }
    return absl::OkStatus();
  });
  for (const absl::Status& result : results) EXPECT_TRUE(result.ok()) << result;
}

TEST(FaultyCommunicatorTest, EqualSeedsGiveEqualFaults) {
  const auto bad_calls = [](uint64_t seed) {
    std::vector<int> bad;
    const FaultPlan plan = {.seed = seed,
                            .faults = {{.kind = FaultKind::kCorrupt, .probability = 0.2}}};
    RunWithFaults(plan, kLong, [&](Communicator& member) {
      for (int call = 1; call <= 200; ++call) {
        if (absl::IsDataLoss(ExchangeWithChecksum(member))) bad.push_back(call);
      }
      return absl::OkStatus();
    });
    return bad;
  };
  const std::vector<int> first = bad_calls(1);
  EXPECT_GT(first.size(), 20u);
  EXPECT_LT(first.size(), 60u);
  EXPECT_EQ(first, bad_calls(1));
  EXPECT_NE(first, bad_calls(2));
}

TEST(FaultyCommunicatorTest, ADroppedRankIsMissedAndReturnsWhenAborted) {
  const FaultPlan plan = {.faults = {{.kind = FaultKind::kDrop, .call_number = 3}}};
  const absl::Duration timeout = absl::Milliseconds(200);
  std::atomic<Communicator*> dropped{nullptr};
  const auto results = RunWithFaults(plan, timeout, [&](Communicator& member) {
    if (member.info().rank == 1) dropped = &member;
    absl::Status status;
    for (int call = 1; call <= 2; ++call) {
      EXPECT_TRUE(member.Barrier(kLong).ok());
    }
    status = member.Barrier(timeout);
    if (member.info().rank == 0) dropped.load()->Abort("rank 1 was dropped");
    return status;
  });
  ExpectError(results[0], absl::StatusCode::kDeadlineExceeded,
              {"Barrier (call 3)", "rank 1 did not take part"});
  ExpectError(results[1], absl::StatusCode::kAborted, {"rank 1 was dropped"});
}

TEST(FaultyCommunicatorTest, ADelayedRankIsWaitedFor) {
  const absl::Duration delay = absl::Milliseconds(100);
  const FaultPlan plan = {
      .faults = {{.kind = FaultKind::kDelay, .call_number = 2, .delay = delay}}};
  const absl::Time start = absl::Now();
  const auto results = RunWithFaults(plan, kLong, [](Communicator& member) {
    RETURN_IF_ERROR(ExchangeWithChecksum(member));
    return ExchangeWithChecksum(member);
  });
  for (const absl::Status& result : results) EXPECT_TRUE(result.ok()) << result;
  EXPECT_GE(absl::Now() - start, delay);
}

TEST(FaultyCommunicatorTest, KillRunsTheCallbackAtItsCall) {
  int num_killed = 0;
  int num_calls = 0;
  const FaultPlan plan = {.faults = {{.kind = FaultKind::kKill, .call_number = 4}}, .kill = [&] {
                            ++num_killed;
                            EXPECT_EQ(num_calls, 3);
                          }};
  RunWithFaults(plan, kLong, [&](Communicator& member) {
    for (int call = 0; call < 6; ++call) {
      RETURN_IF_ERROR(member.Barrier(kLong));
      if (member.info().rank == 1) ++num_calls;
    }
    return absl::OkStatus();
  });
  EXPECT_EQ(num_killed, 1);
}

}  // namespace
}  // namespace jevons

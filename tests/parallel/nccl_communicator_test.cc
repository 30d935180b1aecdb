// What is particular to NCCL: streams, graphs, and how it fails. The contract that all
// communicators share is tested by the suite (nccl_groups.cc).
#include "parallel/nccl_communicator.h"

#include <atomic>
#include <barrier>
#include <chrono>

#include "cuda/graph_cache.h"
#include "parallel/thread_communicator.h"
#include "tests/parallel/nccl_ranks.h"
#include "tests/support/status_matchers.h"

namespace jevons {
namespace {

using absl::StatusCode;
using emu::CallKind;
using emu::LaunchStep;

constexpr absl::Duration kShort = absl::Milliseconds(200);

class NcclCommunicatorTest : public NcclRanksTest {};

TEST_F(NcclCommunicatorTest, SaysWhichNcclItIs) {
  RunNcclRanks(1, {},
               [](NcclRank& r) { EXPECT_EQ(r.comm->Description(), "nccl 2.28.9 with threads"); });
}

// in -> in + 1, exchanged, out[0] -> 2 * out[0]; the next round sends what came.
TEST_F(NcclCommunicatorTest, OpsBeforeAndAfterAnExchangeKeepTheirOrderWithoutAWait) {
  for (int seed = 0; seed < 20; ++seed) {
    emu::SetSeed(seed);
    emu::DelayRank(1, seed % 3);
    RunNcclRanks(2, {}, [](NcclRank& r) {
      r.Set({10 * r.info.rank, 100 + r.info.rank});
      const int32_t sender = r.info.rank;  // whose value for rank 0 and for rank 1
      for (int round = 0; round < 3; ++round) {
        CUDA_OK(LaunchStep({r.in, 1, 1}, r.stream));
        ASSERT_TRUE(r.Exchange().ok());
        CUDA_OK(LaunchStep({r.out, 2, 0}, r.stream));
      }
      ASSERT_TRUE(r.comm->Wait().ok());
      // in[0] is 10 * rank + 3, in[1] is 100 + rank; out[s] comes from rank s.
      const std::vector<int32_t> expected =
          sender == 0 ? std::vector<int32_t>{2 * 3, 13} : std::vector<int32_t>{2 * 100, 101};
      EXPECT_EQ(r.Get(2), expected);
    });
  }
}

TEST_F(NcclCommunicatorTest, AnExchangeMakesNoCallThatWaitsForTheDeviceOrTakesMemory) {
  RunNcclRanks(1, {}, [](NcclRank& r) {
    ASSERT_TRUE(r.created.ok()) << r.created;
    emu::ResetCalls();
    ASSERT_TRUE(r.Exchange().ok());
    ASSERT_TRUE(r.comm->AllGather(r.in, 4, r.out).ok());
    ASSERT_TRUE(r.comm->Broadcast(r.in, 4, 0).ok());
    EXPECT_EQ(emu::NumCalls(CallKind::kStream), 0);
    EXPECT_EQ(emu::NumCalls(CallKind::kEvent), 0);
    EXPECT_EQ(emu::NumCalls(CallKind::kDevice), 3);  // which device, once a call
    ASSERT_TRUE(r.Exchange([] {}).ok());
    EXPECT_EQ(emu::NumCalls(CallKind::kStream), 2);  // a stream that waits, not the host
    EXPECT_EQ(emu::NumCalls(CallKind::kEvent), 2);
    std::vector<int64_t> values(10'000, 1);
    ASSERT_TRUE(r.comm->AllReduce(std::span(values), ReduceOp::kSum).ok());
    ASSERT_TRUE(r.comm->Barrier(absl::Seconds(10)).ok());
    EXPECT_EQ(emu::NumCalls(CallKind::kAllocation), 0);
  });
}

TEST_F(NcclCommunicatorTest, AnExchangeInARecordedStepIsReplayedWithTheDataOfTheReplay) {
  for (int seed = 0; seed < 10; ++seed) {
    emu::SetSeed(seed);
    RunNcclRanks(4, {}, [](NcclRank& r) {
      cuda::GraphCache steps;
      int num_calls = 0;
      const auto step = [&]() -> absl::Status {
        ++num_calls;
        EXPECT_CUDA(cudaSuccess, LaunchStep({r.in, 1, 1}, r.stream));
        RETURN_IF_ERROR(r.Exchange());
        EXPECT_CUDA(cudaSuccess, LaunchStep({r.out + 1, 3, 0}, r.stream));
        return absl::OkStatus();
      };
      for (int32_t run = 0; run < 5; ++run) {
        r.Set(r.SentInRun(run));
        const absl::Status status = steps.Run(1, step, r.stream);
        ASSERT_TRUE(status.ok()) << status;
        ASSERT_TRUE(r.comm->Wait().ok());
        EXPECT_EQ(r.Get(4), r.GotInRun(run));
      }
      EXPECT_EQ(num_calls, 2);  // run, recorded, replayed
    });
  }
}

// out[32] is worked on while the exchange is under way; in and out[0..3] before and after it.
TEST_F(NcclCommunicatorTest, AnExchangeInHalvesIsBesideTheOpsBetweenThemAndIsReplayed) {
  for (int seed = 0; seed < 20; ++seed) {
    emu::SetSeed(seed);
    emu::DelayRank(1, seed % 3);
    RunNcclRanks(4, {}, [](NcclRank& r) {
      CUDA_OK(cudaMemsetAsync(r.out, 0, NcclRank::kValues * sizeof(int32_t), r.stream));
      cuda::GraphCache steps;
      const auto step = [&]() -> absl::Status {
        EXPECT_CUDA(cudaSuccess, LaunchStep({r.in, 1, 1}, r.stream));
        RETURN_IF_ERROR(r.Exchange([&] {
          EXPECT_CUDA(cudaSuccess, LaunchStep({r.out + 32, 1, 5}, r.stream));
        }));
        EXPECT_CUDA(cudaSuccess, LaunchStep({r.out + 1, 3, 0}, r.stream));
        return absl::OkStatus();
      };
      for (int32_t run = 0; run < 5; ++run) {
        r.Set(r.SentInRun(run));
        const absl::Status status = steps.Run(1, step, r.stream);
        ASSERT_TRUE(status.ok()) << status;
        ASSERT_TRUE(r.comm->Wait().ok());
        EXPECT_EQ(r.Get(4), r.GotInRun(run));
        EXPECT_EQ(r.Get(33)[32], 5 * (run + 1));
      }
    });
  }
}

TEST_F(NcclCommunicatorTest, AReplayWithoutItsPeerEndsAtTheDeadlineOfWait) {
  std::barrier<> recorded(2);
  RunNcclRanks(2, {.timeout = kShort}, [&](NcclRank& r) {
    cuda::GraphCache steps;
    const auto step = [&] { return r.Exchange(); };
    for (int run = 0; run < 2; ++run) ASSERT_TRUE(steps.Run(1, step, r.stream).ok());
    EXPECT_TRUE(r.comm->Wait().ok());
    recorded.arrive_and_wait();
    if (r.info.rank == 0) {
      EXPECT_TRUE(steps.Run(1, step, r.stream).ok());
      ExpectError(r.comm->Wait(), StatusCode::kDeadlineExceeded,
                  {"Wait", "rank 0 of 2", "200ms", "last call queued: AllToAll"});
      EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(r.stream));
    }
    recorded.arrive_and_wait();
  });
}

TEST_F(NcclCommunicatorTest, AnAsynchronousErrorIsAbortedWithItsReasonAndBreaksTheGroup) {
  std::barrier<> created(4);
  RunNcclRanks(4, {}, [&](NcclRank& r) {
    ASSERT_TRUE(r.created.ok()) << r.created;
    created.arrive_and_wait();
    if (r.info.rank == 0) emu::FailNthMeeting(5, ncclRemoteError);
    created.arrive_and_wait();
    absl::Status status = r.Exchange();
    if (status.ok()) status = r.comm->Wait();
    ExpectError(status, StatusCode::kAborted,
                {"remote process exited", "a planned asynchronous error", "of 4"});
    EXPECT_EQ(r.Exchange(), status);
    EXPECT_EQ(r.comm->Barrier(absl::Seconds(10)), status);
    EXPECT_EQ(r.comm->Wait(), status);
    CUDA_OK(cudaStreamSynchronize(r.stream));
  });
}

TEST_F(NcclCommunicatorTest, AnErrorOfNcclThatIsNoLostRankIsInternal) {
  RunNcclRanks(1, {}, [](NcclRank& r) {
    emu::FailNthNcclCall(1, ncclInternalError);
    const absl::Status status = r.Exchange();
    ExpectError(status, StatusCode::kInternal, {"AllToAll (call 1)", "rank 0 of 1", "internal"});
    EXPECT_EQ(r.comm->Wait(), status);
  });
}

TEST_F(NcclCommunicatorTest, ARankThatStaysAwayIsADeadlineAndTheStreamGoesOn) {
  for (const int32_t world_size : {2, 8}) {
    std::barrier<> created(world_size);
    std::atomic<int> num_late = 0;
    RunNcclRanks(world_size, {.timeout = kShort}, [&](NcclRank& r) {
      ASSERT_TRUE(r.created.ok()) << r.created;
      created.arrive_and_wait();
      emu::HoldRank(world_size - 1);
      created.arrive_and_wait();
      absl::Status status = r.Exchange();
      if (status.ok()) status = r.comm->Wait();
      // The others hear of the first deadline.
      num_late += absl::IsDeadlineExceeded(status);
      EXPECT_TRUE(absl::IsDeadlineExceeded(status) || absl::IsAborted(status)) << status;
      ExpectError(status, status.code(), {"AllToAll", "200ms"});
      EXPECT_EQ(r.comm->Barrier(absl::Seconds(10)), status);
      CUDA_OK(cudaStreamSynchronize(r.stream));
    });
    EXPECT_GE(num_late, 1);
    emu::ResetNccl();
  }
}

TEST_F(NcclCommunicatorTest, BarrierHasADeadlineOfItsOwn) {
  std::barrier<> created(2);
  RunNcclRanks(2, {.timeout = absl::Seconds(60)}, [&](NcclRank& r) {
    created.arrive_and_wait();
    if (r.info.rank == 0) {
      ExpectError(r.comm->Barrier(kShort), StatusCode::kDeadlineExceeded, {"Barrier", "200ms"});
    }
    created.arrive_and_wait();
  });
}

// A rank that hears of the group's name and then does not come.
void TakeIdAlone(Communicator& host) {
  char id[NCCL_UNIQUE_ID_BYTES];
  EXPECT_TRUE(host.Broadcast(id, sizeof(id), 0).ok());
}

TEST_F(NcclCommunicatorTest, CreationEndsAtItsDeadlineWithoutAPeer) {
  ThreadGroup group(2);
  const auto peer = *group.Join(1);
  std::thread stays_away([&] { TakeIdAlone(*peer); });
  const NcclRank r(*group.Join(0), {.create_timeout = kShort});
  stays_away.join();
  ExpectError(r.created, StatusCode::kDeadlineExceeded, {"Create", "rank 0 of 2", "200ms"});
  ExpectError(peer->Wait(), StatusCode::kAborted, {"rank 0 of 2"});
}

TEST_F(NcclCommunicatorTest, CreationIsCancelledFromAnotherThread) {
  for (const int delay_ms : {0, 1, 20}) {
    ThreadGroup group(2);
    const auto peer = *group.Join(1);
    std::thread stays_away([&] { TakeIdAlone(*peer); });
    std::atomic<bool> cancelled = false;
    std::thread canceller([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(delay_ms));
      cancelled = true;
    });
    const NcclRank r(*group.Join(0), {.cancelled = [&] { return cancelled.load(); }});
    ExpectError(r.created, StatusCode::kCancelled, {"told to stop"});
    canceller.join();
    stays_away.join();
  }
}

TEST_F(NcclCommunicatorTest, AbortFreesAThreadThatWaitsForTheStreamByOtherMeans) {
  std::barrier<> created(2);
  RunNcclRanks(2, {}, [&](NcclRank& r) {
    created.arrive_and_wait();
    if (r.info.rank == 0) {
      ASSERT_TRUE(r.Exchange().ok());
      std::thread watchdog([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        r.comm->Abort("rank 1 sends no heartbeat");
      });
      CUDA_OK(cudaStreamSynchronize(r.stream));
      watchdog.join();
      ExpectError(r.Exchange(), StatusCode::kAborted, {"rank 1 sends no heartbeat"});
    }
    created.arrive_and_wait();
  });
}

TEST_F(NcclCommunicatorTest, ARankThatCannotBeCreatedEndsTheCreationOfTheOthers) {
  ThreadGroup group(2, {});
  std::thread bad([&] {
    const auto made = CreateNcclCommunicator(*group.Join(1), {.device = 1});
    ExpectError(made, StatusCode::kInvalidArgument, {"stream"});
  });
  CUDA_OK(cudaSetDevice(0));
  cudaStream_t stream = nullptr;
  CUDA_OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const auto begin = std::chrono::steady_clock::now();
  const auto made = CreateNcclCommunicator(*group.Join(0), {.device = 0, .stream = stream});
  ExpectError(made, StatusCode::kAborted, {"stream must be given"});
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
  bad.join();
  CUDA_OK(cudaStreamDestroy(stream));
}

TEST_F(NcclCommunicatorTest, WhatCannotBeIsRefused) {
  cudaStream_t stream = nullptr;
  CUDA_OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const auto create = [](const NcclOptions& options) {
    ThreadGroup group(1);
    return CreateNcclCommunicator(*group.Join(0), options).status();
  };
  ExpectError(create({}), StatusCode::kInvalidArgument, {"stream"});
  ExpectError(create({.device = kMaxRanks, .stream = stream}), StatusCode::kInternal,
              {"device", "invalid device ordinal"});
  CUDA_OK(cudaStreamDestroy(stream));
}

TEST_F(NcclCommunicatorTest, BytesToItselfThatDoNotFitAreRefused) {
  RunNcclRanks(1, {}, [](NcclRank& r) {
    const int64_t zero = 0, four = 4, eight = 8;
    ExpectError(r.comm->AllToAll({.send = r.in,
                                  .send_offsets = {&zero, 1},
                                  .send_bytes = {&four, 1},
                                  .recv = r.out,
                                  .recv_offsets = {&zero, 1},
                                  .recv_bytes = {&eight, 1}}),
                StatusCode::kInvalidArgument, {"sends 4 bytes to itself and expects 8"});
  });
}

TEST_F(NcclCommunicatorTest, AGraphThatHoldsItsCallsIsWaitedForOnlySoLong) {
  // The child starts threads, which ThreadSanitizer takes from a program of its own alone.
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto outlive = [] {
    cuda::GraphCache* const steps = new cuda::GraphCache;  // never gone
    RunNcclRanks(1, {.timeout = kShort}, [&](NcclRank& r) {
      for (int run = 0; run < 3; ++run) {
        EXPECT_TRUE(steps
                        ->Run(
                            1, [&] { return r.Exchange(); }, r.stream)
                        .ok());
      }
      EXPECT_TRUE(r.comm->Wait().ok());
      r.comm = nullptr;
    });
    std::_Exit(testing::Test::HasFailure() ? 1 : 0);
  };
  EXPECT_EXIT(outlive(), testing::ExitedWithCode(0), "nccl_communicator_stays");
}

}  // namespace
}  // namespace jevons

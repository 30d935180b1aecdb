#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <thread>

#include "tests/cuda_emu/nccl_plan.h"
#include "tests/cuda_emu/tests/emu_test.h"

#define NCCL_OK(...) ASSERT_EQ(ncclSuccess, __VA_ARGS__)

namespace jevons::emu {
namespace {

constexpr int kRankCounts[] = {1, 2, 4, 8};

class NcclTest : public EmuTest {
 protected:
  NcclTest() {
    SetDevice({.count = 8});
    ResetNccl();
  }
  ~NcclTest() override {
    EXPECT_EQ(OutstandingCommunicators(), 0);
    ResetNccl();
    SetHangLimit(60000);
  }
};

// What one rank has: a device, a stream, a communicator, and two buffers.
struct Rank {
  int rank = 0;
  int num_ranks = 0;
  ncclComm_t comm = nullptr;
  cudaStream_t stream = nullptr;
  char* in = nullptr;
  char* out = nullptr;

  template <typename T>
  void Set(const std::vector<T>& values) {
    CUDA_OK(cudaMemcpy(in, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  template <typename T>
  std::vector<T> Get(size_t count) {
    std::vector<T> values(count);
    EXPECT_CUDA(cudaSuccess, cudaMemcpyAsync(values.data(), out, count * sizeof(T),
                                             cudaMemcpyDeviceToHost, stream));
    return values;
  }
};

void RunRank(Rank& r, const ncclUniqueId& id, const std::function<void(Rank&)>& body) {
  CUDA_OK(cudaSetDevice(r.rank));
  NCCL_OK(ncclCommInitRank(&r.comm, r.num_ranks, id, r.rank));
  CUDA_OK(cudaStreamCreateWithFlags(&r.stream, cudaStreamNonBlocking));
  CUDA_OK(cudaMalloc(&r.in, 256));
  CUDA_OK(cudaMalloc(&r.out, 256));
  body(r);
  CUDA_OK(cudaFree(r.in));
  CUDA_OK(cudaFree(r.out));
  CUDA_OK(cudaStreamDestroy(r.stream));
  if (r.comm != nullptr) ncclCommDestroy(r.comm);
}

// Runs `body` once for every rank, each on a thread and a device of its own.
void RunRanks(int num_ranks, const std::function<void(Rank&)>& body) {
  ncclUniqueId id;
  NCCL_OK(ncclGetUniqueId(&id));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < num_ranks; ++rank) {
    threads.emplace_back([&, rank] {
      Rank r{.rank = rank, .num_ranks = num_ranks};
      RunRank(r, id, body);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(NcclTest, AllReduceSumsInTheOrderOfTheRanks) {
  for (const int n : kRankCounts) {
    float expected = 0.1f;
    for (int rank = 1; rank < n; ++rank) expected += 0.1f + rank;
    RunRanks(n, [&](Rank& r) {
      r.Set<float>({0.1f + r.rank, 1.0f});
      NCCL_OK(ncclAllReduce(r.in, r.out, 2, ncclFloat32, ncclSum, r.comm, r.stream));
      EXPECT_EQ(r.Get<float>(2), (std::vector<float>{expected, 1.0f * n}));
      NCCL_OK(ncclAllReduce(r.in, r.in, 2, ncclFloat32, ncclMax, r.comm, r.stream));
      NCCL_OK(ncclAllReduce(r.in, r.out, 2, ncclFloat32, ncclMin, r.comm, r.stream));
      EXPECT_EQ(r.Get<float>(2), (std::vector<float>{0.1f + (n - 1), 1.0f}));
    });
  }
}

TEST_F(NcclTest, AllReduceKnowsBf16AndIntegers) {
  for (const int n : kRankCounts) {
    RunRanks(n, [&](Rank& r) {
      r.Set<uint16_t>({0x3F80, 0x4000});  // 1 and 2
      NCCL_OK(ncclAllReduce(r.in, r.out, 2, ncclBfloat16, ncclSum, r.comm, r.stream));
      const auto half = [&](int value) -> uint16_t {
        const float f = static_cast<float>(value);
        return static_cast<uint16_t>(*reinterpret_cast<const uint32_t*>(&f) >> 16);
      };
      EXPECT_EQ(r.Get<uint16_t>(2), (std::vector<uint16_t>{half(n), half(2 * n)}));
      r.Set<int32_t>({r.rank, -r.rank});
      NCCL_OK(ncclAllReduce(r.in, r.out, 2, ncclInt32, ncclSum, r.comm, r.stream));
      const int32_t sum = n * (n - 1) / 2;
      EXPECT_EQ(r.Get<int32_t>(2), (std::vector<int32_t>{sum, -sum}));
      r.Set<int64_t>({int64_t{1} << 40});
      NCCL_OK(ncclAllReduce(r.in, r.out, 1, ncclInt64, ncclSum, r.comm, r.stream));
      EXPECT_EQ(r.Get<int64_t>(1), (std::vector<int64_t>{n * (int64_t{1} << 40)}));
    });
  }
}

TEST_F(NcclTest, GatherBroadcastAndScatter) {
  for (const int n : kRankCounts) {
    std::vector<int32_t> all(n);
    for (int i = 0; i < n; ++i) all[i] = i;
    RunRanks(n, [&](Rank& r) {
      r.Set<int32_t>({r.rank});
      NCCL_OK(ncclAllGather(r.in, r.out, 1, ncclInt32, r.comm, r.stream));
      EXPECT_EQ(r.Get<int32_t>(n), all);
      NCCL_OK(ncclBroadcast(r.in, r.out, 1, ncclInt32, n - 1, r.comm, r.stream));
      EXPECT_EQ(r.Get<int32_t>(1), (std::vector<int32_t>{n - 1}));
      r.Set<int32_t>(all);
      NCCL_OK(ncclReduceScatter(r.in, r.out, 1, ncclInt32, ncclSum, r.comm, r.stream));
      EXPECT_EQ(r.Get<int32_t>(1), (std::vector<int32_t>{n * r.rank}));
    });
  }
}

TEST_F(NcclTest, AGroupOfSendsAndReceivesIsAnAllToAll) {
  for (const int n : kRankCounts) {
    RunRanks(n, [&](Rank& r) {
      std::vector<int32_t> values(n);
      std::vector<int32_t> expected(n);
      for (int peer = 0; peer < n; ++peer) {
        values[peer] = 100 * r.rank + peer;
        expected[peer] = 100 * peer + r.rank;
      }
      r.Set(values);
      NCCL_OK(ncclGroupStart());
      for (int peer = 0; peer < n; ++peer) {
        NCCL_OK(ncclSend(r.in + 4 * peer, 1, ncclInt32, peer, r.comm, r.stream));
        NCCL_OK(ncclRecv(r.out + 4 * peer, 1, ncclInt32, peer, r.comm, r.stream));
      }
      NCCL_OK(ncclGroupEnd());
      EXPECT_EQ(r.Get<int32_t>(n), expected);
    });
  }
}

TEST_F(NcclTest, CollectivesKeepTheirOrderInTheStreamForEverySeed) {
  for (int seed = 0; seed < 20; ++seed) {
    SetSeed(seed);
    DelayRank(1, seed % 3);
    RunRanks(2, [&](Rank& r) {
      r.Set<int32_t>({1});
      LaunchStep({reinterpret_cast<int32_t*>(r.in), 1, r.rank}, r.stream);
      NCCL_OK(ncclAllReduce(r.in, r.in, 1, ncclInt32, ncclSum, r.comm, r.stream));
      LaunchStep({reinterpret_cast<int32_t*>(r.in), 10, 0}, r.stream);
      NCCL_OK(ncclAllReduce(r.in, r.out, 1, ncclInt32, ncclSum, r.comm, r.stream));
      EXPECT_EQ(r.Get<int32_t>(1), (std::vector<int32_t>{60}));
    });
  }
}

TEST_F(NcclTest, CollectivesOfTwoStreamsKeepTheOrderOfTheCalls) {
  for (int seed = 0; seed < 20; ++seed) {
    SetSeed(seed);
    RunRanks(2, [&](Rank& r) {
      cudaStream_t other = nullptr;
      CUDA_OK(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
      r.Set<int32_t>({1 + r.rank});
      NCCL_OK(ncclAllReduce(r.in, r.in, 1, ncclInt32, ncclSum, r.comm, r.stream));
      NCCL_OK(ncclAllReduce(r.in, r.out, 1, ncclInt32, ncclMax, r.comm, other));
      CUDA_OK(cudaStreamSynchronize(other));
      EXPECT_EQ(r.Get<int32_t>(1), (std::vector<int32_t>{3}));
      CUDA_OK(cudaStreamDestroy(other));
    });
  }
}

TEST_F(NcclTest, CollectivesAreReplayedInGraphs) {
  RunRanks(2, [&](Rank& r) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    r.Set<int32_t>({1 + r.rank});
    CUDA_OK(cudaStreamBeginCapture(r.stream, cudaStreamCaptureModeThreadLocal));
    NCCL_OK(ncclAllReduce(r.in, r.in, 1, ncclInt32, ncclSum, r.comm, r.stream));
    NCCL_OK(ncclAllReduce(r.in, r.out, 1, ncclInt32, ncclSum, r.comm, r.stream));
    CUDA_OK(cudaStreamEndCapture(r.stream, &graph));
    CUDA_OK(cudaGraphInstantiate(&exec, graph, 0));
    CUDA_OK(cudaGraphLaunch(exec, r.stream));
    CUDA_OK(cudaGraphLaunch(exec, r.stream));
    EXPECT_EQ(r.Get<int32_t>(1), (std::vector<int32_t>{12}));
    CUDA_OK(cudaGraphDestroy(graph));
    CUDA_OK(cudaGraphExecDestroy(exec));
  });
}

TEST_F(NcclTest, RanksThatDisagreeAreAMisuse) {
  RunRanks(2, [&](Rank& r) {
    NCCL_OK(ncclAllReduce(r.in, r.out, 1 + r.rank, ncclInt32, ncclSum, r.comm, r.stream));
    ncclResult_t error = ncclSuccess;
    while (error == ncclSuccess) {
      cudaStreamQuery(r.stream);
      NCCL_OK(ncclCommGetAsyncError(r.comm, &error));
    }
    EXPECT_EQ(error, ncclInvalidUsage);
    NCCL_OK(ncclCommAbort(r.comm));
    r.comm = nullptr;
  });
  EXPECT_NE(LastMisuse().find("different collectives"), std::string::npos);
}

TEST_F(NcclTest, AnAbortEndsAWaitForAPeerThatNeverComes) {
  for (const int n : {2, 4, 8}) {
    HoldRank(n - 1);
    RunRanks(n, [&](Rank& r) {
      NCCL_OK(ncclAllReduce(r.in, r.out, 1, ncclInt32, ncclSum, r.comm, r.stream));
      std::thread watchdog([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        EXPECT_EQ(ncclSuccess, ncclCommAbort(r.comm));
      });
      CUDA_OK(cudaStreamSynchronize(r.stream));
      watchdog.join();
      EXPECT_EQ(ncclInvalidArgument,
                ncclAllReduce(r.in, r.out, 1, ncclInt32, ncclSum, r.comm, r.stream));
      r.comm = nullptr;
    });
  }
}

TEST_F(NcclTest, WhatAnAbortedRankHasQueuedReachesNobody) {
  std::atomic<bool> aborted{false};
  RunRanks(2, [&](Rank& r) {
    r.Set<int32_t>({r.rank});
    if (r.rank == 0) {
      NCCL_OK(ncclAllReduce(r.in, r.out, 1, ncclInt32, ncclSum, r.comm, r.stream));
      for (int i = 0; i < 50; ++i) cudaStreamQuery(r.stream);  // it has come
      NCCL_OK(ncclCommAbort(r.comm));
      CUDA_OK(cudaStreamSynchronize(r.stream));
      aborted = true;
    } else {
      while (!aborted) std::this_thread::yield();
      NCCL_OK(ncclAllReduce(r.in, r.out, 1, ncclInt32, ncclSum, r.comm, r.stream));
      for (int i = 0; i < 50; ++i) EXPECT_CUDA(cudaErrorNotReady, cudaStreamQuery(r.stream));
      NCCL_OK(ncclCommAbort(r.comm));
    }
    r.comm = nullptr;
  });
}

TEST_F(NcclTest, AWaitThatNobodyEndsIsAMisuse) {
  SetHangLimit(30);
  HoldRank(1);
  RunRanks(2, [&](Rank& r) {
    NCCL_OK(ncclAllReduce(r.in, r.out, 1, ncclInt32, ncclSum, r.comm, r.stream));
    EXPECT_CUDA(cudaErrorLaunchTimeout, cudaStreamSynchronize(r.stream));
    NCCL_OK(ncclCommAbort(r.comm));
    r.comm = nullptr;
  });
  EXPECT_NE(LastMisuse().find("hangs"), std::string::npos);
}

TEST_F(NcclTest, AnAsynchronousErrorReachesEveryRank) {
  FailNthMeeting(2, ncclRemoteError);
  std::atomic<int> num_errors{0};
  RunRanks(4, [&](Rank& r) {
    for (int i = 0; i < 2; ++i) {
      NCCL_OK(ncclAllReduce(r.in, r.out, 1, ncclInt32, ncclSum, r.comm, r.stream));
    }
    ncclResult_t error = ncclSuccess;
    while (error == ncclSuccess) {
      EXPECT_NE(cudaStreamQuery(r.stream), cudaSuccess);
      NCCL_OK(ncclCommGetAsyncError(r.comm, &error));
    }
    num_errors += error == ncclRemoteError;
    EXPECT_STRNE(ncclGetLastError(r.comm), "");
    NCCL_OK(ncclCommAbort(r.comm));
    r.comm = nullptr;
    cudaGetLastError();
  });
  EXPECT_EQ(num_errors, 4);
}

TEST_F(NcclTest, AGroupWithACallThatFailedQueuesNothing) {
  RunRanks(1, [&](Rank& r) {
    r.Set<int32_t>({7});
    NCCL_OK(ncclGroupStart());
    NCCL_OK(ncclAllReduce(r.in, r.out, 1, ncclInt32, ncclSum, r.comm, r.stream));
    EXPECT_EQ(ncclInvalidArgument, ncclSend(r.in, 1, ncclInt32, 1, r.comm, r.stream));
    EXPECT_EQ(ncclInvalidArgument, ncclGroupEnd());
    EXPECT_NE(r.Get<int32_t>(1)[0], 7);
    NCCL_OK(ncclAllReduce(r.in, r.out, 1, ncclInt32, ncclSum, r.comm, r.stream));
    EXPECT_EQ(r.Get<int32_t>(1)[0], 7);
  });
}

TEST_F(NcclTest, OneThreadMayHaveAllRanksInAGroup) {
  ncclUniqueId id;
  NCCL_OK(ncclGetUniqueId(&id));
  ncclComm_t comms[4] = {};
  NCCL_OK(ncclGroupStart());
  for (int rank = 0; rank < 4; ++rank) {
    CUDA_OK(cudaSetDevice(rank));
    NCCL_OK(ncclCommInitRank(&comms[rank], 4, id, rank));
  }
  NCCL_OK(ncclGroupEnd());
  for (ncclComm_t comm : comms) NCCL_OK(ncclCommDestroy(comm));
}

TEST_F(NcclTest, APlannedFailureReachesTheCaller) {
  RunRanks(1, [&](Rank& r) {
    FailNthNcclCall(2, ncclSystemError);
    NCCL_OK(ncclAllReduce(r.in, r.out, 1, ncclInt32, ncclSum, r.comm, r.stream));
    EXPECT_EQ(ncclSystemError, ncclAllReduce(r.in, r.out, 1, ncclInt32, ncclSum, r.comm, r.stream));
    NCCL_OK(ncclAllReduce(r.in, r.out, 1, ncclInt32, ncclSum, r.comm, r.stream));
    CUDA_OK(cudaStreamSynchronize(r.stream));
    EXPECT_EQ(NumNcclCalls(), 4);
  });
}

}  // namespace
}  // namespace jevons::emu

// Communicators that do not block.
#include <nccl.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "tests/cuda_emu/nccl_plan.h"
#include "tests/cuda_emu/tests/emu_test.h"

#define NCCL_OK(...) ASSERT_EQ(ncclSuccess, __VA_ARGS__)

namespace jevons::emu {
namespace {

class NcclNonblockingTest : public EmuTest {
 protected:
  NcclNonblockingTest() { SetDevice({.count = 2}); }
  ~NcclNonblockingTest() override {
    EXPECT_EQ(OutstandingCommunicators(), 0);
    SetHangLimit(60000);
  }
};

TEST_F(NcclNonblockingTest, ACommunicatorThatDoesNotBlockSaysWhenAllHaveCome) {
  ncclUniqueId id;
  NCCL_OK(ncclGetUniqueId(&id));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t comms[2] = {};
  ncclResult_t error = ncclSuccess;
  CUDA_OK(cudaSetDevice(0));
  EXPECT_EQ(ncclInProgress, ncclCommInitRankConfig(&comms[0], 2, id, 0, &config));
  NCCL_OK(ncclCommGetAsyncError(comms[0], &error));
  EXPECT_EQ(error, ncclInProgress);
  EXPECT_EQ(ncclInvalidUsage,
            ncclAllReduce(nullptr, nullptr, 0, ncclInt32, ncclSum, comms[0], nullptr));
  CUDA_OK(cudaSetDevice(1));
  EXPECT_EQ(ncclInvalidArgument, ncclCommInitRankConfig(&comms[1], 2, id, 2, &config));
  EXPECT_EQ(ncclInvalidUsage, ncclCommInitRankConfig(&comms[1], 2, id, 0, &config));
  NCCL_OK(ncclCommInitRankConfig(&comms[1], 2, id, 1, &config));
  NCCL_OK(ncclCommGetAsyncError(comms[0], &error));
  EXPECT_EQ(error, ncclSuccess);
  int rank = -1;
  NCCL_OK(ncclCommUserRank(comms[1], &rank));
  EXPECT_EQ(rank, 1);
  for (ncclComm_t comm : comms) {
    NCCL_OK(ncclCommFinalize(comm));
    NCCL_OK(ncclCommDestroy(comm));
  }
}

// Both ranks of a group without blocking, on this thread.
struct Pair {
  Pair() {
    ncclUniqueId id;
    ncclGetUniqueId(&id);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    for (int rank = 0; rank < 2; ++rank) {
      EXPECT_CUDA(cudaSuccess, cudaSetDevice(rank));
      ncclCommInitRankConfig(&comms[rank], 2, id, rank, &config);
      EXPECT_CUDA(cudaSuccess, cudaStreamCreateWithFlags(&streams[rank], cudaStreamNonBlocking));
      EXPECT_CUDA(cudaSuccess, cudaMalloc(reinterpret_cast<void**>(&data[rank]), 4));
      EXPECT_CUDA(cudaSuccess, cudaMemset(data[rank], 0, 4));
      EXPECT_CUDA(cudaSuccess, cudaDeviceSynchronize());
    }
  }
  ~Pair() {
    for (int rank = 0; rank < 2; ++rank) {
      EXPECT_CUDA(cudaSuccess, cudaFree(data[rank]));
      EXPECT_CUDA(cudaSuccess, cudaStreamDestroy(streams[rank]));
    }
  }

  ncclResult_t Reduce(int rank) {
    return ncclAllReduce(data[rank], data[rank], 1, ncclInt32, ncclSum, comms[rank], streams[rank]);
  }
  // What the last call of the rank came to.
  ncclResult_t Ask(int rank) {
    ncclResult_t state = ncclInProgress;
    while (state == ncclInProgress) EXPECT_EQ(ncclCommGetAsyncError(comms[rank], &state), 0);
    return state;
  }

  ncclComm_t comms[2] = {};
  cudaStream_t streams[2] = {};
  int32_t* data[2] = {};
};

TEST_F(NcclNonblockingTest, ACallThatDoesNotBlockComesIntoTheStreamWhenItsStateIsAskedFor) {
  int num_late = 0;
  for (int seed = 0; seed < 20; ++seed) {
    SetSeed(seed);
    Pair p;
    for (int rank = 0; rank < 2; ++rank) {
      EXPECT_EQ(ncclInProgress, p.Reduce(rank));
      CUDA_OK(cudaSetDevice(rank));
      CUDA_OK(LaunchStep({p.data[rank], 1, 1}, p.streams[rank]));  // too early: before the sum
    }
    for (int rank = 0; rank < 2; ++rank) {
      ncclResult_t state = ncclSuccess;
      NCCL_OK(ncclCommGetAsyncError(p.comms[rank], &state));
      num_late += state == ncclInProgress;
      EXPECT_EQ(p.Ask(rank), ncclSuccess);
    }
    CUDA_OK(cudaSetDevice(0));
    EXPECT_EQ(ReadValue(p.data[0]), 2);
    for (ncclComm_t comm : p.comms) NCCL_OK(ncclCommDestroy(comm));
  }
  EXPECT_GT(num_late, 0);
}

TEST_F(NcclNonblockingTest, ACallBeforeTheOneBeforeItIsQueuedIsAnErrorThatStays) {
  Pair p;
  EXPECT_EQ(ncclInProgress, p.Reduce(0));
  EXPECT_EQ(ncclInvalidArgument, ncclCommDestroy(p.comms[0]));
  EXPECT_EQ(ncclInvalidArgument, p.Reduce(0));
  EXPECT_EQ(p.Ask(0), ncclInvalidArgument);
  for (ncclComm_t comm : p.comms) NCCL_OK(ncclCommAbort(comm));
}

TEST_F(NcclNonblockingTest, ACommunicatorEndsWhenNoGraphHoldsItsCalls) {
  Pair p;
  cudaGraph_t graph = nullptr;
  CUDA_OK(cudaStreamBeginCapture(p.streams[0], cudaStreamCaptureModeThreadLocal));
  EXPECT_EQ(ncclInProgress, p.Reduce(0));
  EXPECT_EQ(p.Ask(0), ncclSuccess);
  CUDA_OK(cudaStreamEndCapture(p.streams[0], &graph));
  std::atomic<bool> ended{false};
  std::thread end([&] {
    EXPECT_EQ(ncclSuccess, ncclCommAbort(p.comms[0]));
    ended = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_FALSE(ended);
  CUDA_OK(cudaGraphDestroy(graph));
  end.join();

  CUDA_OK(cudaStreamBeginCapture(p.streams[1], cudaStreamCaptureModeThreadLocal));
  EXPECT_EQ(ncclInProgress, p.Reduce(1));
  EXPECT_EQ(p.Ask(1), ncclSuccess);
  CUDA_OK(cudaStreamEndCapture(p.streams[1], &graph));
  SetHangLimit(30);
  EXPECT_EQ(ncclInternalError, ncclCommDestroy(p.comms[1]));
  CUDA_OK(cudaGraphDestroy(graph));
  EXPECT_NE(LastMisuse().find("whose calls a graph holds hangs"), std::string::npos);
}

}  // namespace
}  // namespace jevons::emu

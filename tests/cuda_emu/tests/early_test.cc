// Kernels that begin while the one in front has not run.
#include <gmock/gmock.h>

#include <algorithm>
#include <functional>

#include "cuda/device/copy.h"
#include "cuda/device/launch.h"
#include "tests/cuda_emu/tests/emu_test.h"
#include "tests/cuda_emu/tests/grid_run.h"

namespace jevons::emu {
namespace {

using device::ThreadIdx;
using ::testing::HasSubstr;

constexpr int kBlocks = 5;
constexpr int kValues = kBlocks * 64;

struct Params {
  int* from = nullptr;  // [kValues]
  int* to = nullptr;
};

__device__ int Idx() { return device::BlockIdxX() * 64 + ThreadIdx(); }

__global__ void FollowingKernel(const __grid_constant__ Params p) {
  device::LetNextKernelBegin();
  int& shared = *(&device::SharedMemory<int>() + ThreadIdx());
  shared = ThreadIdx();
  device::WaitForKernelBefore();
  device::SyncThreads();
  p.to[Idx()] = p.from[Idx()] + 1 + shared - ThreadIdx();
}

// The second half of the block meets the first only behind its wait.
__global__ void HalvesKernel(const __grid_constant__ Params p) {
  if (ThreadIdx() < 32) device::WaitForKernelBefore();
  device::SyncThreads();
  device::WaitForKernelBefore();
  p.to[Idx()] = p.from[Idx()] + 1;
}

// What is wrong with each of these stands in its name.
__global__ void ReadsBeforeKernel(const __grid_constant__ Params p) {
  const int value = p.from[Idx()];
  device::FollowKernelBefore();
  p.to[Idx()] = value + 1;
}
__global__ void CopiesBeforeKernel(const __grid_constant__ Params p) {
  int* const shared = &device::SharedMemory<int>() + ThreadIdx();
  device::CpAsync<4>(shared, p.from + Idx(), 4);
  device::CpAsyncCommit();
  device::FollowKernelBefore();
  device::CpAsyncWait<0>();
  p.to[Idx()] = *shared + 1;
}
__global__ void WritesBeforeKernel(const __grid_constant__ Params p) {
  p.to[Idx()] = 1000;
  device::FollowKernelBefore();
  p.to[Idx()] = p.from[Idx()] + 1;
}
__global__ void NeverWaitsKernel(const __grid_constant__ Params p) {
  p.to[Idx()] = p.from[Idx()] + 1;
}
__global__ void OneThreadLeavesKernel(const __grid_constant__ Params p) {
  if (Idx() == 77) return;
  device::FollowKernelBefore();
  p.to[Idx()] = p.from[Idx()] + 1;
}

using Kernel = void (*)(Params);

class EarlyTest : public EmuTest {
 protected:
  EarlyTest() { SetDevice({.major = 9}); }
  void SetUp() override {
    CUDA_OK(cudaMalloc(&values_, 3 * kValues * sizeof(int)));
    CUDA_OK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  void TearDown() override {
    cudaStreamDestroy(stream_);
    cudaFree(values_);
  }

  cudaError_t Start(Kernel kernel, int from, int to, bool early = true) {
    const Params params = {values_ + from * kValues, values_ + to * kValues};
    return cuda::Launch(
        kernel,
        {.grid = dim3(kBlocks), .block = 64, .smem_bytes = 64 * sizeof(int), .early = early},
        stream_, params);
  }
  // The second value that the kernels give, recorded and replayed, or queued as they are.
  int Run(const std::function<void()>& kernels, bool recorded) {
    cudaMemsetAsync(values_, 0, 3 * kValues * sizeof(int), stream_);
    if (recorded) {
      cudaGraph_t graph = nullptr;
      cudaGraphExec_t exec = nullptr;
      cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal);
      kernels();
      cudaStreamEndCapture(stream_, &graph);
      cudaGraphInstantiate(&exec, graph, 0);
      cudaGraphDestroy(graph);
      cudaGraphLaunch(exec, stream_);
      error_ = cudaStreamSynchronize(stream_);
      cudaGraphExecDestroy(exec);
    } else {
      kernels();
      error_ = cudaStreamSynchronize(stream_);
    }
    int largest = 0;
    int smallest = 1 << 30;
    for (int i = 0; i < kValues && error_ == cudaSuccess; ++i) {
      largest = std::max(largest, values_[2 * kValues + i]);
      smallest = std::min(smallest, values_[2 * kValues + i]);
    }
    differ_ = largest != smallest;
    return smallest;
  }
  // Two values that the kernel must carry from one kernel to the next.
  int RunTwo(Kernel kernel, bool recorded) {
    return Run(
        [&] {
          Start(FollowingKernel, 0, 1, false);
          Start(kernel, 1, 2);
        },
        recorded);
  }

  int* values_ = nullptr;
  cudaStream_t stream_ = nullptr;
  cudaError_t error_ = cudaSuccess;
  bool differ_ = false;
};

TEST_F(EarlyTest, AKernelThatWaitsSeesAllThatCameBefore) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SetSeed(seed);
    for (const bool recorded : {true, false}) {
      for (const Kernel kernel : {&FollowingKernel, &HalvesKernel}) {
        EXPECT_EQ(RunTwo(kernel, recorded), 2);
        EXPECT_FALSE(differ_);
        // A chain, each over the one before it.
        const int end = Run(
            [&] {
              Start(kernel, 0, 1, false);
              for (int i = 0; i < 6; ++i) {
                Start(kernel, 1, 2);
                Start(kernel, 2, 1);
              }
              Start(kernel, 1, 2);
            },
            recorded);
        EXPECT_EQ(end, 14);
        EXPECT_FALSE(differ_);
      }
    }
  }
}

// Of one that is recorded some blocks always begin before: they find what was there then.
TEST_F(EarlyTest, WhatIsReadBeforeTheWaitIsOld) {
  if (kTsan) GTEST_SKIP() << "the bug is a race";
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    SetSeed(seed);
    for (const Kernel kernel : {&ReadsBeforeKernel, &CopiesBeforeKernel}) {
      EXPECT_EQ(RunTwo(kernel, true), 1);
      EXPECT_TRUE(differ_);
    }
  }
}

TEST_F(EarlyTest, WhatIsWrittenBeforeTheWaitIsThereForTheKernelBefore) {
  if (kTsan) GTEST_SKIP() << "the bug is a race";
  Run(
      [&] {
        Start(FollowingKernel, 0, 1, false);
        Start(FollowingKernel, 1, 2, false);
        Start(WritesBeforeKernel, 0, 1);
      },
      true);
  EXPECT_TRUE(differ_);
}

TEST_F(EarlyTest, AThreadThatEndsWithoutAWaitIsReported) {
  for (const Kernel kernel : {&NeverWaitsKernel, &OneThreadLeavesKernel}) {
    for (const bool recorded : {true, false}) {
      RunTwo(kernel, recorded);
      EXPECT_CUDA(cudaErrorLaunchFailure, error_);
      EXPECT_THAT(LastMisuse(), HasSubstr("without having called WaitForKernelBefore"));
      TearDown();
      cudaDeviceReset();
      cudaGetLastError();
      SetUp();
    }
  }
}

TEST_F(EarlyTest, BehindACopyNothingBeginsEarly) {
  const int end = Run(
      [&] {
        Start(FollowingKernel, 0, 1, false);
        cudaMemcpyAsync(values_, values_ + kValues, kValues * sizeof(int), cudaMemcpyDeviceToDevice,
                        stream_);
        Start(ReadsBeforeKernel, 0, 2);
      },
      true);
  EXPECT_EQ(end, 2);
  EXPECT_FALSE(differ_);
}

TEST_F(EarlyTest, AFailureOfTheKernelBeforeForgetsWhatBegan) {
  FailNth(CallKind::kExecution, 1, cudaErrorLaunchFailure);
  RunTwo(FollowingKernel, true);
  EXPECT_CUDA(cudaErrorLaunchFailure, error_);
  TearDown();
  cudaDeviceReset();
  cudaGetLastError();
  SetUp();
  EXPECT_EQ(RunTwo(FollowingKernel, true), 2);
}

TEST_F(EarlyTest, AnOldDeviceHasNoEarlyLaunch) {
  TearDown();
  SetDevice({.major = 8});
  SetUp();
  EXPECT_CUDA(cudaErrorNotSupported, Start(FollowingKernel, 0, 1));
  cudaGetLastError();
}

}  // namespace
}  // namespace jevons::emu

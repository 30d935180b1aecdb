// Kernels that store to the memory of other devices and wait for them.
#include <gmock/gmock.h>

#include <vector>

#include "cuda/device/launch.h"
#include "cuda/device/peer.h"
#include "tests/cuda_emu/memory.h"
#include "tests/cuda_emu/state.h"
#include "tests/cuda_emu/tests/emu_test.h"
#include "tests/cuda_emu/tests/grid_run.h"

namespace jevons::emu {
namespace {

using cuda::Launch;
using device::StorePeer;
using device::ThreadIdx;
using device::Waited;
using ::testing::Each;
using ::testing::HasSubstr;

constexpr int kValues = 64;

struct Shared {
  uint64_t flag = 0;
  uint32_t values[kValues] = {};
};
struct Control {
  uint32_t stop = 0;
  int32_t ends[3] = {};  // how many waits ended in each way
};

enum class Order { kRight, kFlagFirst, kNoBarrier };

void SendKernel(Shared* peer, Order order) {
  if (order == Order::kFlagFirst && ThreadIdx() == 0) device::StoreReleaseSystem(&peer->flag, 1);
  if (order == Order::kFlagFirst) device::SyncThreads();
  StorePeer(&peer->values[ThreadIdx()], uint32_t{7});
  if (order == Order::kRight) device::SyncThreads();
  if (order != Order::kFlagFirst && ThreadIdx() == 0) device::StoreReleaseSystem(&peer->flag, 1);
}

void WaitKernel(const Shared* own, Control* control, uint64_t least, uint32_t* out) {
  Waited waited = Waited::kLong;
  while (waited == Waited::kLong) {
    waited = device::WaitAtLeastSystem(&own->flag, least, &control->stop);
    device::AtomicAdd(&control->ends[static_cast<int>(waited)], 1);
  }
  if (waited == Waited::kCome && device::BlockIdxX() == 0) {
    out[ThreadIdx()] = own->values[ThreadIdx()];
  }
}

// Two devices with a stream each, and memory of the second that the first may store to.
class PeerTest : public EmuTest {
 protected:
  PeerTest() {
    SetDevice({.count = 2});
    for (int i = 0; i < 2; ++i) {
      EXPECT_CUDA(cudaSuccess, cudaSetDevice(i));
      EXPECT_CUDA(cudaSuccess, cudaStreamCreateWithFlags(&streams_[i], cudaStreamNonBlocking));
    }
    EXPECT_CUDA(cudaSuccess, cudaMalloc(&shared_, sizeof(Shared)));
    EXPECT_CUDA(cudaSuccess, cudaMalloc(&out_, kValues * sizeof(uint32_t)));
    EXPECT_CUDA(cudaSuccess, cudaMallocHost(&control_, sizeof(Control)));
    *control_ = Control{};
    *shared_ = Shared{};
    Share(true);
  }
  ~PeerTest() override {
    for (int i = 0; i < 2; ++i) cudaStreamDestroy(streams_[i]);
    cudaFree(shared_);
    cudaFree(out_);
    cudaFreeHost(control_);
    SetDevice({});
  }

  void Share(bool shared) {
    const Lock lock(GetState().mutex);
    FindAllocation(shared_)->shared = shared;
  }
  cudaError_t Send(Order order) {
    cudaSetDevice(0);
    return Launch(&SendKernel, {.block = kValues}, streams_[0], shared_, order);
  }
  cudaError_t Wait(uint64_t least, int num_blocks = 1) {
    cudaSetDevice(1);
    return Launch(&WaitKernel, {.grid = dim3(num_blocks), .block = kValues}, streams_[1], shared_,
                  control_, least, out_);
  }
  std::vector<uint32_t> Got() const { return std::vector<uint32_t>(out_, out_ + kValues); }

  int32_t NumEnds(Waited end) const {
    return __atomic_load_n(&control_->ends[static_cast<int>(end)], __ATOMIC_RELAXED);
  }

  // Whether the receiver ever saw less than all.
  bool IsCaught(Order order) {
    bool caught = false;
    for (uint64_t seed = 0; seed < 20; ++seed) {
      SetSeed(seed);
      *shared_ = Shared{};
      EXPECT_CUDA(cudaSuccess, Wait(1));
      EXPECT_CUDA(cudaSuccess, Send(order));
      EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(streams_[1]));
      EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(streams_[0]));
      caught = caught || Got() != std::vector<uint32_t>(kValues, 7);
    }
    return caught;
  }

  cudaStream_t streams_[2] = {};
  Shared* shared_ = nullptr;
  uint32_t* out_ = nullptr;
  Control* control_ = nullptr;
};

TEST_F(PeerTest, WhatIsReleasedIsSeen) { EXPECT_FALSE(IsCaught(Order::kRight)); }

TEST_F(PeerTest, AFlagBeforeItsDataIsCaught) {
  if (kTsan) GTEST_SKIP() << "the bug is a race";
  EXPECT_TRUE(IsCaught(Order::kFlagFirst));
}

TEST_F(PeerTest, AFlagThatOtherThreadsDoNotWaitForIsCaught) {
  if (kTsan) GTEST_SKIP() << "the bug is a race";
  EXPECT_TRUE(IsCaught(Order::kNoBarrier));
}

TEST_F(PeerTest, AKernelThatWaitsLeavesOtherStreamsAlone) {
  EXPECT_CUDA(cudaSuccess, Wait(1));
  for (int i = 0; i < 100; ++i) EXPECT_CUDA(cudaErrorNotReady, cudaStreamQuery(streams_[1]));
  EXPECT_GT(NumEnds(Waited::kLong), 0);
  cudaStream_t third = nullptr;
  EXPECT_CUDA(cudaSuccess, cudaStreamCreateWithFlags(&third, cudaStreamNonBlocking));
  EXPECT_CUDA(cudaSuccess, LaunchStep({reinterpret_cast<int32_t*>(out_), 0, 5}, third));
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(third));
  EXPECT_EQ(out_[0], 5u);
  EXPECT_CUDA(cudaSuccess, Send(Order::kRight));
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(streams_[1]));
  EXPECT_THAT(Got(), Each(7u));
  EXPECT_CUDA(cudaSuccess, cudaStreamDestroy(third));
}

TEST_F(PeerTest, TheHostEndsAWait) {
  EXPECT_CUDA(cudaSuccess, Wait(1));
  EXPECT_CUDA(cudaErrorNotReady, cudaStreamQuery(streams_[1]));
  __atomic_store_n(&control_->stop, 1, __ATOMIC_RELAXED);
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(streams_[1]));
  EXPECT_EQ(NumEnds(Waited::kStopped), kValues);
}

TEST_F(PeerTest, AWaitWithoutEndIsAHang) {
  SetHangLimit(100);
  EXPECT_CUDA(cudaSuccess, Wait(1));
  EXPECT_CUDA(cudaErrorLaunchTimeout, cudaStreamSynchronize(streams_[1]));
  EXPECT_THAT(LastMisuse(), HasSubstr("hangs"));
  SetHangLimit(60000);
  __atomic_store_n(&control_->stop, 1, __ATOMIC_RELAXED);
}

TEST_F(PeerTest, MemoryThatIsNotSharedIsAMisuse) {
  Share(false);
  EXPECT_CUDA(cudaSuccess, Send(Order::kRight));
  EXPECT_CUDA(cudaErrorLaunchFailure, cudaStreamSynchronize(streams_[0]));
  EXPECT_THAT(LastMisuse(), HasSubstr("that its device shares with none"));
  cudaSetDevice(0);
  cudaDeviceReset();
}

// Another device cannot know that it was given back.
TEST_F(PeerTest, StoresToMemoryThatWasSharedGoNowhere) {
  {
    const Lock lock(GetState().mutex);
    RetireShared(shared_, sizeof(Shared));
  }
  Share(false);
  EXPECT_CUDA(cudaSuccess, Send(Order::kRight));
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(streams_[0]));
  EXPECT_THAT(shared_->values, Each(0u));
}

// One block after another where not all have room.
TEST_F(PeerTest, AGridOfAnySizeWaits) {
  EXPECT_CUDA(cudaSuccess, Wait(1, 20));
  EXPECT_CUDA(cudaErrorNotReady, cudaStreamQuery(streams_[1]));
  EXPECT_CUDA(cudaSuccess, Send(Order::kRight));
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(streams_[1]));
  EXPECT_EQ(NumEnds(Waited::kCome), 20 * kValues);
}

TEST_F(PeerTest, ThereIsRoomForSoManyThatWait) {
  cudaStream_t more[2] = {};
  EXPECT_CUDA(cudaSuccess, cudaSetDevice(1));
  for (cudaStream_t& stream : more) {
    EXPECT_CUDA(cudaSuccess, cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  }
  for (const cudaStream_t stream : {streams_[1], more[0], more[1]}) {
    EXPECT_CUDA(cudaSuccess, Launch(&WaitKernel, {.grid = dim3(8), .block = kValues}, stream,
                                    shared_, control_, uint64_t{1}, out_));
  }
  EXPECT_CUDA(cudaErrorLaunchFailure, cudaDeviceSynchronize());
  EXPECT_THAT(LastMisuse(), HasSubstr("24 blocks wait for other devices"));
  cudaDeviceReset();
  shared_ = nullptr;
  out_ = nullptr;
}

}  // namespace
}  // namespace jevons::emu

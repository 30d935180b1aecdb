#include <gmock/gmock.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <set>
#include <vector>

#include "cuda/device/thread.h"
#include "tests/cuda_emu/tests/grid_run.h"

namespace jevons::emu {
namespace {

using device::BlockIdxX;
using device::SyncThreads;
using device::ThreadIdx;
using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;

TEST(Grid, EveryThreadOfEveryBlockRunsOnce) {
  ForSeeds(5, [] {
    std::vector<int> runs(3 * 2 * 5 * 96);
    RunKernel({.block = 96, .grid = dim3(3, 2, 5)}, [&] {
      EXPECT_EQ(device::BlockDim(), 96);
      EXPECT_EQ(device::GridDimX(), 3);
      EXPECT_EQ(device::GridDimY(), 2);
      EXPECT_EQ(device::GridDimZ(), 5);
      const int block = (device::BlockIdxZ() * 2 + device::BlockIdxY()) * 3 + BlockIdxX();
      ++runs[block * 96 + ThreadIdx()];
    });
    EXPECT_EQ(std::count(runs.begin(), runs.end(), 1), static_cast<int64_t>(runs.size()));
  });
}

TEST(Grid, OrderOfBlocksAndWarpsAndLanesFollowsTheSeed) {
  const auto order = [](uint64_t seed) {
    SetSeed(seed);
    std::vector<int> order;
    std::mutex mutex;
    RunKernel({.block = 64, .grid = dim3(4)}, [&] {
      const std::lock_guard lock(mutex);
      order.push_back(BlockIdxX() * 64 + ThreadIdx());
    });
    return order;
  };
  std::set<int> first_block, first_warp, first_lane;
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    const std::vector<int> once = order(seed);
    first_block.insert(once[0] / 64);
    first_warp.insert(once[0] % 64 / 32);
    first_lane.insert(once[0] % 32);
  }
  EXPECT_EQ(first_block.size(), 4u);
  EXPECT_EQ(first_warp.size(), 2u);
  EXPECT_GT(first_lane.size(), 15u);
  const std::vector<int> once = order(7);
  order(8);
  EXPECT_EQ(order(7), once);
}

TEST(Grid, SyncThreadsShowsWhatAllThreadsDidBefore) {
  ForSeeds(20, [] {
    RunKernel({.block = 256, .smem_bytes = 1024, .grid = dim3(5)}, [] {
      int* const shared = &device::SharedMemory<int>();
      for (int round = 0; round < 5; ++round) {
        shared[ThreadIdx()] = round * 1000 + BlockIdxX() + ThreadIdx();
        SyncThreads();
        const int other = (ThreadIdx() * 7 + 100) % 256;
        EXPECT_EQ(shared[other], round * 1000 + BlockIdxX() + other);
        SyncThreads();
      }
    });
  });
}

// A buffer is filled again long after it was handed over, but nothing waits for those who read it.
TEST(GridMisuse, ReadersFallBehindAWriterThatDoesNotWait) {
  if (kTsan) GTEST_SKIP() << "the bug is a race";
  int num_late = 0;
  ForSeeds(200, [&] {
    RunKernel({.block = 128, .smem_bytes = 4}, [&] {
      int& shared = device::SharedMemory<int>();
      if (ThreadIdx() == 0) shared = 1;
      SyncThreads();
      if (device::WarpIdx() == 0) {
        for (int i = 0; i < 200; ++i) device::SyncWarp();
        if (ThreadIdx() == 0) shared = 2;
      } else if (ThreadIdx() == 127) {
        num_late += shared == 2;
      }
    });
  });
  EXPECT_GT(num_late, 0);
}

TEST(Grid, NamedBarriersHandOverBothWays) {
  constexpr int kFull = 1, kEmpty = 2;
  ForSeeds(20, [] {
    RunKernel({.block = 128, .smem_bytes = 256}, [] {
      int* const shared = &device::SharedMemory<int>();
      for (int round = 0; round < 6; ++round) {
        if (device::WarpIdx() < 2) {
          if (round > 0) device::BarrierSync(kEmpty, 128);
          shared[ThreadIdx()] = round * 64 + ThreadIdx();
          device::BarrierArrive(kFull, 128);
        } else {
          device::BarrierSync(kFull, 128);
          EXPECT_EQ(shared[127 - ThreadIdx()], round * 64 + 127 - ThreadIdx());
          if (round < 5) device::BarrierArrive(kEmpty, 128);
        }
      }
    });
  });
}

TEST(Grid, AtomicAddGivesEachThreadItsOwnNumber) {
  ForSeeds(5, [] {
    int32_t counter = 0;
    std::set<int32_t> numbers;
    std::mutex mutex;
    RunKernel({.block = 128, .grid = dim3(6)}, [&] {
      const int32_t number = device::AtomicAdd(&counter, 1);
      const std::lock_guard lock(mutex);
      numbers.insert(number);
    });
    EXPECT_EQ(counter, 6 * 128);
    EXPECT_EQ(numbers.size(), 6u * 128);
  });
}

TEST(Grid, TheLastBlockToCountSeesWhatTheOthersWrote) {
  ForSeeds(20, [] {
    std::vector<int> written(8);
    int32_t counter = 0;
    int sum = 0;
    RunKernel({.block = 32, .grid = dim3(8)}, [&] {
      if (ThreadIdx() != 0) return;
      written[BlockIdxX()] = 1 + BlockIdxX();
      if (device::AtomicAddAcqRel(&counter, 1) != 7) return;
      for (const int value : written) sum += value;
    });
    EXPECT_EQ(sum, 36);
  });
}

TEST(Grid, SharedMemoryStartsAsNanInEveryBlock) {
  RunKernel({.block = 32, .smem_bytes = 400, .grid = dim3(6)}, [] {
    unsigned char* const shared = &device::SharedMemory<unsigned char>();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(shared) % 1024, 0u);
    for (int i = ThreadIdx(); i < 400; i += 32) {
      EXPECT_EQ(shared[i], 0xFF);
      shared[i] = 0;
    }
  });
}

TEST(GridMisuse, SharedMemoryLargerThanTheLaunchGave) {
  struct Large {
    char bytes[100];
  };
  EXPECT_THAT(Misused({.smem_bytes = 99}, [] { device::SharedMemory<Large>(); }),
              AllOf(HasSubstr("SharedMemory of 100 bytes where the launch gave 99"),
                    HasSubstr("TestKernel block (0,0,0) thread"), HasSubstr("grid_test.cc:")));
}

#if !defined(__SANITIZE_ADDRESS__)
TEST(GridMisuse, WritePastSharedMemory) {
  for (const int offset : {-1, 64, 64 + 1023}) {
    EXPECT_THAT(Misused({.smem_bytes = 64},
                        [&] {
                          unsigned char* const shared = &device::SharedMemory<unsigned char>();
                          if (ThreadIdx() == 3) shared[offset] = 1;
                        }),
                HasSubstr("a write outside of the block's 64 bytes of shared memory"));
  }
}
#endif

TEST(GridMisuse, BarrierThatAThreadNeverReaches) {
  ForSeeds(10, [] {
    EXPECT_THAT(Misused({.block = 96, .grid = dim3(3)},
                        [] {
                          if (ThreadIdx() == 40) return;
                          SyncThreads();
                        }),
                AllOf(HasSubstr("wait for each other in TestKernel"),
                      ContainsRegex("threads 0-39, 41-95: SyncThreads at .*grid_test.cc:"),
                      HasSubstr("threads 40: has ended")));
  });
}

TEST(GridMisuse, WarpThatEndedBeforeABarrier) {
  EXPECT_THAT(Misused({.block = 64},
                      [] {
                        if (device::WarpIdx() == 1) return;
                        SyncThreads();
                      }),
              AllOf(HasSubstr("threads 0-31: SyncThreads"), HasSubstr("threads 32-63: has ended")));
}

TEST(GridMisuse, BarrierInTwoBranchesOfOneWarp) {
  // Within a macro all lines are one.
  const auto kernel = [] {
    if (ThreadIdx() % 2 == 0) {
      SyncThreads();
    } else {
      SyncThreads();
    }
  };
  EXPECT_THAT(Misused({.block = 64}, kernel),
              ContainsRegex("divergent warp: this lane comes to SyncThreads while .* wait in "
                            "SyncThreads at .*grid_test.cc:.* in TestKernel block"));
}

TEST(GridMisuse, NamedBarrierWithTwoCounts) {
  EXPECT_THAT(
      Misused({.block = 96}, [] { device::BarrierSync(1, device::WarpIdx() == 0 ? 64 : 96); }),
      ContainsRegex("BarrierSync of (64|96) threads at a barrier where others came for (96|64)"));
}

TEST(GridMisuse, NamedBarrierWithTooLargeACount) {
  EXPECT_THAT(Misused({.block = 64},
                      [] {
                        if (device::WarpIdx() == 0) device::BarrierSync(3, 64);
                      }),
              AllOf(HasSubstr("wait for each other"), HasSubstr("threads 0-31: BarrierSync")));
}

TEST(GridMisuse, NamedBarrierWithTooSmallACount) {
  EXPECT_THAT(Misused({.block = 96}, [] { device::BarrierSync(3, 64); }),
              ContainsRegex("threads .*: BarrierSync"));
}

TEST(GridMisuse, NamedBarrierOfPartsOfWarps) {
  EXPECT_THAT(Misused({.block = 64}, [] { device::BarrierSync(1, 48); }),
              HasSubstr("barrier 1 of 48 threads in a block of 64"));
  EXPECT_THAT(Misused({.block = 64}, [] { device::BarrierSync(16, 64); }), HasSubstr("barrier 16"));
}

TEST(GridMisuse, NamedBarrierLeftWithArrivals) {
  EXPECT_THAT(Misused({.block = 64},
                      [] {
                        if (device::WarpIdx() == 0) device::BarrierArrive(2, 64);
                      }),
              HasSubstr("barrier 2 was left with 32 of 64 threads"));
}

TEST(GridMisuse, BlockThatIsNoWholeNumberOfWarps) {
  EXPECT_THAT(Misused({.block = 48}, [] {}), HasSubstr("with 48 threads a block"));
}

TEST(GridMisuse, TheNextGridRunsAfterOneThatWasDropped) {
  for (int i = 0; i < 3; ++i) {
    EXPECT_NE(Misused({.block = 64, .grid = dim3(4)},
                      [] {
                        if (ThreadIdx() > 0) SyncThreads();
                      }),
              "");
    std::atomic<int> counter = 0;
    RunKernel({.block = 64, .grid = dim3(4)}, [&] {
      SyncThreads();
      ++counter;
    });
    EXPECT_EQ(counter, 256);
  }
}

}  // namespace
}  // namespace jevons::emu

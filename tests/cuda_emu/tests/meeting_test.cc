// Blocks that wait for other blocks.
#include <gmock/gmock.h>

#include <vector>

#include "cuda/last_block.h"
#include "tests/cuda_emu/tests/grid_run.h"

namespace jevons::emu {
namespace {

using cuda::BlockMeeting;
using device::BlockIdxX;
using device::ThreadIdx;
using ::testing::HasSubstr;

TEST(Meeting, TheLastBlocksSeeWhatAllHaveWritten) {
  ForSeeds(20, [] {
    constexpr int kBlocks = 11;
    for (const int num_last : {1, 2, 3, 6}) {
      BlockMeeting meeting;
      std::vector<int> written(kBlocks);
      std::vector<int> parts(num_last);
      RunKernel({.block = 64, .smem_bytes = 4, .grid = dim3(kBlocks)}, [&] {
        if (ThreadIdx() == 63) written[BlockIdxX()] = 1;
        int32_t& shared = device::SharedMemory<int32_t>();
        const int number = NumberAmongLast(&meeting, num_last, shared);
        if (number < 0) return;
        WaitForBlocks(&meeting, num_last);
        int sum = 0;
        for (const int one : written) sum += one;
        if (ThreadIdx() == 5) parts[number] = sum;
      });
      EXPECT_EQ(parts, std::vector<int>(num_last, kBlocks));
      EXPECT_EQ(meeting.num_come, 0);
      EXPECT_EQ(meeting.num_gone, 0);
    }
  });
}

// A thread says that its block has come, and nothing makes it wait for the warp that stores.
TEST(MeetingMisuse, ABlockThatComesBeforeItHasStored) {
  if (kTsan) GTEST_SKIP() << "the bug is a race";
  constexpr int kBlocks = 4;
  int num_wrong = 0;
  ForSeeds(200, [&] {
    int32_t counter = 0;
    std::vector<int> written(kBlocks);
    RunKernel({.block = 64, .grid = dim3(kBlocks)}, [&] {
      if (device::WarpIdx() == 1) {
        for (int i = 0; i < 100; ++i) device::SyncWarp();
        if (ThreadIdx() == 63) written[BlockIdxX()] = 1;
      }
      if (ThreadIdx() == 0) {
        device::AtomicAddAcqRel(&counter, 1);
        device::WaitAtLeast(&counter, kBlocks);
      }
      device::SyncThreads();
      if (ThreadIdx() != 5) return;
      for (const int one : written) num_wrong += one == 0;
    });
  });
  EXPECT_GT(num_wrong, 100);
}

TEST(MeetingMisuse, WhoeverNeverComes) {
  int32_t counter = 0;
  EXPECT_THAT(Misused({.grid = dim3(3)},
                      [&] {
                        if (BlockIdxX() == 1) return;
                        if (ThreadIdx() != 0) return;
                        device::AtomicAddAcqRel(&counter, 1);
                        device::WaitAtLeast(&counter, 3);
                      }),
              HasSubstr("blocks wait for others that do not come in TestKernel"));
}

// Not all of a grid can wait for all of it: the device holds a few.
TEST(MeetingMisuse, MoreBlocksThanAreThereAtOnce) {
  int32_t counter = 0;
  EXPECT_THAT(Misused({.grid = dim3(100)},
                      [&] {
                        if (ThreadIdx() != 0) return;
                        device::AtomicAddAcqRel(&counter, 1);
                        device::WaitAtLeast(&counter, 100);
                      }),
              HasSubstr("WaitAtLeast"));
}

}  // namespace
}  // namespace jevons::emu

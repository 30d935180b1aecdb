#include <gmock/gmock.h>

#include <atomic>
#include <vector>

#include "cuda/device/mbarrier.h"
#include "tests/cuda_emu/tests/grid_run.h"

namespace jevons::emu {
namespace {

using device::LaneIdx;
using device::MBarrier;
using device::ThreadIdx;
using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;

// Global memory with the numbers 0, 1, 2, ...
class Numbers {
 public:
  explicit Numbers(int num) {
    cudaMalloc(&data_, static_cast<size_t>(num) * 4);
    for (int i = 0; i < num; ++i) data_[i] = i;
  }
  ~Numbers() { cudaFree(data_); }
  Numbers(const Numbers&) = delete;
  Numbers& operator=(const Numbers&) = delete;
  int* data() const { return data_; }

 private:
  int* data_ = nullptr;
};

int* SharedInts() { return &device::SharedMemory<int>(); }

TEST(CpAsync, BytesAreThereAfterTheWait) {
  const Numbers numbers(1024);
  ForSeeds(20, [&] {
    RunKernel({.block = 64, .smem_bytes = 64 * 32}, [&] {
      int* const mine = SharedInts() + ThreadIdx() * 8;
      device::CpAsync<16>(mine, numbers.data() + ThreadIdx() * 4, 16);
      device::CpAsync<8>(mine + 4, numbers.data() + ThreadIdx() * 2, 8);
      device::CpAsync<4>(mine + 6, numbers.data() + ThreadIdx(), 4);
      device::CpAsyncCommit();
      device::CpAsyncWait<0>();
      device::SyncThreads();
      const int other = 63 - ThreadIdx();
      const int* const theirs = SharedInts() + other * 8;
      for (int i = 0; i < 4; ++i) EXPECT_EQ(theirs[i], other * 4 + i);
      EXPECT_EQ(theirs[4], other * 2);
      EXPECT_EQ(theirs[5], other * 2 + 1);
      EXPECT_EQ(theirs[6], other);
    });
  });
}

TEST(CpAsync, RestOfTheDestinationBecomesZero) {
  const Numbers numbers(4);
  ForSeeds(5, [&] {
    RunKernel({.smem_bytes = 64}, [&] {
      if (ThreadIdx() > 0) return;
      device::CpAsync<16>(SharedInts(), numbers.data() + 0, 8);
      device::CpAsync<16>(SharedInts() + 4, nullptr, 0);
      device::CpAsyncCommit();
      device::CpAsyncWait<0>();
      EXPECT_EQ(std::vector<int>(SharedInts(), SharedInts() + 8),
                (std::vector<int>{0, 1, 0, 0, 0, 0, 0, 0}));
    });
  });
}

TEST(CpAsync, WaitCoversTheOldestGroups) {
  const Numbers numbers(64);
  std::atomic<int> early = 0, late = 0;
  ForSeeds(30, [&] {
    RunKernel({.smem_bytes = 64}, [&] {
      if (ThreadIdx() > 0) return;
      for (int i = 0; i < 3; ++i) {
        device::CpAsync<4>(SharedInts() + i, numbers.data() + i, 4);
        device::CpAsyncCommit();
      }
      device::CpAsyncWait<2>();
      EXPECT_EQ(SharedInts()[0], 0);
      ++(SharedInts()[1] == 1 ? early : late);
      device::CpAsyncWait<1>();
      EXPECT_EQ(SharedInts()[1], 1);
      device::CpAsyncWait<0>();
      EXPECT_EQ(SharedInts()[2], 2);
    });
  });
  EXPECT_GT(early, 0);
  EXPECT_GT(late, early);
}

TEST(CpAsync, CountsTheBytesThatAreRead) {
  const Numbers numbers(1024);
  const Numbers others(16);
  ResetCounters();
  RunKernel({.smem_bytes = 512}, [&] {
    device::CpAsync<16>(SharedInts() + ThreadIdx() * 4, numbers.data() + ThreadIdx() * 4,
                        ThreadIdx() < 8 ? 16 : 0);
    device::CpAsyncCommit();
    device::LoadStream16(others.data());
    device::CpAsyncWait<0>();
  });
  EXPECT_EQ(GlobalBytesRead(numbers.data()), 8 * 16);
  EXPECT_EQ(GlobalBytesRead(others.data()), 32 * 16);
  EXPECT_EQ(GlobalBytesRead(), 40 * 16);
}

TEST(CpAsyncMisuse, NoWaitShowsNan) {
  const Numbers numbers(1024);
  std::atomic<int> num_nan = 0;
  Misused({.smem_bytes = 128}, [&] {
    device::CpAsync<4>(SharedInts() + ThreadIdx(), numbers.data() + ThreadIdx(), 4);
    device::CpAsyncCommit();
    device::SyncThreads();
    num_nan += SharedInts()[ThreadIdx()] == -1;
    device::CpAsyncWait<0>();
  });
  EXPECT_GT(num_nan, 20);
}

TEST(CpAsyncMisuse, SourceIsReadAtTheWait) {
  const Numbers numbers(32);
  std::atomic<int> num_late = 0;
  Misused({.smem_bytes = 128}, [&] {
    device::CpAsync<4>(SharedInts() + ThreadIdx(), numbers.data() + ThreadIdx(), 4);
    device::CpAsyncCommit();
    numbers.data()[ThreadIdx()] = -7;
    device::CpAsyncWait<0>();
    num_late += SharedInts()[ThreadIdx()] == -7;
  });
  EXPECT_GT(num_late, 20);
}

TEST(CpAsyncMisuse, EndWithCopiesUnderWay) {
  const Numbers numbers(1024);
  for (const bool committed : {false, true}) {
    const auto kernel = [&] {
      for (int i = 0; i < 4; ++i) {
        device::CpAsync<4>(SharedInts() + ThreadIdx() + i * 32, numbers.data(), 4);
      }
      if (committed) device::CpAsyncCommit();
    };
    EXPECT_THAT(Misused({.smem_bytes = 512}, kernel),
                ContainsRegex("ends with [1-4] copies of CpAsync that it has not waited for; in "
                              "TestKernel block .* thread [0-9]+ at .*async_test.cc"));
  }
}

TEST(CpAsyncMisuse, StageOverwrittenEarly) {
  const Numbers numbers(1024);
  const auto kernel = [&] {
    for (int i = 0; i < 4; ++i) {
      device::CpAsync<16>(SharedInts() + ThreadIdx() * 4, numbers.data(), 16);
      device::CpAsyncCommit();
    }
    device::CpAsyncWait<0>();
  };
  EXPECT_THAT(Misused({.smem_bytes = 512}, kernel),
              HasSubstr("a copy to bytes that another copy under way writes"));
}

TEST(CpAsyncMisuse, OutOfPlace) {
  const Numbers numbers(4);
  const auto misuse = [&](int shared, int global, int bytes) {
    const auto kernel = [&] {
      char* const to = &device::SharedMemory<char>() + shared;
      const char* const from = reinterpret_cast<const char*>(numbers.data()) + global;
      device::CpAsync<16>(to, from, bytes);
      device::CpAsyncCommit();
      device::CpAsyncWait<0>();
    };
    return Misused({.smem_bytes = 64}, kernel);
  };
  EXPECT_THAT(misuse(56, 0, 16), HasSubstr("CpAsync: 16 bytes at offset 56 are not within"));
  EXPECT_THAT(misuse(-16, 0, 16), HasSubstr("CpAsync: 16 bytes at offset -16 are not within"));
  EXPECT_THAT(misuse(8, 0, 16), HasSubstr("not aligned to 16"));
  EXPECT_THAT(misuse(0, 8, 8), HasSubstr("not aligned to its size"));
  EXPECT_THAT(misuse(0, 16, 16), AllOf(HasSubstr("a read of 16 bytes"), HasSubstr("TestKernel"),
                                       HasSubstr("async_test")));
  EXPECT_THAT(misuse(0, 0, 17), HasSubstr("CpAsync of 17 of 16 bytes"));
}

TEST(LoadStreamMisuse, ReadPastABuffer) {
  const Numbers numbers(8);
  const auto kernel = [&] { device::LoadStream16(numbers.data() + ThreadIdx() * 4); };
  EXPECT_THAT(Misused({}, kernel),
              ContainsRegex("a read of 16 bytes .* in TestKernel block .* thread "
                            "[0-9]+ at .*async_test.cc:"));
}

constexpr int kStages = 3;
constexpr int kStageInts = 32;
struct Pipeline {
  alignas(16) int stage[kStages][kStageInts];
  MBarrier full[kStages];
  MBarrier empty[kStages];
};

// What the planted bugs leave out.
struct Bugs {
  bool no_init = false;
  bool no_fence = false;
  bool no_full_wait = false;
  bool no_empty_wait = false;
  bool no_expect = false;
  bool no_arrive = false;
  bool wrong_parity = false;
  bool extra_arrive = false;
};

// Warp 0 copies `rounds` stages, warps 1 and 2 add them up. Gives the sums of the lanes of warp 1.
std::vector<int64_t> Pump(const Numbers& numbers, int rounds, const Bugs& bugs,
                          std::string& misuse) {
  std::vector<int64_t> sums(32);
  const auto consume = [&](Pipeline& shared) {
    for (int i = 0; i < rounds; ++i) {
      const int s = i % kStages;
      const uint32_t parity = static_cast<uint32_t>(i / kStages % 2);
      if (!bugs.no_full_wait) device::MBarrierWait(shared.full[s], parity ^ bugs.wrong_parity);
      const int value = shared.stage[s][LaneIdx()];
      if (device::WarpIdx() == 1) sums[LaneIdx()] += value;
      device::SyncWarp();
      if (LaneIdx() == 0 && !bugs.no_arrive) device::MBarrierArrive(shared.empty[s]);
    }
  };
  const auto produce = [&](Pipeline& shared) {
    for (int i = 0; i < rounds; ++i) {
      const int s = i % kStages;
      const uint32_t parity = static_cast<uint32_t>(i / kStages % 2);
      if (!bugs.no_empty_wait) device::MBarrierWait(shared.empty[s], parity ^ 1);
      constexpr int kBytes = kStageInts * 4;
      if (bugs.no_expect) {
        device::MBarrierArrive(shared.full[s]);
      } else {
        device::MBarrierArriveExpect(shared.full[s], kBytes);
      }
      if (bugs.extra_arrive) device::MBarrierArrive(shared.full[s]);
      device::BulkCopy(shared.stage[s], numbers.data() + i * kStageInts, kBytes, shared.full[s]);
    }
  };
  const auto kernel = [&] {
    auto& shared = device::SharedMemory<Pipeline>();
    if (ThreadIdx() == 0 && !bugs.no_init) {
      for (int s = 0; s < kStages; ++s) {
        device::MBarrierInit(shared.full[s], 1);
        device::MBarrierInit(shared.empty[s], 2);
      }
      if (!bugs.no_fence) device::FenceMBarrierInit();
    }
    device::SyncThreads();
    if (device::WarpIdx() > 0) consume(shared);
    if (ThreadIdx() == 0) produce(shared);
  };
  misuse = Misused({.block = 96, .smem_bytes = sizeof(Pipeline)}, kernel);
  return sums;
}

constexpr int kRounds = 11;
int64_t SumOfLane(int lane) { return kRounds * lane + kStageInts * (kRounds * (kRounds - 1) / 2); }

TEST(BulkCopy, PipelineHandsOverEveryStage) {
  const Numbers numbers(kRounds * kStageInts);
  ForSeeds(50, [&] {
    std::string misuse;
    const std::vector<int64_t> sums = Pump(numbers, kRounds, {}, misuse);
    EXPECT_EQ(misuse, "");
    for (int lane = 0; lane < 32; ++lane) EXPECT_EQ(sums[lane], SumOfLane(lane));
  });
}

std::string PumpMisuse(const Bugs& bugs) {
  const Numbers numbers(kRounds * kStageInts);
  std::string misuse;
  Pump(numbers, kRounds, bugs, misuse);
  return misuse;
}

TEST(BulkCopyMisuse, PlantedBugsAreReported) {
  if (kTsan) GTEST_SKIP() << "the bugs are races";
  ForSeeds(10, [] {
    EXPECT_THAT(PumpMisuse({.no_init = true}), HasSubstr("MBarrier is not initialised"));
    EXPECT_THAT(PumpMisuse({.no_fence = true}), HasSubstr("no FenceMBarrierInit"));
    EXPECT_THAT(PumpMisuse({.no_empty_wait = true}),
                ContainsRegex("another copy under way writes|more than the 1 arrivals|two phases"));
    EXPECT_NE(PumpMisuse({.no_expect = true}), "");
    EXPECT_THAT(PumpMisuse({.no_arrive = true}),
                AllOf(HasSubstr("wait for each other"), HasSubstr("threads 0: MBarrierWait at "),
                      HasSubstr("2 of 2 arrivals and 0 bytes are missing")));
    EXPECT_NE(PumpMisuse({.wrong_parity = true}), "");
    EXPECT_NE(PumpMisuse({.extra_arrive = true}), "");
  });
}

TEST(BulkCopyMisuse, NoWaitGivesWrongValuesOrAReport) {
  if (kTsan) GTEST_SKIP() << "the bug is a race";
  const Numbers numbers(kRounds * kStageInts);
  ForSeeds(10, [&] {
    std::string misuse;
    const std::vector<int64_t> sums = Pump(numbers, kRounds, {.no_full_wait = true}, misuse);
    EXPECT_TRUE(!misuse.empty() || sums[5] != SumOfLane(5));
  });
}

TEST(BulkCopyMisuse, OutOfPlaceOrLeftAlone) {
  const Numbers numbers(64);
  const auto misuse = [&](int shared, int global, int bytes) {
    const auto kernel = [&] {
      auto& barrier = device::SharedMemory<MBarrier>();
      if (ThreadIdx() > 0) return;
      device::MBarrierInit(barrier, 1);
      device::FenceMBarrierInit();
      device::MBarrierArriveExpect(barrier, bytes);
      for (int i = 0; i < 4; ++i) {
        device::BulkCopy(&device::SharedMemory<char>() + shared + 16 * i, numbers.data() + global,
                         bytes, barrier);
      }
    };
    return Misused({.smem_bytes = 256}, kernel);
  };
  EXPECT_THAT(misuse(24, 0, 16), HasSubstr("not aligned to 16"));
  EXPECT_THAT(misuse(16, 1, 16), HasSubstr("multiples of 16"));
  EXPECT_THAT(misuse(16, 0, 8), HasSubstr("multiples of 16"));
  EXPECT_THAT(misuse(16, 0, 256), HasSubstr("are not within the block's"));
  EXPECT_THAT(misuse(16, 64, 16), HasSubstr("a read of 16 bytes"));
  EXPECT_THAT(misuse(16, 0, 16), HasSubstr("bulk copies that nobody has waited for"));
}

}  // namespace
}  // namespace jevons::emu

#include "cuda/device/wgmma.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "cuda/device/mbarrier.h"
#include "cuda/device/numeric.h"
#include "tests/cuda_emu/tests/grid_run.h"

namespace jevons::emu {
namespace {

using device::LaneIdx;
using device::Swizzle;
using device::ThreadIdx;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;

constexpr int kM = 64;
constexpr int kK = 64;  // four products

// Small whole numbers: every sum is exact.
float A(int m, int k) { return static_cast<float>((m * 5 + k * 3) % 17 - 8); }
float B(int k, int n) { return static_cast<float>((k * 7 + n * 11) % 13 - 6); }
float D(int m, int n) {
  float sum = 0;
  for (int k = 0; k < kK; ++k) sum += A(m, k) * B(k, n);
  return sum;
}

// Which 16-byte piece of a row holds what piece `piece` of it would without a swizzle: the tables
// of 9.7.15.5.1 show eight rows of 32, 64 or 128 bytes.
int SwizzledPiece(int width, int row, int piece) {
  static constexpr int kRows32[8] = {0, 0, 0, 0, 1, 1, 1, 1};
  static constexpr int kRows64[8] = {0, 0, 1, 1, 2, 2, 3, 3};
  static constexpr int kRows128[8] = {0, 1, 2, 3, 4, 5, 6, 7};
  return piece ^ (width == 32 ? kRows32 : width == 64 ? kRows64 : kRows128)[row];
}

int WidthOf(Swizzle swizzle) {
  return swizzle == Swizzle::k32 ? 32 : swizzle == Swizzle::k64 ? 64 : 128;
}

// An operand of `rows` along M or N and kK along K: where its elements lie, and the descriptor's
// fields. Tiles of eight rows follow each other in the order that each layout makes natural.
struct Layout {
  Swizzle swizzle;
  bool transposed;
  int rows;

  int Offset(int i, int k) const {
    if (swizzle == Swizzle::kNone) {
      // Tiles of 128 bytes, those along K first.
      const int tile = (i / 8 * (kK / 8) + k / 8) * 128;
      return tile + (transposed ? k % 8 * 16 + i % 8 * 2 : i % 8 * 16 + k % 8 * 2);
    }
    const int width = WidthOf(swizzle);
    const int across = transposed ? i : k;  // along the 16-byte pieces
    const int down = transposed ? k : i;
    const int num_down = transposed ? kK : rows;
    const int column = across * 2 / width;
    const int piece = across * 2 % width / 16;
    return column * num_down * width + down / 8 * 8 * width + down % 8 * width +
           SwizzledPiece(width, down % 8, piece) * 16 + across * 2 % 16;
  }
  // Where the 16 columns from k on begin.
  int Start(int k) const {
    if (swizzle == Swizzle::kNone) return k / 8 * 128;
    const int width = WidthOf(swizzle);
    if (transposed) return k / 8 * 8 * width;
    return k * 2 / width * rows * width + k * 2 % width;
  }
  int Leading() const {
    if (swizzle == Swizzle::kNone) return 128;
    return transposed ? kK * WidthOf(swizzle) : 16;
  }
  int Stride() const { return swizzle == Swizzle::kNone ? kK / 8 * 128 : 8 * WidthOf(swizzle); }
  int Bytes() const { return std::max(rows, 64) * kK * 2; }

  uint64_t Descriptor(const unsigned char* base, int k) const {
    return device::SmemDescriptor(base + Start(k), Leading(), Stride(), swizzle);
  }
};

void StoreBf16(unsigned char* at, float value) {
  const device::Bf16 bf16 = device::ToBf16(value);
  std::memcpy(at, &bf16, 2);
}

// Writes b (and a, behind it) to shared memory, all threads together.
void StoreOperands(const Layout& b, unsigned char* base) {
  const int dim = device::BlockDim();
  for (int i = ThreadIdx(); i < b.rows * kK; i += dim) {
    StoreBf16(base + b.Offset(i / kK, i % kK), B(i % kK, i / kK));
  }
  const Layout a{Swizzle::k128, false, kM};
  for (int i = ThreadIdx(); i < kM * kK; i += dim) {
    StoreBf16(base + b.Bytes() + a.Offset(i / kK, i % kK), A(i / kK, i % kK));
  }
  device::FenceProxyAsync();
  device::SyncThreads();
}

// The registers of a for 16 columns: as those of MmaBf16, rows of the warp.
void LoadA(uint32_t (&a)[4], int k) {
  const int m = device::WarpIdx() % 4 * 16 + LaneIdx() / 4;
  const int c = k + 2 * (LaneIdx() % 4);
  for (int i = 0; i < 4; ++i) {
    const int row = m + i % 2 * 8;
    const int column = c + i / 2 * 8;
    a[i] = device::PackBf16(A(row, column), A(row, column + 1));
  }
}

template <int N>
void ExpectD(const float (&d)[N / 2], float term) {
  // Value 4 j + 2 h + e: row 16 warp + lane / 4 + 8 h, column 8 j + 2 (lane % 4) + e.
  for (int i = 0; i < N / 2; ++i) {
    const int m = device::WarpIdx() % 4 * 16 + LaneIdx() / 4 + 8 * (i / 2 % 2);
    const int n = 8 * (i / 4) + 2 * (LaneIdx() % 4) + i % 2;
    ASSERT_EQ(d[i], D(m, n) + term) << "thread " << ThreadIdx() << " value " << i;
  }
}

template <int N, bool kTransposed>
void CheckProducts(Swizzle swizzle) {
  const Layout b{swizzle, kTransposed, N};
  const Layout a_layout{Swizzle::k128, false, kM};
  const Shape shape{.block = N <= 64 ? 256 : 128, .smem_bytes = b.Bytes() + a_layout.Bytes()};
  RunKernel(shape, [&] {
    unsigned char* const base = &device::SharedMemory<unsigned char>();
    StoreOperands(b, base);
    float d[N / 2];
    float e[N / 2];
    for (float& value : e) value = 3;
    device::WgmmaFence(d, e);
    for (int k = 0; k < kK; k += 16) {
      uint32_t a[4];
      LoadA(a, k);
      device::WgmmaBf16<N, kTransposed>(d, a, b.Descriptor(base, k), k > 0);
      device::WgmmaBf16Shared<N, kTransposed>(e, a_layout.Descriptor(base + b.Bytes(), k),
                                              b.Descriptor(base, k), true);
    }
    device::WgmmaCommit();
    device::WgmmaWait<0>(d, e);
    ExpectD<N>(d, 0);
    ExpectD<N>(e, 3);
  });
}

class WgmmaSwizzle : public ::testing::TestWithParam<Swizzle> {};
INSTANTIATE_TEST_SUITE_P(NoneThen128Then64Then32, WgmmaSwizzle,
                         ::testing::Values(Swizzle::kNone, Swizzle::k128, Swizzle::k64,
                                           Swizzle::k32));

TEST_P(WgmmaSwizzle, ProductsOfKMajor) {
  CheckProducts<8, false>(GetParam());
  CheckProducts<16, false>(GetParam());
  CheckProducts<32, false>(GetParam());
  CheckProducts<64, false>(GetParam());
  CheckProducts<128, false>(GetParam());
  CheckProducts<256, false>(GetParam());
}

TEST_P(WgmmaSwizzle, ProductsOfTransposed) {
  CheckProducts<8, true>(GetParam());
  CheckProducts<64, true>(GetParam());
  CheckProducts<128, true>(GetParam());
}

// What a small kernel of one warpgroup does otherwise than it should.
struct Bugs {
  bool no_fence = false;
  bool no_wait = false;
  bool no_end = false;  // nor a wait at the end
  bool no_proxy_fence = false;
  bool async_copy = false;  // of b to where it is
  bool early_copy = false;  // to what the product still reads
  bool early_store = false;
  bool wrong_swizzle = false;
  bool one_warp_less = false;
  bool other_operand = false;
};

struct Seen {
  std::string misuse;
  std::atomic<int> num_right = 0;
  std::atomic<int> num_nan = 0;
};

void Plant(const Bugs& bugs, Seen& seen) {
  void* global = nullptr;
  cudaMalloc(&global, 4096);
  std::memset(global, 0, 4096);
  const Layout b{Swizzle::k128, false, 16};
  const Layout wrong{Swizzle::k64, false, 16};
  const auto kernel = [&] {
    unsigned char* const base = &device::SharedMemory<unsigned char>();
    StoreOperands(b, base);
    const auto copy = [&] {
      device::CpAsync<16>(base + ThreadIdx() * 16, global, 16);
      device::CpAsyncCommit();
    };
    if (bugs.async_copy) {
      copy();
      device::CpAsyncWait<0>();
      if (!bugs.no_proxy_fence) device::FenceProxyAsync();
      device::SyncThreads();
    }
    float d[8];
    if (!bugs.no_fence) device::WgmmaFence(d);
    if (bugs.one_warp_less && device::WarpIdx() == 3) return;
    uint32_t a[4];
    LoadA(a, 0);
    const int k = bugs.other_operand && device::WarpIdx() == 2 ? 16 : 0;
    device::WgmmaBf16<16>(d, a, (bugs.wrong_swizzle ? wrong : b).Descriptor(base, k), false);
    device::WgmmaCommit();
    if (bugs.early_copy) copy();
    if (bugs.early_store) {
      for (int i = 0; i < 16; ++i) base[ThreadIdx() * 16 + i] = 0;
    }
    if (!bugs.no_wait && !bugs.no_end) device::WgmmaWait<0>(d);
    for (int i = 0; i < 8; ++i) {
      const int m = device::WarpIdx() * 16 + LaneIdx() / 4 + 8 * (i / 2 % 2);
      const int n = 8 * (i / 4) + 2 * (LaneIdx() % 4) + i % 2;
      float right = 0;
      for (int kk = 0; kk < 16; ++kk) right += A(m, kk) * B(kk, n);
      seen.num_right += d[i] == right;
      seen.num_nan += d[i] != d[i];
    }
    if (bugs.no_wait) device::WgmmaWait<0>(d);
    device::CpAsyncWait<0>();
  };
  seen.misuse = Misused({.block = 128, .smem_bytes = 65536}, kernel);
  cudaFree(global);
}

std::string MisuseOf(const Bugs& bugs) {
  Seen seen;
  Plant(bugs, seen);
  return seen.misuse;
}
int NumRight(const Bugs& bugs) {
  Seen seen;
  Plant(bugs, seen);
  return seen.num_right;
}

TEST(Wgmma, KernelWithoutBugsIsRight) {
  Seen seen;
  Plant({}, seen);
  EXPECT_EQ(seen.misuse, "");
  EXPECT_EQ(seen.num_right, 1024);
}

TEST(WgmmaMisuse, PlantedBugsShow) {
  if (kTsan) GTEST_SKIP() << "some of the bugs are races";
  ForSeeds(5, [] {
    EXPECT_THAT(MisuseOf({.no_fence = true}), HasSubstr("without a WgmmaFence before the first"));
    Seen seen;
    Plant({.no_wait = true}, seen);
    EXPECT_EQ(seen.num_nan, 1024);
    EXPECT_THAT(MisuseOf({.no_end = true}), HasSubstr("a wgmma that it has not waited for"));
    EXPECT_EQ(MisuseOf({.async_copy = true}), "");
    EXPECT_THAT(MisuseOf({.no_proxy_fence = true, .async_copy = true}),
                HasSubstr("which made no FenceProxyAsync after its wait"));
    EXPECT_THAT(MisuseOf({.early_copy = true}),
                ContainsRegex("a copy to bytes that a wgmma under way reads.*wgmma_test.cc"));
    EXPECT_LT(NumRight({.early_store = true}), 1024);
    EXPECT_LT(NumRight({.wrong_swizzle = true}), 600);
    EXPECT_THAT(MisuseOf({.one_warp_less = true}),
                HasSubstr("warps 0 and 3 of a warpgroup made 1 and 0 wgmmas"));
    EXPECT_THAT(MisuseOf({.other_operand = true}), HasSubstr("differ in their wgmma number 0"));
  });
}

TEST(WgmmaMisuse, RegistersOfAWarpgroupAreOneNumberAndAllFit) {
  const auto run = [](int threads, int other_warp) {
    return Misused({.block = threads}, [&] {
      if (device::WarpIdx() == other_warp) return;
      if (device::WarpIdx() < 4) {
        device::GiveUpRegisters<24>();
      } else {
        device::TakeRegisters<240>();
      }
    });
  };
  EXPECT_EQ(run(384, -1), "");
  EXPECT_THAT(run(384, 6), HasSubstr("warps 4 and 6 of a warpgroup have 240 and 0 registers"));
  EXPECT_THAT(run(512, -1), HasSubstr("all so far 72192 of 65536"));
}

TEST(WgmmaMisuse, DivergentWarp) {
  const auto kernel = [] {
    unsigned char* const base = &device::SharedMemory<unsigned char>();
    float d[4] = {};
    const uint32_t a[4] = {};
    device::WgmmaFence();
    if (LaneIdx() == 7) return;
    device::WgmmaBf16<8>(d, a, device::SmemDescriptor(base, 128, 128, Swizzle::kNone), true);
  };
  EXPECT_THAT(Misused({.block = 128, .smem_bytes = 1024}, kernel),
              HasSubstr("threads 0-6, 8-38, 40-70, 72-102, 104-127: Wgmma at "));
}

TEST(WgmmaMisuse, OperandPastSharedMemory) {
  const auto kernel = [] {
    unsigned char* const base = &device::SharedMemory<unsigned char>();
    float d[8] = {};
    const uint32_t a[4] = {};
    device::WgmmaFence();
    device::WgmmaBf16<16>(d, a, device::SmemDescriptor(base, 128, 512, Swizzle::kNone), true);
    device::WgmmaCommit();
    device::WgmmaWait<0>(d);
  };
  EXPECT_THAT(Misused({.block = 128, .smem_bytes = 700}, kernel),
              HasSubstr("an operand of a wgmma: 16 bytes at offset"));
  EXPECT_THAT(Misused({.block = 96, .smem_bytes = 1024}, kernel), HasSubstr("a whole warpgroup"));
}

TEST(Wgmma, TwoGroupsAreWaitedForOneByOne) {
  const Layout b{Swizzle::k64, false, 8};
  RunKernel({.block = 128, .smem_bytes = 65536}, [&] {
    unsigned char* const base = &device::SharedMemory<unsigned char>();
    StoreOperands(b, base);
    float first[4] = {}, second[4] = {};
    device::WgmmaFence(first, second);
    for (int k = 0; k < kK; k += 16) {
      uint32_t a[4];
      LoadA(a, k);
      device::WgmmaBf16<8>(k < 32 ? first : second, a, b.Descriptor(base, k), true);
      if (k % 32 == 16) device::WgmmaCommit();
    }
    device::WgmmaWait<1>(first);
    for (int i = 0; i < 4; ++i) {
      EXPECT_EQ(first[i], first[i]);
      EXPECT_NE(second[i], second[i]);
    }
    device::WgmmaWait<0>(second);
    float sum[4];
    for (int i = 0; i < 4; ++i) sum[i] = first[i] + second[i];
    ExpectD<8>(sum, 0);
  });
}

}  // namespace
}  // namespace jevons::emu

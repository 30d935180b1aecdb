#include "cuda/device/mbarrier.h"
#include "cuda/device/numeric.h"
#include "cuda/device/wgmma.h"
#include "tests/cuda_emu/tests/grid_run.h"

namespace jevons::emu {
namespace {

using device::LaneIdx;
using device::Swizzle;
using device::ThreadIdx;

// Small whole numbers: every sum is exact.
float A(int m, int k) { return static_cast<float>((m * 5 + k * 3) % 17 - 8); }
float B(int k, int n) { return static_cast<float>((k * 7 + n * 11) % 13 - 6); }

// Of whole numbers, which are their own e4m3.
uint32_t E4m3(float value) { return device::ToE4m3(value); }

// Four products of 32 columns, as many as fill a row of 128 bytes; b K-major with the swizzle.
template <int N>
void CheckE4m3Products() {
  constexpr int kColumns = 128;
  RunKernel({.block = 128, .smem_bytes = N * kColumns}, [&] {
    unsigned char* const base = &device::SharedMemory<unsigned char>();
    for (int i = ThreadIdx(); i < N * kColumns; i += device::BlockDim()) {
      const int n = i / kColumns;
      const int k = i % kColumns;
      base[n * kColumns + (k / 16 ^ n % 8) * 16 + k % 16] =
          static_cast<unsigned char>(E4m3(B(k, n)));
    }
    device::FenceProxyAsync();
    device::SyncThreads();
    float d[N / 2];
    device::WgmmaFence(d);
    for (int k = 0; k < kColumns; k += 32) {
      uint32_t a[4];
      for (int i = 0; i < 4; ++i) {
        const int m = device::WarpIdx() % 4 * 16 + LaneIdx() / 4 + i % 2 * 8;
        const int column = k + i / 2 * 16 + LaneIdx() % 4 * 4;
        a[i] = 0;
        for (int j = 0; j < 4; ++j) a[i] |= E4m3(A(m, column + j)) << (8 * j);
      }
      device::WgmmaE4m3<N>(d, a, device::SmemDescriptor(base + k, 0, 8 * kColumns, Swizzle::k128),
                           k > 0);
    }
    device::WgmmaCommit();
    device::WgmmaWait<0>(d);
    for (int i = 0; i < N / 2; ++i) {
      const int m = device::WarpIdx() * 16 + LaneIdx() / 4 + 8 * (i / 2 % 2);
      const int n = 8 * (i / 4) + 2 * (LaneIdx() % 4) + i % 2;
      float sum = 0;
      for (int k = 0; k < kColumns; ++k) sum += A(m, k) * B(k, n);
      ASSERT_EQ(d[i], sum) << "thread " << ThreadIdx() << " value " << i;
    }
  });
}

TEST(WgmmaE4m3, ProductsOfKMajor) {
  CheckE4m3Products<32>();
  CheckE4m3Products<128>();
}

// What 256 and 31 times `small` make.
float SumBeside256(float small) {
  float sum = 0;
  RunKernel({.block = 128, .smem_bytes = 32 * 128}, [&] {
    unsigned char* const base = &device::SharedMemory<unsigned char>();
    for (int i = ThreadIdx(); i < 32 * 128; i += device::BlockDim()) {
      base[i] = static_cast<unsigned char>(E4m3(1));
    }
    device::FenceProxyAsync();
    device::SyncThreads();
    uint32_t a[4];
    for (uint32_t& four : a) four = E4m3(small) * 0x01010101u;
    if (LaneIdx() % 4 == 0) {
      for (int i = 0; i < 2; ++i) a[i] = (a[i] & ~0xFFu) | E4m3(256);
    }
    float d[16];
    device::WgmmaFence(d);
    device::WgmmaE4m3<32>(d, a, device::SmemDescriptor(base, 0, 1024, Swizzle::k128), false);
    device::WgmmaCommit();
    device::WgmmaWait<0>(d);
    for (float value : d) EXPECT_EQ(value, d[0]);
    if (ThreadIdx() == 0) sum = d[0];
  });
  return sum;
}

// Thirteen bits below the largest is the last that counts.
TEST(WgmmaE4m3, KeepsFourteenBitsOfASum) {
  EXPECT_EQ(SumBeside256(0x1p-5f), 256 + 31 * 0x1p-5f);
  EXPECT_EQ(SumBeside256(0x1p-6f), 256);
}

}  // namespace
}  // namespace jevons::emu

#include <gmock/gmock.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "cuda/device/mma.h"
#include "cuda/device/numeric.h"
#include "tests/cuda_emu/tests/grid_run.h"

namespace jevons::emu {
namespace {

using device::LaneIdx;
using ::testing::HasSubstr;

uint32_t Pair(float low, float high) { return device::PackBf16(low, high); }

// The tables of 9.7.14.5.8. Element i of a fragment, i over the values in order, of lane l: with
// groupID = l >> 2 and threadID_in_group = l % 4,
//   A  row = groupID for 0 <= i < 2 || 4 <= i < 6, else groupID + 8
//      col = threadID_in_group * 2 + (i & 1) for i < 4, that + 8 for i >= 4
//   B  row = threadID_in_group * 2 + (i & 1) for i < 2, that + 8 for i >= 2; col = groupID
//   C  row = groupID for i < 2, groupID + 8 for i >= 2; col = threadID_in_group * 2 + (i & 1)
struct At {
  int row, col;
};
At TableA(int l, int i) {
  const bool upper = (0 <= i && i < 2) || (4 <= i && i < 6);
  return {upper ? l >> 2 : (l >> 2) + 8, (l % 4) * 2 + (i & 1) + (i >= 4 ? 8 : 0)};
}
At TableB(int l, int i) { return {(l % 4) * 2 + (i & 1) + (i >= 2 ? 8 : 0), l >> 2}; }
At TableC(int l, int i) { return {i < 2 ? l >> 2 : (l >> 2) + 8, (l % 4) * 2 + (i & 1)}; }

TEST(Mma, FragmentsLieAsInTheTables) {
  // Small whole numbers: every sum is exact.
  const auto a_at = [](At p) { return static_cast<float>((p.row * 5 + p.col * 3) % 17 - 8); };
  const auto b_at = [](At p) { return static_cast<float>((p.row * 7 + p.col * 11) % 13 - 6); };
  const auto c_at = [](At p) { return static_cast<float>(p.row * 8 + p.col); };
  ForSeeds(10, [&] {
    RunKernel({.block = 64}, [&] {
      const int l = LaneIdx();
      uint32_t a[4], b[2];
      float d[4];
      for (int i = 0; i < 4; ++i) {
        a[i] = Pair(a_at(TableA(l, 2 * i)), a_at(TableA(l, 2 * i + 1)));
        d[i] = c_at(TableC(l, i));
      }
      for (int i = 0; i < 2; ++i) b[i] = Pair(b_at(TableB(l, 2 * i)), b_at(TableB(l, 2 * i + 1)));
      device::MmaBf16(d, a, b);
      device::MmaBf16(d, a, b);
      for (int i = 0; i < 4; ++i) {
        const At c = TableC(l, i);
        float sum = 0;
        for (int k = 0; k < 16; ++k) sum += a_at({c.row, k}) * b_at({k, c.col});
        EXPECT_EQ(d[i], c_at(c) + 2 * sum) << "lane " << l << " value " << i;
      }
    });
  });
}

TEST(Mma, NanInARowOfAStaysInThatRow) {
  RunKernel({}, [] {
    const int l = LaneIdx();
    uint32_t a[4] = {}, b[2] = {Pair(1, 1), Pair(1, 1)};
    if (l == 13) a[1] = 0x7FFF;  // row 3 + 8
    float d[4] = {};
    device::MmaBf16(d, a, b);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(d[i] != d[i], TableC(l, i).row == 11);
  });
}

// 9.7.14.5.15: lane l holds of each matrix the elements (l / 4, 2 * (l % 4)) and the next of the
// row; with .trans those of the transposed matrix.
TEST(Mma, LdMatrixGivesRowsAndColumns) {
  struct Shared {
    alignas(16) uint16_t value[32][24];  // rows 48 bytes apart
  };
  ForSeeds(10, [] {
    RunKernel({.smem_bytes = sizeof(Shared)}, [] {
      auto& shared = device::SharedMemory<Shared>();
      const int l = LaneIdx();
      const auto value = [](int matrix, int row, int col) {
        return static_cast<uint32_t>(matrix * 1000 + row * 10 + col);
      };
      for (int i = 0; i < 8; ++i)
        shared.value[l][i] = static_cast<uint16_t>(value(l / 8, l % 8, i));
      device::SyncWarp();
      uint32_t r[4], t[4];
      device::LdMatrix4(r, shared.value[l]);
      device::LdMatrix4Transposed(t, shared.value[l]);
      for (int m = 0; m < 4; ++m) {
        const int row = l / 4, col = 2 * (l % 4);
        EXPECT_EQ(r[m], value(m, row, col + 1) << 16 | value(m, row, col));
        EXPECT_EQ(t[m], value(m, col + 1, row) << 16 | value(m, col, row));
      }
    });
  });
}

TEST(MmaMisuse, LdMatrixRowsOutOfPlace) {
  const auto kernel = [](int offset) {
    return [offset] {
      uint32_t r[4];
      device::LdMatrix4(r, &device::SharedMemory<unsigned char>() + LaneIdx() * 16 + offset);
    };
  };
  EXPECT_THAT(Misused({.smem_bytes = 512 + 16}, kernel(8)),
              HasSubstr("is not aligned to 16 bytes"));
  EXPECT_THAT(Misused({.smem_bytes = 512}, kernel(16)),
              HasSubstr("LdMatrix4: 16 bytes at offset 512 are not within"));
}

TEST(MmaMisuse, DivergentMma) {
  const auto kernel = [] {
    uint32_t a[4] = {}, b[2] = {};
    float d[4] = {};
    if (LaneIdx() != 9) device::MmaBf16(d, a, b);
  };
  EXPECT_THAT(Misused({}, kernel), HasSubstr("threads 0-8, 10-31: MmaBf16 at "));
}

}  // namespace
}  // namespace jevons::emu

// How a packed weight lies in memory: index arithmetic alone, the same on host and device.
//
// The matrix [n, k] of a group is padded to whole strips of 16 rows (four of them, so n to 64) and
// whole stages of 64 columns, with zeros. A strip holds its columns in ascending order, cut into
// runs of 512 bytes; in a run each of the 32 lanes of a warp has 16 bytes side by side, and they are
// what the lane holds of the operand a of device::MmaBf16:
//   bf16  one 16 x 16 tile a run: a[0], a[1], a[2], a[3]
//   e4m3  two tiles a run: eight bytes of the first, then eight of the second, in each a[0], a[2], a[1],
//         a[3]. So they are also what the lane holds of device::WgmmaE4m3, whose columns in each 16
//         have then another order: Fp8Place
// So a warp streams a strip from its first byte to its last, 16 bytes a lane, without a detour.
//
// Scales of e4m3 are f32 [padded rows / 8, ceil(k / 128)].
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace jevons::cuda {

enum class WeightFormat : int32_t { kBf16, kE4m3 };

// kPaired: row i and row i + n / 2 (gate and up) lie in the same strip, eight rows apart, so that
// one lane gets both of their products.
enum class RowOrder : int32_t { kPlain, kPaired };

constexpr int kStripRows = 16;
constexpr int kStageColumns = 64;
constexpr int kScaleColumns = 128;
constexpr int kScaleRows = 8;

struct PackedLayout {
  WeightFormat format = WeightFormat::kBf16;
  RowOrder order = RowOrder::kPlain;
  int32_t n = 0;
  int32_t k = 0;
};

__host__ __device__ constexpr int32_t RoundUp(int32_t value, int32_t unit) {
  return (value + unit - 1) / unit * unit;
}
__host__ __device__ constexpr int32_t CeilDiv(int32_t value, int32_t unit) {
  return (value + unit - 1) / unit;
}
__host__ __device__ constexpr int32_t Min(int32_t a, int32_t b) { return a < b ? a : b; }
__host__ __device__ constexpr int32_t Max(int32_t a, int32_t b) { return a > b ? a : b; }

__host__ __device__ constexpr int32_t PaddedRows(const PackedLayout& layout) {
  return layout.order == RowOrder::kPaired ? 2 * RoundUp(layout.n / 2, 2 * kStripRows)
                                           : RoundUp(layout.n, 4 * kStripRows);
}
__host__ __device__ constexpr int32_t PaddedColumns(const PackedLayout& layout) {
  return RoundUp(layout.k, kStageColumns);
}
__host__ __device__ constexpr int32_t ScaleBlocks(const PackedLayout& layout) {
  return CeilDiv(layout.k, kScaleColumns);
}

// Bytes of the values and of the scales of one group.
__host__ __device__ constexpr int64_t PackedBytes(const PackedLayout& layout) {
  const int64_t size = layout.format == WeightFormat::kBf16 ? 2 : 1;
  return size * PaddedRows(layout) * PaddedColumns(layout);
}
__host__ __device__ constexpr int64_t ScaleBytes(const PackedLayout& layout) {
  if (layout.format == WeightFormat::kBf16) return 0;
  return int64_t{4} * (PaddedRows(layout) / kScaleRows) * ScaleBlocks(layout);
}

// Where row i of the matrix lies among the padded rows.
__host__ __device__ constexpr int32_t PackedRow(const PackedLayout& layout, int32_t i) {
  if (layout.order == RowOrder::kPlain) return i;
  const int32_t half = layout.n / 2;
  const int32_t j = i < half ? i : i - half;
  return j / 8 * kStripRows + j % 8 + (i < half ? 0 : 8);
}

// The place of an element among the group's values, in elements. Even columns and the next one are
// neighbours.
__host__ __device__ constexpr int64_t PackedOffset(const PackedLayout& layout, int32_t packed_row,
                                                   int32_t column) {
  const int32_t row = packed_row % kStripRows;
  const int32_t tile = column / 16;
  const int32_t c = column % 16;
  const int32_t lane = row % 8 * 4 + c % 8 / 2;
  const int64_t first_tile =
      static_cast<int64_t>(packed_row / kStripRows) * (PaddedColumns(layout) / 16);
  if (layout.format == WeightFormat::kBf16) {
    return ((first_tile + tile) * 32 + lane) * 8 + (c / 8 * 2 + row / 8) * 2 + c % 2;
  }
  const int32_t in_tile = (row / 8 * 2 + c / 8) * 2 + c % 2;
  const int64_t run = (first_tile + tile) / 2;  // the strip begins at an even tile
  return (run * 32 + lane) * 16 + tile % 2 * 8 + in_tile;
}

// Where the instruction has column c of each 16 of an e4m3 weight, and so wants it of a token.
__host__ __device__ constexpr int32_t Fp8Place(int32_t column) {
  const int32_t c = column % 16;
  return column - c + c % 8 / 2 * 4 + c / 8 * 2 + c % 2;
}

}  // namespace jevons::cuda

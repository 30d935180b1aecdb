// The vector kernels of the matrix products: a few panels of a packed weight against some rows.
#pragma once

#include <cstdint>

#include "cpu/cpu_weight.h"

namespace jevons::fast {

// The sum over k is cut into blocks of this many inputs. In a block each output is one chain of
// fused multiply-adds from zero; the blocks' sums are added in order; the bias comes last. Nothing
// else has a say in the order, so a row gives the same bits in any company.
inline constexpr int64_t kSumBlock = 64;

// Rows of any number are cut into tiles, as few as there can be and as equal as there can be. The
// x of a tile of R rows is packed as [k, R].
struct RowTiles {
  int64_t num_rows = 0;
  int64_t num_tiles = 0;

  RowTiles(int64_t rows, int64_t max_tile_rows)
      : num_rows(rows), num_tiles((rows + max_tile_rows - 1) / max_tile_rows) {}
  int64_t Begin(int64_t tile) const { return tile * num_rows / num_tiles; }
  int64_t Count(int64_t tile) const { return Begin(tile + 1) - Begin(tile); }
};

// out = x * panels of one group's weight.
struct PanelProduct {
  WeightFormat format = WeightFormat::kF32;
  int64_t n = 0;
  int64_t k = 0;
  const uint8_t* weights = nullptr;  // of the group
  const float* scales = nullptr;     // of the group, kF8 only
  const float* x = nullptr;          // packed tiles after each other; one row as it is
  int64_t num_rows = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
  const float* bias = nullptr;  // may be absent
};

// The kernels of one instruction set.
struct GemmKernels {
  int64_t max_tile_rows;
  // out[i, r] = rows[r][i], i = 0 .. k - 1
  void (*pack_tile)(const float* const* rows, int64_t num_rows, int64_t k, float* out);
  // Panels [begin, end). Each weight is read from memory once, but for row numbers whose x outgrows
  // the second cache.
  void (*run_panels)(const PanelProduct& product, int64_t begin, int64_t end);
};

inline constexpr int64_t kMaxTileRows = 12;  // of all instruction sets

// Those of the chosen target.
GemmKernels GetGemmKernels();

}  // namespace jevons::fast

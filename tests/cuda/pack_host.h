// The plain twin of pack.cu: walks over the packed places and asks of each what belongs there.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "cuda/gemm_layout.h"

namespace jevons::cuda {

// `at(i, c)` is the element of row i and column c of the matrix of one group, as it is stored.
template <typename T>
std::vector<T> PackOnHost(const PackedLayout& layout, const std::function<T(int, int)>& at) {
  const bool paired = layout.order == RowOrder::kPaired;
  const int tiles_per_run = layout.format == WeightFormat::kBf16 ? 1 : 2;
  std::vector<T> packed;
  packed.reserve(PackedBytes(layout) / static_cast<int64_t>(sizeof(T)));
  for (int strip = 0; strip < PaddedRows(layout) / 16; ++strip) {
    for (int run = 0; run < PaddedColumns(layout) / (16 * tiles_per_run); ++run) {
      for (int i = 0; i < 32 * tiles_per_run * 8; ++i) {
        const int lane = i / (8 * tiles_per_run);
        const int tile = run * tiles_per_run + i / 8 % tiles_per_run;
        // Register of the operand; e4m3 has the second and the third the other way round.
        const int pair = i % 8 / 2;
        const int a = tiles_per_run == 2 && pair % 3 != 0 ? 3 - pair : pair;
        const int below = a % 2;  // rows 8 .. 15 of the strip
        const int in_half = lane / 4;
        const int column = tile * 16 + a / 2 * 8 + lane % 4 * 2 + i % 2;
        const int half_row = strip * 8 + in_half;
        const int row = !paired                   ? strip * 16 + below * 8 + in_half
                        : half_row < layout.n / 2 ? half_row + below * (layout.n / 2)
                                                  : layout.n;
        packed.push_back(row < layout.n && column < layout.k ? at(row, column) : T{});
      }
    }
  }
  return packed;
}

}  // namespace jevons::cuda

// Which part of a product a block computes next. Every warp of a block walks for itself and finds
// the same.
#pragma once

#include "cuda/device/warp.h"
#include "cuda/gemm.h"

namespace jevons::cuda {

// What the launcher adds to the parameters: what all threads would else compute and keep.
struct GemmLaunch {
  GemmParams params;
  int32_t x_alignment = 2;  // bytes, of every row of x
  int32_t warps_per_strip = 1;
  int32_t strip_shift = 0;  // its logarithm
  int32_t tile_tokens = 0;
  int32_t tile_strips = 0;
  int32_t strip_tiles = 0;  // tiles that cover the strips of a group
  int32_t num_strips = 0;   // of a group
  int32_t num_stages = 0;   // of a strip
  int32_t strip_runs = 0;
  int32_t num_rounds = 0;
  int64_t group_bytes = 0;   // from a group's weight to the next one's
  int64_t group_scales = 0;  // the same of the scales, in floats
  int32_t first_block = 0;   // those before it have no part in the product
  int32_t num_blocks = 0;
};
// In gemm.cu.
GemmLaunch MakeGemmLaunch(const GemmParams& params, const GemmPlan& plan);

// Tokens [first_row, first_row + num_rows) of a group, strips [first_strip, ...) of its weight.
struct GemmTile {
  int32_t group = -1;  // -1: no tile is left
  int32_t first_row = 0;
  int32_t num_rows = 0;
  int32_t first_strip = 0;
};

// The tiles of all groups are numbered group by group; block b of the product takes b, b +
// num_blocks, ... In a group they come in bands of token tiles: in a band the strips ascend, and
// under each the band's token tiles follow each other, so that what runs at one time shares weights
// and tokens in the L2 cache.
class TileWalker {
 public:
  __device__ __forceinline__ explicit TileWalker(const GemmLaunch& launch)
      : launch_(launch), next_(device::BlockIdxX() - launch.first_block) {
    // Rows of groups and their sources are what the kernel before may write.
    if (launch.params.cu_rows != nullptr || launch.params.row_idx != nullptr) {
      device::WaitForKernelBefore();
    }
    LoadWindow(0);
  }

  // Every lane must call.
  __device__ __forceinline__ GemmTile Next() {
    while (window_ < launch_.params.num_groups) {
      const int beyond = device::Shfl(end_, 31);
      if (next_ < beyond) return TileIn(FirstLaneBeyond(next_));
      window_ += 32;
      LoadWindow(beyond);
    }
    return GemmTile{};
  }

 private:
  static constexpr int kBand = 8;

  __device__ __forceinline__ int FirstRow(int group) const {
    return launch_.params.cu_rows == nullptr ? 0 : Max(launch_.params.cu_rows[group], 0);
  }
  __device__ __forceinline__ int NumRows(int group) const {
    const GemmParams& params = launch_.params;
    if (params.cu_rows == nullptr) return params.num_rows;
    return Max(Min(params.cu_rows[group + 1], params.num_rows) - FirstRow(group), 0);
  }
  __device__ __forceinline__ int TokenTiles(int num_rows) const {
    return CeilDiv(num_rows, launch_.tile_tokens);
  }

  // Lane l gets the number of the tile that follows the last of group window_ + l.
  __device__ __forceinline__ void LoadWindow(int first_number) {
    const int group = window_ + device::LaneIdx();
    end_ = group < launch_.params.num_groups ? TokenTiles(NumRows(group)) * launch_.strip_tiles : 0;
#pragma unroll
    for (int delta = 1; delta < 32; delta *= 2) {
      const int below = device::ShflUp(end_, delta);
      if (device::LaneIdx() >= delta) end_ += below;
    }
    end_ += first_number;
  }

  // end_ never falls from lane to lane.
  __device__ __forceinline__ int FirstLaneBeyond(int number) const {
    int lane = 0;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      if (device::Shfl(end_, lane + step - 1) <= number) lane += step;
    }
    return lane;
  }

  __device__ __forceinline__ GemmTile TileIn(int lane) {
    const int group = window_ + lane;
    const int rows = NumRows(group);
    const int strip_tiles = launch_.strip_tiles;
    const int token_tiles = TokenTiles(rows);
    const int number = next_ - (device::Shfl(end_, lane) - token_tiles * strip_tiles);
    const int band = number / (kBand * strip_tiles);
    const int in_band = number - band * kBand * strip_tiles;
    const int width = Min(kBand, token_tiles - band * kBand);
    const int first = (band * kBand + in_band % width) * launch_.tile_tokens;
    next_ += launch_.num_blocks;
    return GemmTile{group, FirstRow(group) + first, Min(rows - first, launch_.tile_tokens),
                    in_band / width * launch_.tile_strips};
  }

  const GemmLaunch& launch_;
  int32_t next_;  // number of this block's next tile
  int32_t window_ = 0;
  int32_t end_ = 0;
};

}  // namespace jevons::cuda

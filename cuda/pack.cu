// Packing a part of a weight: one thread takes two neighbouring columns of a row, which are
// neighbours in the packed form too. Reads are coalesced; the writes of a warp are 32 pairs in
// 32 different 16-byte places, joined by the L2 cache. It runs once, when a model is loaded: 31 GB
// of DeepSeek-V2-Lite move 62 GB, 21 ms at 3.0 TB/s and far less than reading the files.
//
// Unpacking: a warp takes a tile of 16 x 16, 512 bytes in a row. Each lane has a pair of each of the
// tile's quarters; four lanes with the same rows exchange pairs, so that each writes 16 bytes of one
// row, and two of them whole sectors of 32. V3's output projection [7168, 16384] moves 470 MB: 157 us
// at 3.0 TB/s, a tenth of its product with 4,096 rows.
#include "cuda/pack.h"

#include "cuda/device/copy.h"
#include "cuda/device/launch.h"
#include "cuda/device/numeric.h"
#include "cuda/device/thread.h"
#include "cuda/device/warp.h"
#include "cuda/row_vector.h"

namespace jevons::cuda {
namespace {

constexpr int kThreads = 256;

struct Pair {
  float low = 0;
  float high = 0;
};

// Row i of the part, columns c and c + 1 (0 past k).
__device__ __forceinline__ Pair ReadPair(const PackParams& params, int i, int c) {
  const int64_t at = static_cast<int64_t>(i) * params.layout.k + c;
  const bool two = c + 1 < params.layout.k;
  Pair pair;
  switch (params.element) {
    case RawElement::kF32: {
      const float* const data = static_cast<const float*>(params.data) + at;
      pair = Pair{data[0], two ? data[1] : 0.0f};
      break;
    }
    case RawElement::kF16: {
      const F16* const data = static_cast<const F16*>(params.data) + at;
      pair = Pair{RowToFloat(data[0]), two ? RowToFloat(data[1]) : 0.0f};
      break;
    }
    case RawElement::kBf16: {
      const device::Bf16* const data = static_cast<const device::Bf16*>(params.data) + at;
      pair = Pair{device::ToFloat(data[0]), two ? device::ToFloat(data[1]) : 0.0f};
      break;
    }
    case RawElement::kE4m3: {
      const uint8_t* const data = static_cast<const uint8_t*>(params.data) + at;
      uint32_t first, second;
      device::E4m3ToBf16(data[0] | (two ? static_cast<uint32_t>(data[1]) << 8 : 0u), first, second);
      const float scale =
          params.scale[static_cast<int64_t>(i / kScaleColumns) * ScaleBlocks(params.layout) +
                       c / kScaleColumns];
      pair = Pair{device::LowToFloat(first) * scale, device::HighToFloat(first) * scale};
      break;
    }
  }
  return pair;
}

__device__ __forceinline__ void CopyE4m3(const PackParams& params, int i, int c) {
  const uint8_t* const data =
      static_cast<const uint8_t*>(params.data) + static_cast<int64_t>(i) * params.layout.k + c;
  const int packed_row = PackedRow(params.layout, params.row_offset + i);
  uint8_t* const to =
      static_cast<uint8_t*>(params.values) + PackedOffset(params.layout, packed_row, c);
  to[0] = data[0];
  if (c + 1 < params.layout.k) to[1] = data[1];
  if (i % kScaleRows == 0 && c % kScaleColumns == 0) {
    const int blocks = ScaleBlocks(params.layout);
    const int block = c / kScaleColumns;
    params.scales[static_cast<int64_t>(packed_row / kScaleRows) * blocks + block] =
        params.scale[static_cast<int64_t>(i / kScaleColumns) * blocks + block];
  }
}

__global__ void __launch_bounds__(kThreads) PackKernel(const __grid_constant__ PackParams params) {
  const int pairs = CeilDiv(params.layout.k, 2);
  const int64_t all = static_cast<int64_t>(params.rows) * pairs;
  const int64_t stride = static_cast<int64_t>(device::GridDimX()) * kThreads;
  for (int64_t at = static_cast<int64_t>(device::BlockIdxX()) * kThreads + device::ThreadIdx();
       at < all; at += stride) {
    const int i = static_cast<int>(at / pairs);
    const int c = static_cast<int>(at % pairs) * 2;
    if (params.layout.format == WeightFormat::kE4m3) {
      CopyE4m3(params, i, c);
      continue;
    }
    const Pair pair = ReadPair(params, i, c);
    const int packed_row = PackedRow(params.layout, params.row_offset + i);
    uint16_t* const to =
        static_cast<uint16_t*>(params.values) + PackedOffset(params.layout, packed_row, c);
    *reinterpret_cast<uint32_t*>(to) = device::PackBf16(pair.low, pair.high);
  }
}

constexpr int kTileElements = kStripRows * 16;

// Lane q of each four gets pair q of all four: the transposed of what they hold.
__device__ __forceinline__ uint4 ExchangeAmongFour(const uint4& own) {
  const bool odd = device::LaneIdx() % 2 == 1;
  const uint32_t y = device::ShflXor(odd ? own.x : own.y, 1);
  const uint32_t w = device::ShflXor(odd ? own.z : own.w, 1);
  const uint4 half = odd ? make_uint4(y, own.y, w, own.w) : make_uint4(own.x, y, own.z, w);
  const bool upper = device::LaneIdx() % 4 >= 2;
  const uint32_t first = device::ShflXor(upper ? half.x : half.z, 2);
  const uint32_t second = device::ShflXor(upper ? half.y : half.w, 2);
  return upper ? make_uint4(first, second, half.z, half.w)
               : make_uint4(half.x, half.y, first, second);
}

__global__ void __launch_bounds__(kThreads)
    UnpackKernel(const __grid_constant__ UnpackParams params) {
  constexpr int kWarps = kThreads / 32;
  const int columns = PaddedColumns(params.layout);
  const int strip_tiles = columns / 16;
  const int num_tiles = params.rows / kStripRows * strip_tiles;
  const uint16_t* const values = static_cast<const uint16_t*>(params.values) +
                                 static_cast<int64_t>(params.first_row) * columns;
  // Behind the exchange a lane has a quarter of a row of the tile.
  const int lane = device::LaneIdx();
  const int row = lane / 4 + lane % 2 * 8;
  const int column = lane % 4 / 2 * 8;
  for (int tile = device::BlockIdxX() * kWarps + device::WarpIdx(); tile < num_tiles;
       tile += device::GridDimX() * kWarps) {
    const uint4 words = ExchangeAmongFour(
        device::LoadStream16(values + static_cast<int64_t>(tile) * kTileElements + lane * 8));
    uint16_t* const to = static_cast<uint16_t*>(params.out) +
                         (static_cast<int64_t>(tile / strip_tiles) * kStripRows + row) * columns +
                         tile % strip_tiles * 16 + column;
    *reinterpret_cast<uint4*>(to) = words;
  }
}

}  // namespace

cudaError_t LaunchPack(const PackParams& params, cudaStream_t stream) {
  if (params.rows <= 0) return cudaSuccess;
  if (params.layout.format == WeightFormat::kE4m3 &&
      (params.element != RawElement::kE4m3 || !PackKeepsE4m3(params.layout, params.row_offset))) {
    return cudaErrorInvalidValue;
  }
  constexpr int64_t kMaxBlocks = 16384;
  const int64_t blocks =
      (static_cast<int64_t>(params.rows) * CeilDiv(params.layout.k, 2) + kThreads - 1) / kThreads;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks));
  shape.block = kThreads;
  return Launch(PackKernel, shape, stream, params);
}

cudaError_t LaunchUnpack(const UnpackParams& params, cudaStream_t stream) {
  if (params.rows <= 0) return cudaSuccess;
  if (params.layout.format != WeightFormat::kBf16 || params.layout.order != RowOrder::kPlain ||
      params.first_row % kStripRows != 0 || params.rows % kStripRows != 0 || params.first_row < 0 ||
      params.rows > PaddedRows(params.layout) - params.first_row) {
    return cudaErrorInvalidValue;
  }
  // Tiles for several rounds of each warp, and blocks for every multiprocessor.
  constexpr int32_t kMaxBlocks = 2048;
  const int32_t tiles = params.rows / kStripRows * (PaddedColumns(params.layout) / 16);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(Min(CeilDiv(tiles, kThreads / 32), kMaxBlocks)));
  shape.block = kThreads;
  return Launch(UnpackKernel, shape, stream, params);
}

}  // namespace jevons::cuda

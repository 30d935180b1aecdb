// Where the keys of a row are split: at positions that depend on nothing but the row's own.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace jevons::cuda {

constexpr int kMlaMostContext = 1 << 30;  // positions of splits stay in 32 bits
constexpr int kMlaSmallSplits = 16;       // splits of 128 tokens below position 2048

// Splits of 128 tokens below position 2048; from there on eight for each doubling of the position:
// 16,384 tokens have 40 splits, 131,072 have 64.
__host__ __device__ constexpr int MlaSplitBegin(int split) {
  if (split < kMlaSmallSplits) return split * 128;
  const int doubling = (split - kMlaSmallSplits) / 8;
  return (8 + (split - kMlaSmallSplits) % 8) * (256 << doubling);
}
__host__ __device__ constexpr int MlaSplitOf(int position) {
  if (position < 2048) return position / 128;
  int doubling = 0;
  while (position >> (doubling + 12) != 0) ++doubling;
  return kMlaSmallSplits + 8 * doubling + (position >> (doubling + 8)) - 8;
}
static_assert(MlaSplitBegin(16) == 2048 && MlaSplitOf(2047) == 15 && MlaSplitOf(2048) == 16);
static_assert(MlaSplitBegin(24) == 4096 && MlaSplitOf(4095) == 23 && MlaSplitOf(4096) == 24);

// The row of a wide row tile (mla_wide.h) has equal splits, longer ones the further it stands: the
// end of a split costs as much as four tiles. 1,024 and 2,048 tokens have two, 4,096 to 16,384 up to
// four, 65,536 eight, 262,144 sixteen.
__host__ __device__ constexpr int MlaWideSplitLog2(int position) {
  int log2 = position < 1024 ? 9 : 10;
  while (position >> log2 >= 4 && position >> (log2 - 5) >> (log2 - 5) != 0) ++log2;
  return log2;
}
static_assert(MlaWideSplitLog2(1023) == 9 && MlaWideSplitLog2(1024) == 10);
static_assert(MlaWideSplitLog2(4095) == 10 && MlaWideSplitLog2(4096) == 11);
static_assert(MlaWideSplitLog2(16383) == 12 && MlaWideSplitLog2(16384) == 13);
static_assert(MlaWideSplitLog2(65535) == 13 && MlaWideSplitLog2(65536) == 14);
static_assert(MlaWideSplitLog2(kMlaMostContext) == 21);

// The splits of a row.
template <bool kWide>
struct MlaSplits {
  __device__ __forceinline__ explicit MlaSplits(int /*position*/) {}
  __device__ __forceinline__ int Begin(int split) const { return MlaSplitBegin(split); }
  __device__ __forceinline__ int Of(int key) const { return MlaSplitOf(key); }
};
template <>
struct MlaSplits<true> {
  int32_t log2;  // of the tokens of a split

  MlaSplits() = default;
  __device__ __forceinline__ explicit MlaSplits(int position) : log2(MlaWideSplitLog2(position)) {}
  __device__ __forceinline__ int Begin(int split) const { return split << log2; }
  __device__ __forceinline__ int Of(int key) const { return key >> log2; }
  __device__ __forceinline__ bool IsBegin(int key) const { return (key & (Begin(1) - 1)) == 0; }
};

}  // namespace jevons::cuda

// One tile of keys for the rows of one item: how scores become weights, and how the weighted
// latents are added. Which warp does what stands in mla.cu, how a tile comes in mla_load.h.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/device/mma.h"
#include "cuda/mla_load.h"

namespace jevons::cuda::mla {

// Registers of one warp for kGroups * 16 rows.
template <typename T, int kGroups>
struct Sums {
  float v[kGroups][T::kColumnTiles][4];
};

// What a warp multiplies keys with: its half of the width, lines of 64 elements cut in two. With
// one group of rows it stays in registers, which halves what the scores read from shared memory;
// with two it is read for each tile.
template <typename T, int kGroups>
class Queries {
 public:
  static constexpr int kLines = T::kWidth / kSwizzled;
  static constexpr bool kHeld = kGroups == 1;

  __device__ __forceinline__ void Hold(const Shared<T>& s) {
    if constexpr (kHeld) {
      const Bf16* rows[2];
      Find(s, rows);
#pragma unroll
      for (int i = 0; i < 2 * kLines; ++i) {
        device::LdMatrix4(held_[i], rows[i % 2] + i / 2 * kSwizzled);
      }
    }
  }
  // Where the lane's rows of both 16-column steps lie.
  __device__ __forceinline__ static void Find(const Shared<T>& s, const Bf16* (&rows)[2]) {
    const int lane = device::Opaque(device::LaneIdx());
    const int chunk = device::WarpIdx() / kKeyQuarters * 4 + lane / 16;
    rows[0] = s.q + Swizzled<T>(lane % 16, chunk);
    rows[1] = s.q + Swizzled<T>(lane % 16, chunk + 2);
  }
  __device__ __forceinline__ void Get(const Bf16* const (&rows)[2], int line, int step, int group,
                                      uint32_t (&a)[4]) const {
    if constexpr (kHeld) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = held_[2 * line + step][i];
    } else {
      device::LdMatrix4(a, rows[step] + group * kMlaGroupRows * T::kWidth + line * kSwizzled);
    }
  }

 private:
  uint32_t held_[kHeld ? 2 * kLines : 1][4];
};

template <typename T, int kGroups>
__device__ __forceinline__ void ComputeScores(Shared<T>& s, const Queries<T, kGroups>& queries,
                                              const Bf16* keys) {
  const int lane = device::Opaque(device::LaneIdx());
  const int quarter = device::WarpIdx() % kKeyQuarters;
  const int half = device::WarpIdx() / kKeyQuarters;
  float score[kGroups][T::kKeyTiles][4] = {};
  const Bf16* b_row =
      keys + Swizzled<T>(quarter * T::kKeyTiles * 8 + lane % 8, half * 4 + lane / 8);
  const Bf16* a_rows[2];
  queries.Find(s, a_rows);
#pragma unroll
  for (int line = 0; line < queries.kLines; ++line) {
    uint32_t b[T::kKeyTiles][4];
#pragma unroll
    for (int n = 0; n < T::kKeyTiles; ++n) {
      device::LdMatrix4(b[n], b_row + n * 8 * T::kWidth + line * kSwizzled);
    }
#pragma unroll
    for (int i = 0; i < 2 * kGroups; ++i) {
      const int step = i / kGroups;
      const int m = i % kGroups;
      uint32_t a[4];
      queries.Get(a_rows, line, step, m, a);
#pragma unroll
      for (int n = 0; n < T::kKeyTiles; ++n) {
        const uint32_t pair[2] = {b[n][2 * step], b[n][2 * step + 1]};
        device::MmaBf16(score[m][n], a, pair);
      }
    }
  }
  bool finite = true;
#pragma unroll
  for (int m = 0; m < kGroups; ++m) {
#pragma unroll
    for (int n = 0; n < T::kKeyTiles; ++n) {
      const float(&d)[4] = score[m][n];
      const int row = m * kMlaGroupRows + lane / 4;
      const int key = (quarter * T::kKeyTiles + n) * 8 + lane % 4 * 2;
      *reinterpret_cast<float2*>(&s.scores[half][row][key]) = make_float2(d[0], d[1]);
      *reinterpret_cast<float2*>(&s.scores[half][row + 8][key]) = make_float2(d[2], d[3]);
      finite = finite && IsFinite(d[0]) && IsFinite(d[1]) && IsFinite(d[2]) && IsFinite(d[3]);
    }
  }
  if (!finite) device::AtomicAdd(&s.num_not_finite, 1);
}

// Marks the keys whose latents are not finite, and zeroes them.
template <typename T>
__device__ __forceinline__ void ZeroBrokenKeys(int latent, Shared<T>& s, Bf16* keys) {
  const int lane = device::Opaque(device::LaneIdx());
  for (int row = device::WarpIdx(); row < T::kKeys; row += kNumWarps) {
    bool finite = true;
    for (int i = lane; i < latent; i += 32) {
      const Bf16 value = keys[Swizzled<T>(row, i / 8) + i % 8];
      finite = finite && (value.bits & 0x7F80) != 0x7F80;
    }
    const bool broken = device::Ballot(!finite) != 0;
    if (lane == 0) s.broken[row] = broken;
    if (!broken) continue;
    for (int i = lane; i < T::kLatent; i += 32) {
      keys[Swizzled<T>(row, i / 8) + i % 8] = Bf16{0};
    }
  }
}

// The state of the rows of one warp: rows [warp * kCount, warp * kCount + kCount). Sums are by
// lane.
template <int kGroups>
struct WarpRows {
  static constexpr int kCount = kGroups * kMlaGroupRows / kNumWarps;
  MlaSoftmax row[kCount];

  __device__ __forceinline__ void Reset() {
#pragma unroll
    for (MlaSoftmax& r : row) r = {MlaMinusInfinity(), 0.0f};
  }
};

__device__ __forceinline__ float WarpMax(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value = fmaxf(value, device::ShflXor(value, distance));
  }
  return value;
}

// Pairs of neighbours p, of this lane or of two, as bf16; p becomes what was stored.
template <typename T>
__device__ __forceinline__ void StoreWeights(Shared<T>& s, int row, float (&p)[T::kKeysPerLane]) {
  const int lane = device::Opaque(device::LaneIdx());
  const float next = T::kKeysPerLane == 2 ? p[T::kKeysPerLane - 1] : device::ShflXor(p[0], 1);
  const uint32_t pair = device::PackBf16(p[0], next);
  const int word = T::kKeysPerLane == 2 ? lane : lane / 2;
  if (T::kKeysPerLane == 2 || lane % 2 == 0) {
    s.weights[SwizzledWeights(row, word / 4) + word % 4] = pair;
  }
  p[0] = device::LowToFloat(pair);
  if constexpr (T::kKeysPerLane == 2) p[1] = device::HighToFloat(pair);
}

// Scores become weights. `first` is the position of the tile's first key, `scale` counts in powers
// of two.
template <typename T, int kGroups>
__device__ __forceinline__ void ComputeWeights(Shared<T>& s, int first, float scale,
                                               bool broken_keys, WarpRows<kGroups>& rows) {
  constexpr int kCount = WarpRows<kGroups>::kCount;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int row = device::WarpIdx() * kCount + i;
    MlaSoftmax& state = rows.row[i];
    float raw[T::kKeysPerLane];
    bool visible[T::kKeysPerLane];
    float max = state.max;
#pragma unroll
    for (int j = 0; j < T::kKeysPerLane; ++j) {
      const int key = device::LaneIdx() * T::kKeysPerLane + j;
      raw[j] = s.scores[0][row][key] + s.scores[1][row][key];
      if (broken_keys && s.broken[key] != 0) raw[j] = device::FloatFromBits(0x7FC00000u);
      visible[j] = first + key <= s.position[row];
      if (visible[j]) max = fmaxf(max, raw[j] * scale);
    }
    max = WarpMax(max);
    const float base = MlaBase(max);
    const float alpha = device::Exp2(state.max - base);
    float p[T::kKeysPerLane];
#pragma unroll
    for (int j = 0; j < T::kKeysPerLane; ++j) {
      p[j] = visible[j] ? device::Exp2(device::Fma(raw[j], scale, -base)) : 0.0f;
    }
    StoreWeights(s, row, p);
    float sum = p[0];
    if constexpr (T::kKeysPerLane == 2) sum += p[1];
    state.max = max;
    state.sum = device::Fma(state.sum, alpha, sum);
    if (device::LaneIdx() == 0) s.alpha[row] = alpha;
  }
}

// The split ends: its sums over lanes go to shared memory, and the next one starts.
template <typename T, int kGroups>
__device__ __forceinline__ void PublishSoftmax(Shared<T>& s, WarpRows<kGroups>& rows) {
#pragma unroll
  for (int i = 0; i < WarpRows<kGroups>::kCount; ++i) {
    float sum = rows.row[i].sum;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) sum += device::ShflXor(sum, distance);
    if (device::LaneIdx() == 0) {
      s.softmax[device::WarpIdx() * WarpRows<kGroups>::kCount + i] = {rows.row[i].max, sum};
    }
  }
  rows.Reset();
}

template <typename T, int kGroups>
__device__ __forceinline__ void AddValues(Shared<T>& s, const Bf16* keys, Sums<T, kGroups>& acc) {
  const int lane = device::Opaque(device::LaneIdx());
#pragma unroll
  for (int m = 0; m < kGroups; ++m) {
    const float alpha[2] = {s.alpha[m * kMlaGroupRows + lane / 4],
                            s.alpha[m * kMlaGroupRows + lane / 4 + 8]};
#pragma unroll
    for (int n = 0; n < T::kColumnTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) acc.v[m][n][i] *= alpha[i / 2];
    }
  }
  const Bf16* b_row[T::kColumnTiles / 2];
#pragma unroll
  for (int n = 0; n < T::kColumnTiles / 2; ++n) {
    const int chunk = device::WarpIdx() * T::kColumnTiles + 2 * n + lane / 16;
    b_row[n] = keys + Swizzled<T>(lane % 16, chunk);
  }
#pragma unroll
  for (int k = 0; k < T::kKeys / 16; ++k) {
    uint32_t a[kGroups][4];
#pragma unroll
    for (int m = 0; m < kGroups; ++m) {
      const int at = SwizzledWeights(lane % 16, 2 * k + lane / 16);
      device::LdMatrix4(a[m], &s.weights[m * kMlaGroupRows * 32 + at]);
    }
#pragma unroll
    for (int n = 0; n < T::kColumnTiles / 2; ++n) {
      uint32_t b[4];
      device::LdMatrix4Transposed(b, b_row[n] + k * 16 * T::kWidth);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t pair[2] = {b[2 * i], b[2 * i + 1]};
#pragma unroll
        for (int m = 0; m < kGroups; ++m) device::MmaBf16(acc.v[m][2 * n + i], a[m], pair);
      }
    }
  }
}

}  // namespace jevons::cuda::mla

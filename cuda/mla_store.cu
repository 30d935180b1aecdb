// MlaStoreKv: latent = kv[:r] / sqrt(mean(kv[:r]^2) + eps) * weight and key = rope(kv[r:]) to the
// token's cache entry.
//
// One warp does one token: lane l has the vectors of eight elements l, l + 32, ... of the latent
// and the pairs l, l + 32, ... of the key, so the order of the sum does not depend on the batch. It
// reads its vectors twice, the second time from L1. 256 tokens of 512 + 64 move 256 * 2 * 1,152 B =
// 0.6 MB: latency decides, that of slot and position and then of the table's row.
#include "cuda/mla_store.h"

#include <cmath>

#include "cuda/device/launch.h"
#include "cuda/device/numeric.h"
#include "cuda/device/warp.h"
#include "cuda/row_vector.h"

namespace jevons::cuda {
namespace {

using device::Bf16;

constexpr int kTokensPerBlock = 4;  // warps
constexpr int kStoreThreads = kTokensPerBlock * 32;

struct StoreParams {
  MlaStoreKvParams p;
  MlaStorePlan plan;
};

__device__ __forceinline__ void StoreLatent(const StoreParams& args, const Bf16* kv, Bf16* entry,
                                            bool known) {
  const MlaStoreKvParams& p = args.p;
  const int num_vectors = NumVectors(p.latent);
  float v[kRowVector];
  float sum = 0;
  for (int vector = device::LaneIdx(); vector < num_vectors; vector += 32) {
    LoadVector(kv, vector, p.latent, args.plan.whole, v);
#pragma unroll
    for (int i = 0; i < kRowVector; ++i) sum = device::Fma(v[i], v[i], sum);
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) sum += device::ShflXor(sum, distance);
  const float mean = sum / static_cast<float>(p.latent);
  const float factor = known ? 1.0f / sqrtf(mean + p.eps) : device::FloatFromBits(0x7FC00000u);
  for (int vector = device::LaneIdx(); vector < num_vectors; vector += 32) {
    float w[kRowVector];
    LoadVector(kv, vector, p.latent, args.plan.whole, v);
    LoadVector(p.norm_weight, vector, p.latent, args.plan.whole, w);
#pragma unroll
    for (int i = 0; i < kRowVector; ++i) v[i] = v[i] * factor * w[i];
    StoreVector(v, vector, p.latent, args.plan.whole, entry);
  }
}

// A position that is not known reads no table and gives NaN.
__device__ __forceinline__ void StoreKey(const MlaStoreKvParams& p, const Bf16* kv, Bf16* entry,
                                         int32_t position, bool known) {
  const float* row = p.cos_sin + (known ? static_cast<int64_t>(position) * p.rope : 0);
  for (int i = device::LaneIdx(); i < p.rope / 2; i += 32) {
    const float c = known ? row[i] : device::FloatFromBits(0x7FC00000u);
    const float s = known ? row[p.rope / 2 + i] : c;
    const float a = device::ToFloat(kv[2 * i]);
    const float b = device::ToFloat(kv[2 * i + 1]);
    entry[2 * i] = device::ToBf16(device::Fma(a, c, -(b * s)));
    entry[2 * i + 1] = device::ToBf16(device::Fma(a, s, b * c));
  }
}

__global__ void __launch_bounds__(kStoreThreads)
    MlaStoreKvKernel(const __grid_constant__ StoreParams args) {
  const MlaStoreKvParams& p = args.p;
  const int64_t token =
      static_cast<int64_t>(device::BlockIdxX()) * kTokensPerBlock + device::WarpIdx();
  if (token >= p.num_tokens) return;
  const int64_t slot = p.slots[token];
  if (slot < 0 || slot >= p.num_slots) return;
  const int32_t position = p.positions[token];
  const bool known = position >= 0 && position < p.max_positions;
  const Bf16* kv = p.kv + token * p.kv_stride;
  Bf16* entry = p.cache + slot * (p.latent + p.rope);
  StoreLatent(args, kv, entry, known);
  StoreKey(p, kv + p.latent, entry + p.latent, position, known);
}

}  // namespace

MlaStorePlan ChooseMlaStoreKv(const MlaStoreKvParams& p) {
  MlaStorePlan plan;
  plan.grid = (p.num_tokens + kTokensPerBlock - 1) / kTokensPerBlock;
  plan.whole = RowsAllowVectors(p.kv, p.kv_stride, p.latent) &&
               RowsAllowVectors(p.norm_weight, 0, p.latent) &&
               RowsAllowVectors(p.cache, p.latent + p.rope, p.latent);
  return plan;
}

cudaError_t LaunchMlaStoreKv(const MlaStoreKvParams& params, const DeviceFacts&,
                             cudaStream_t stream) {
  const MlaStorePlan plan = ChooseMlaStoreKv(params);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(plan.grid));
  shape.block = kStoreThreads;
  return Launch(&MlaStoreKvKernel, shape, stream, StoreParams{params, plan});
}

}  // namespace jevons::cuda

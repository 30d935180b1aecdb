// One token of MlaStoreKv, by one warp: lane l has the vectors of eight elements l, l + 32, ... of
// the latent and the pairs l, l + 32, ... of the key, so the order of the sum does not depend on
// the batch. It reads its vectors twice, the second time from L1. The 16 vectors of an FP8 group
// lie on one half of the warp.
#pragma once

#include <cmath>

#include "cuda/device/numeric.h"
#include "cuda/device/warp.h"
#include "cuda/mla_store.h"
#include "cuda/row_vector.h"
#include "ops/fp8_entry.h"

namespace jevons::cuda {

struct MlaStoreLaunch {
  MlaStoreKvParams p;
  MlaStorePlan plan;
};

// What the latents are multiplied with.
__device__ __forceinline__ float NormFactor(const MlaStoreLaunch& args, const device::Bf16* kv,
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
  return known ? 1.0f / sqrtf(mean + p.eps) : device::FloatFromBits(0x7FC00000u);
}

// Eight latents; 0 past the last.
__device__ __forceinline__ void NormVector(const MlaStoreLaunch& args, const device::Bf16* kv,
                                           float factor, int vector, float (&v)[kRowVector]) {
  const MlaStoreKvParams& p = args.p;
  float w[kRowVector];
  LoadVector(kv, vector, p.latent, args.plan.whole, v);
  LoadVector(p.norm_weight, vector, p.latent, args.plan.whole, w);
#pragma unroll
  for (int i = 0; i < kRowVector; ++i) v[i] = v[i] * factor * w[i];
}

__device__ __forceinline__ void StoreLatent(const MlaStoreLaunch& args, const device::Bf16* kv,
                                            float factor, device::Bf16* entry) {
  const int num_vectors = NumVectors(args.p.latent);
  for (int vector = device::LaneIdx(); vector < num_vectors; vector += 32) {
    float v[kRowVector];
    NormVector(args, kv, factor, vector, v);
    StoreVector(v, vector, args.p.latent, args.plan.whole, entry);
  }
}

// All lanes take part in each round, for the largest of a group comes from half of them.
__device__ __forceinline__ void StoreFp8Latent(const MlaStoreLaunch& args, const device::Bf16* kv,
                                               float factor, uint8_t* entry) {
  const Fp8Entry layout = {args.p.latent, args.p.rope};
  const int num_vectors = NumVectors(args.p.latent);
  float* scales = reinterpret_cast<float*>(entry + layout.scales());
  for (int first = 0; first < layout.scales() / kRowVector; first += 32) {
    const int vector = first + device::LaneIdx();
    float v[kRowVector] = {};
    if (vector < num_vectors) NormVector(args, kv, factor, vector, v);
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < kRowVector; ++i) largest = max(largest, Fp8Magnitude(v[i]));
#pragma unroll
    for (int distance = 8; distance > 0; distance /= 2) {
      largest = max(largest, device::ShflXor(largest, distance));
    }
    const float scale = Fp8Scale(largest);
    uint32_t bits[2] = {};
#pragma unroll
    for (int i = 0; i < kRowVector; ++i) {
      bits[i / 4] |= static_cast<uint32_t>(ToFp8(v[i], scale)) << (i % 4 * 8);
    }
    if (vector * kRowVector < layout.scales()) {
      *reinterpret_cast<uint2*>(entry + vector * kRowVector) = make_uint2(bits[0], bits[1]);
    }
    const int group = vector * kRowVector / kFp8Group;
    if (device::LaneIdx() % 16 == 0 && group < layout.num_groups()) scales[group] = scale;
  }
  const int num_scales = (layout.keys() - layout.scales()) / 4;
  for (int i = layout.num_groups() + device::LaneIdx(); i < num_scales; i += 32) scales[i] = 0;
}

// A position that is not known reads no table and gives NaN.
__device__ __forceinline__ void StoreKey(const MlaStoreKvParams& p, const device::Bf16* kv,
                                         device::Bf16* key, int32_t position, bool known) {
  const float* row = p.cos_sin + (known ? static_cast<int64_t>(position) * p.rope : 0);
  for (int i = device::LaneIdx(); i < p.rope / 2; i += 32) {
    const float c = known ? row[i] : device::FloatFromBits(0x7FC00000u);
    const float s = known ? row[p.rope / 2 + i] : c;
    const float a = device::ToFloat(kv[2 * i]);
    const float b = device::ToFloat(kv[2 * i + 1]);
    key[2 * i] = device::ToBf16(device::Fma(a, c, -(b * s)));
    key[2 * i + 1] = device::ToBf16(device::Fma(a, s, b * c));
  }
}

// Writes the token's entry. Every lane must call.
__device__ __forceinline__ void MlaStoreToken(const MlaStoreLaunch& args, int64_t token) {
  const MlaStoreKvParams& p = args.p;
  const int64_t slot = p.slots[token];
  if (slot < 0 || slot >= p.num_slots) return;
  const int32_t position = p.positions[token];
  const bool known = position >= 0 && position < p.max_positions;
  const device::Bf16* kv = p.kv + token * p.kv_stride;
  const float factor = NormFactor(args, kv, known);
  if (p.entry == MlaEntry::kBf16) {
    device::Bf16* entry = static_cast<device::Bf16*>(p.cache) + slot * (p.latent + p.rope);
    StoreLatent(args, kv, factor, entry);
    StoreKey(p, kv + p.latent, entry + p.latent, position, known);
    return;
  }
  const Fp8Entry layout = {p.latent, p.rope};
  uint8_t* entry = static_cast<uint8_t*>(p.cache) + slot * layout.bytes();
  StoreFp8Latent(args, kv, factor, entry);
  device::Bf16* keys = reinterpret_cast<device::Bf16*>(entry + layout.keys());
  StoreKey(p, kv + p.latent, keys, position, known);
  const int num_keys = (layout.bytes() - layout.keys()) / 2;
  for (int i = p.rope + device::LaneIdx(); i < num_keys; i += 32) keys[i] = device::Bf16{0};
}

}  // namespace jevons::cuda

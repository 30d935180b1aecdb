// New entries of the latent cache.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/device/bf16.h"
#include "cuda/device_facts.h"
#include "cuda/mla.h"

namespace jevons::cuda {

// What    per token: latent = rms(kv[:latent]; norm_weight, eps), key = rope(kv[latent:]); both go
//         to the cache at its slot
// Shapes  kv bf16 [num_tokens, latent + rope]; norm_weight f32 [latent]; positions i32
//         [num_tokens]; cos_sin f32 [max_positions, rope]: cosines, then sines, of the pairs
//         (x[2i], x[2i + 1]); slots i64 [num_tokens] = block * block_size + offset; cache
//         [num_slots] entries of latent + rope bf16 or Fp8Entry{latent, rope}, no gaps
// Edge    a slot outside [0, num_slots), as -1 of a padded row, stores nothing; a position outside
//         [0, max_positions) stores NaN; nothing else in the cache is touched. An FP8 entry is made
//         of the f32 latents, without a detour over bf16
// Order   the sum of squares has an order that latent alone decides
struct MlaStoreKvParams {
  const device::Bf16* kv = nullptr;
  const float* norm_weight = nullptr;
  const int32_t* positions = nullptr;
  const float* cos_sin = nullptr;
  const int64_t* slots = nullptr;
  void* cache = nullptr;  // FP8: aligned to 16 bytes
  float eps = 0;
  MlaEntry entry = MlaEntry::kBf16;
  int32_t num_tokens = 0;
  int32_t latent = 0;
  int32_t rope = 0;
  int32_t max_positions = 0;
  int64_t num_slots = 0;
  int64_t kv_stride = 0;
};

struct MlaStorePlan {
  int32_t grid = 0;
  bool whole = false;  // 16 bytes may be moved at a time
};

MlaStorePlan ChooseMlaStoreKv(const MlaStoreKvParams& params);
cudaError_t LaunchMlaStoreKv(const MlaStoreKvParams& params, const DeviceFacts& device,
                             cudaStream_t stream);

}  // namespace jevons::cuda

// The physical KV cache: one tensor per layer, blocks of a fixed number of tokens.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "ops/backend.h"

namespace jevons {

// What a user may ask for. kAuto is the backend's own type.
enum class KvCacheType { kAuto, kBf16, kFp8 };

// "auto", "bf16", "fp8"
std::string_view KvCacheTypeName(KvCacheType type);

// The elements of the cache: kU8 are FP8 entries. INVALID_ARGUMENT names what the backend has.
absl::StatusOr<DType> FindKvDType(KvCacheType type, const BackendTraits& traits);

// What one token keeps in one layer.
struct KvLayerSpec {
  int32_t entry_dim = 0;
  DType dtype = DType::kF32;
};

int64_t KvBytesPerToken(std::span<const KvLayerSpec> layers);

// Which sequence owns which block is the scheduler's business; this is memory alone.
// Thread-compatible.
class KvCache {
 public:
  // RESOURCE_EXHAUSTED with the size where there is no memory for it.
  static absl::StatusOr<KvCache> Create(Backend& backend, std::span<const KvLayerSpec> layers,
                                        int32_t num_blocks, int32_t block_tokens);

  // [num_blocks, block_tokens, entry_dim]
  const TensorView& layer(int32_t layer_idx) const { return layers_[layer_idx].view; }

 private:
  std::vector<DeviceTensor> layers_;
};

}  // namespace jevons

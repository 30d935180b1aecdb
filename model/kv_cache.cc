#include "model/kv_cache.h"

#include "absl/strings/str_cat.h"
#include "base/strings.h"

namespace jevons {

std::string_view KvCacheTypeName(KvCacheType type) {
  switch (type) {
    case KvCacheType::kAuto:
      return "auto";
    case KvCacheType::kBf16:
      return "bf16";
    case KvCacheType::kFp8:
      return "fp8";
  }
  return "?";
}

absl::StatusOr<DType> FindKvDType(KvCacheType type, const BackendTraits& traits) {
  if (type == KvCacheType::kFp8) return DType::kU8;
  if (type == KvCacheType::kAuto || traits.kv_cache == DType::kBF16) return traits.kv_cache;
  return absl::InvalidArgumentError(
      absl::StrCat("kv-cache-dtype must be auto (", ToAbsl(DTypeName(traits.kv_cache)),
                   ") or fp8 on this backend, given ", ToAbsl(KvCacheTypeName(type))));
}

int64_t KvBytesPerToken(std::span<const KvLayerSpec> layers) {
  int64_t bytes = 0;
  for (const KvLayerSpec& layer : layers) bytes += layer.entry_dim * DTypeBytes(layer.dtype);
  return bytes;
}

absl::StatusOr<KvCache> KvCache::Create(Backend& backend, std::span<const KvLayerSpec> layers,
                                        int32_t num_blocks, int32_t block_tokens) {
  KvCache cache;
  for (const KvLayerSpec& layer : layers) {
    const int64_t values = int64_t{num_blocks} * block_tokens * layer.entry_dim;
    DeviceTensor tensor;
    ASSIGN_OR_RETURN(tensor.buffer, backend.Allocate(values * DTypeBytes(layer.dtype)));
    tensor.view =
        TensorView(tensor.buffer->data(), layer.dtype, {num_blocks, block_tokens, layer.entry_dim});
    cache.layers_.push_back(std::move(tensor));
  }
  return cache;
}

}  // namespace jevons

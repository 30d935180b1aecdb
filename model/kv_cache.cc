#include "model/kv_cache.h"

namespace jevons {

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

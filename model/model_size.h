// How large a model is: parameters, cache, bytes on disk.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "model/config.h"

namespace jevons {

// Of the main model, without layers for multi-token prediction; scales are not parameters.
struct ModelSize {
  int64_t num_params = 0;
  // Read for one token: the chosen and the shared experts, attention, router, norms, head; not the
  // embedding, of which one row is read (tied, it counts once, as the head).
  int64_t num_active_params = 0;
  int64_t kv_values_per_token = 0;  // all layers
  int64_t kv_bytes_per_token = 0;   // in bf16
};

ModelSize ComputeModelSize(const ModelConfig& config);

// The least that the weights can take in memory: a byte for each where matrices are stored in FP8, else
// two. experts[layer]: the routed experts that are held; empty: all of all layers.
int64_t LeastWeightBytes(const ModelConfig& config, std::span<const std::vector<int32_t>> experts);

// Bytes of all stored tensors by dtype as safetensors spells it, e.g. {"BF16": 31412968448}.
std::map<std::string, int64_t> BytesByDType(const Checkpoint& checkpoint);

}  // namespace jevons

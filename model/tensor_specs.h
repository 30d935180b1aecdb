// Which tensors a DeepSeek checkpoint must hold, by published name and shape.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "model/checkpoint.h"
#include "model/config.h"

namespace jevons {

enum class TensorKind : uint8_t {
  kLinear,     // F32, F16, BF16, or F8_E4M3 with NAME_scale_inv
  kEmbedding,  // F32, F16, BF16; so are the kinds below
  kRouter,
  kNorm,
  kBias,  // e_score_correction_bias too
};

struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;
  TensorKind kind = TensorKind::kLinear;
};

inline constexpr char kEmbedTensor[] = "model.embed_tokens.weight";
inline constexpr char kHeadTensor[] = "lm_head.weight";
// Rows and columns of a block of an F8 tensor that shares one scale.
inline constexpr int64_t kScaleBlock = 128;

// Every tensor of the main model, without layers for multi-token prediction; lm_head.weight only
// where the head is not tied.
std::vector<TensorSpec> ExpectedTensors(const ModelConfig& config);

// Whether the tensor belongs to a layer after the main model's last one.
bool IsMtpTensor(std::string_view name, const ModelConfig& config);

// OK if the checkpoint holds ExpectedTensors. Otherwise one INVALID_ARGUMENT with all that is
// wrong: missing tensors, shapes, dtypes, scales. Tensors that nothing reads are logged as one
// warning.
absl::Status CheckTensors(const ModelConfig& config, const Checkpoint& checkpoint);

// Tensors of the file that no part of the model explains: not expected, no scale, no rotary buffer,
// not in one of the num_nextn_predict_layers layers. Sorted.
std::vector<std::string> UnknownTensors(const ModelConfig& config, const Checkpoint& checkpoint);

// The tensor that makes logits: the embedding where tie_word_embeddings is set, whatever else is
// stored; else lm_head.weight, or INVALID_ARGUMENT where that is missing.
absl::StatusOr<std::string> HeadTensorName(const ModelConfig& config, const Checkpoint& checkpoint);

// Whether the head is tied and the file stores another one, other than the embedding. Reads both.
bool StoredHeadDiffers(const ModelConfig& config, const Checkpoint& checkpoint);

}  // namespace jevons

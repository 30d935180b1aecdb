#include "model/tensor_specs.h"

#include <charconv>
#include <cstring>
#include <unordered_set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/log.h"
#include "model/error_text.h"
#include "model/safetensors.h"

namespace jevons {
namespace {

constexpr size_t kMaxListed = 8;
constexpr char kLayerPrefix[] = "model.layers.";
constexpr char kScaleSuffix[] = "_scale_inv";

class SpecList {
 public:
  explicit SpecList(const ModelConfig& config) : c_(config) {}

  std::vector<TensorSpec> Take() && { return std::move(specs_); }

  void AddTop() {
    Add(kEmbedTensor, {c_.vocab_size, c_.hidden_size}, TensorKind::kEmbedding);
    Add("model.norm.weight", {c_.hidden_size}, TensorKind::kNorm);
    if (!c_.tie_word_embeddings) Add(kHeadTensor, {c_.vocab_size, c_.hidden_size});
  }

  void AddLayer(int32_t layer) {
    const std::string prefix = absl::StrCat(kLayerPrefix, layer, ".");
    Add(prefix + "input_layernorm.weight", {c_.hidden_size}, TensorKind::kNorm);
    AddAttention(prefix + "self_attn.");
    Add(prefix + "post_attention_layernorm.weight", {c_.hidden_size}, TensorKind::kNorm);
    if (c_.IsMoeLayer(layer)) {
      AddExperts(prefix + "mlp.");
    } else {
      AddMlp(prefix + "mlp.", c_.intermediate_size);
    }
  }

 private:
  void Add(const std::string& name, std::vector<int64_t> shape,
           TensorKind kind = TensorKind::kLinear) {
    specs_.push_back({name, std::move(shape), kind});
  }
  void AddBiasIfAny(const std::string& name, int64_t n) {
    if (c_.attention_bias) Add(name + ".bias", {n}, TensorKind::kBias);
  }

  void AddAttention(const std::string& prefix) {
    const int64_t heads = c_.num_attention_heads;
    const int64_t q_rows = heads * c_.qk_head_dim();
    if (c_.q_lora_rank == 0) {
      Add(prefix + "q_proj.weight", {q_rows, c_.hidden_size});
    } else {
      Add(prefix + "q_a_proj.weight", {c_.q_lora_rank, c_.hidden_size});
      AddBiasIfAny(prefix + "q_a_proj", c_.q_lora_rank);
      Add(prefix + "q_a_layernorm.weight", {c_.q_lora_rank}, TensorKind::kNorm);
      Add(prefix + "q_b_proj.weight", {q_rows, c_.q_lora_rank});
    }
    Add(prefix + "kv_a_proj_with_mqa.weight", {c_.kv_entry_dim(), c_.hidden_size});
    AddBiasIfAny(prefix + "kv_a_proj_with_mqa", c_.kv_entry_dim());
    Add(prefix + "kv_a_layernorm.weight", {c_.kv_lora_rank}, TensorKind::kNorm);
    Add(prefix + "kv_b_proj.weight",
        {heads * (c_.qk_nope_head_dim + c_.v_head_dim), c_.kv_lora_rank});
    Add(prefix + "o_proj.weight", {c_.hidden_size, heads * c_.v_head_dim});
    AddBiasIfAny(prefix + "o_proj", c_.hidden_size);
  }

  void AddMlp(const std::string& prefix, int64_t width) {
    Add(prefix + "gate_proj.weight", {width, c_.hidden_size});
    Add(prefix + "up_proj.weight", {width, c_.hidden_size});
    Add(prefix + "down_proj.weight", {c_.hidden_size, width});
  }

  void AddExperts(const std::string& prefix) {
    Add(prefix + "gate.weight", {c_.n_routed_experts, c_.hidden_size}, TensorKind::kRouter);
    if (c_.topk_method == "noaux_tc") {
      Add(prefix + "gate.e_score_correction_bias", {c_.n_routed_experts}, TensorKind::kBias);
    }
    for (int32_t e = 0; e < c_.n_routed_experts; ++e) {
      AddMlp(absl::StrCat(prefix, "experts.", e, "."), c_.moe_intermediate_size);
    }
    if (c_.n_shared_experts > 0) {
      AddMlp(prefix + "shared_experts.", int64_t{c_.n_shared_experts} * c_.moe_intermediate_size);
    }
  }

  const ModelConfig& c_;
  std::vector<TensorSpec> specs_;
};

// The layer that the name speaks of; -1 for none.
int64_t LayerOf(std::string_view name) {
  if (!name.starts_with(kLayerPrefix)) return -1;
  const std::string_view rest = name.substr(std::string_view(kLayerPrefix).size());
  int64_t layer = -1;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), layer);
  const bool dot = error == std::errc() && end != rest.data() + rest.size() && *end == '.';
  return dot && layer >= 0 ? layer : -1;
}

void CheckScale(const TensorSpec& spec, const Checkpoint& checkpoint,
                std::vector<std::string>* wrong) {
  const std::string name = absl::StrCat(spec.name, kScaleSuffix);
  const std::vector<int64_t> shape = {(spec.shape[0] + kScaleBlock - 1) / kScaleBlock,
                                      (spec.shape[1] + kScaleBlock - 1) / kScaleBlock};
  const auto info = checkpoint.Info(name);
  if (!info.ok()) {
    wrong->push_back(absl::StrCat(spec.name, ": is F8_E4M3, but ", name, " is missing"));
    return;
  }
  if (info->shape != shape) {
    wrong->push_back(absl::StrCat(name, ": expected ", ShapeToString(shape), ", file has ",
                                  ShapeToString(info->shape)));
  }
  if (info->dtype != "F32") {
    wrong->push_back(absl::StrCat(name, ": expected F32, file has ", info->dtype));
  }
}

void CheckTensor(const TensorSpec& spec, const TensorInfo& info, const Checkpoint& checkpoint,
                 std::vector<std::string>* wrong) {
  if (info.shape != spec.shape) {
    wrong->push_back(absl::StrCat(spec.name, ": expected ", ShapeToString(spec.shape),
                                  ", file has ", ShapeToString(info.shape)));
    return;
  }
  if (info.dtype == "BF16" || info.dtype == "F16" || info.dtype == "F32") return;
  if (info.dtype == "F8_E4M3" && spec.kind == TensorKind::kLinear) {
    CheckScale(spec, checkpoint, wrong);
    return;
  }
  wrong->push_back(absl::StrCat(spec.name, ": expected BF16, F16",
                                spec.kind == TensorKind::kLinear ? ", F32 or F8_E4M3" : " or F32",
                                ", file has ", info.dtype));
}

}  // namespace

std::vector<TensorSpec> ExpectedTensors(const ModelConfig& config) {
  SpecList list(config);
  list.AddTop();
  for (int32_t layer = 0; layer < config.num_hidden_layers; ++layer) list.AddLayer(layer);
  return std::move(list).Take();
}

bool IsMtpTensor(std::string_view name, const ModelConfig& config) {
  return LayerOf(name) >= config.num_hidden_layers;
}

std::vector<std::string> UnknownTensors(const ModelConfig& config, const Checkpoint& checkpoint) {
  std::unordered_set<std::string> known;
  for (TensorSpec& spec : ExpectedTensors(config)) known.insert(std::move(spec.name));
  known.emplace(kHeadTensor);
  const int64_t num_layers = int64_t{config.num_hidden_layers} + config.num_nextn_predict_layers;
  std::vector<std::string> unknown;
  for (std::string& name : checkpoint.Names()) {
    const bool mtp = IsMtpTensor(name, config) && LayerOf(name) < num_layers;
    if (mtp || known.contains(name) || name.ends_with(kScaleSuffix) ||
        name.ends_with("rotary_emb.inv_freq")) {
      continue;
    }
    unknown.push_back(std::move(name));
  }
  return unknown;
}

absl::Status CheckTensors(const ModelConfig& config, const Checkpoint& checkpoint) {
  std::vector<std::string> missing;
  std::vector<std::string> wrong;
  for (const TensorSpec& spec : ExpectedTensors(config)) {
    const auto info = checkpoint.Info(spec.name);
    if (info.ok()) {
      CheckTensor(spec, *info, checkpoint, &wrong);
    } else if (spec.name != kHeadTensor) {
      missing.push_back(spec.name);
    }
  }
  std::vector<std::string> parts;
  const auto head = HeadTensorName(config, checkpoint);
  if (!head.ok()) parts.push_back(std::string(head.status().message()));
  if (!missing.empty()) {
    parts.push_back(
        absl::StrCat("missing tensors (", missing.size(), "): ", FirstOf(missing, kMaxListed)));
  }
  if (!wrong.empty()) parts.push_back(FirstOf(wrong, kMaxListed, "; "));
  if (!parts.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the checkpoint does not fit its config.json: ", absl::StrJoin(parts, "; ")));
  }
  const std::vector<std::string> unknown = UnknownTensors(config, checkpoint);
  if (!unknown.empty()) {
    LogWarning(
        "checkpoint_tensors_ignored",
        {{"num_tensors", unknown.size()}, {"names", Printable(FirstOf(unknown, kMaxListed, ","))}});
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> HeadTensorName(const ModelConfig& config,
                                           const Checkpoint& checkpoint) {
  if (config.tie_word_embeddings) return std::string(kEmbedTensor);
  if (checkpoint.Has(kHeadTensor)) return std::string(kHeadTensor);
  return absl::InvalidArgumentError(
      absl::StrCat(kHeadTensor, " is missing and tie_word_embeddings is not true; complete the ",
                   "download, or set tie_word_embeddings to true in config.json if this model ",
                   "uses its embedding as the head"));
}

bool StoredHeadDiffers(const ModelConfig& config, const Checkpoint& checkpoint) {
  if (!config.tie_word_embeddings || !checkpoint.Has(kHeadTensor)) return false;
  const auto head_info = checkpoint.Info(kHeadTensor);
  const auto embed_info = checkpoint.Info(kEmbedTensor);
  const auto head = checkpoint.Find(kHeadTensor);
  const auto embed = checkpoint.Find(kEmbedTensor);
  if (!head_info.ok() || !embed_info.ok() || !head.ok() || !embed.ok()) return true;
  if (head_info->dtype != embed_info->dtype || head_info->shape != embed_info->shape) return true;
  return std::memcmp(head->data, embed->data, static_cast<size_t>(head_info->bytes)) != 0;
}

}  // namespace jevons

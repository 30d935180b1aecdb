#include "model/model_weights.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "base/log.h"
#include "model/read_ahead.h"
#include "model/tensor_specs.h"

namespace jevons {
namespace {

constexpr absl::Duration kProgressInterval = absl::Seconds(5);

// Host memory with its view, for matrices that the checkpoint does not hold as the model wants
// them.
struct HostMatrix {
  std::vector<char> bytes;
  TensorView view;

  HostMatrix(DType dtype, int64_t rows, int64_t cols) : bytes(rows * cols * DTypeBytes(dtype)) {
    view = TensorView(bytes.data(), dtype, {rows, cols});
  }
};

// The layer and the expert that a tensor is of; -1: of none.
struct TensorPlace {
  int32_t layer = -1;
  int32_t expert = -1;
};
TensorPlace PlaceOf(const std::string& name) {
  TensorPlace out;
  std::sscanf(name.c_str(), "model.layers.%d.mlp.experts.%d.", &out.layer, &out.expert);
  return out;
}

// One call of LoadModelWeights.
class Loader {
 public:
  Loader(const ModelConfig& config, const Checkpoint& checkpoint, Backend& backend,
         std::span<const std::vector<int32_t>> experts, ActivationPrecision input)
      : config_(config),
        checkpoint_(checkpoint),
        backend_(backend),
        experts_(experts),
        input_(input) {}

  absl::StatusOr<ModelWeights> Load() {
    ModelWeights out;
    ReadInOrder order = OrderOfReads();
    ReadAhead ahead(checkpoint_, std::move(order.names));
    ahead.MoveTo(0, order.layer_begin[0]);
    ASSIGN_OR_RETURN(const TensorView table, checkpoint_.Find(kEmbedTensor));
    ASSIGN_OR_RETURN(out.embedding, backend_.Upload(table));
    for (int32_t i = 0; i < config_.num_hidden_layers; ++i) {
      // While a layer is packed the next one is read.
      ahead.MoveTo(order.layer_begin[i], order.layer_begin[i + 2]);
      ASSIGN_OR_RETURN(LayerWeights layer, LoadLayer(i));
      out.layers.push_back(std::move(layer));
      ShowProgress(i + 1);
      for (const std::string& name : read_) checkpoint_.Release(name);
      read_.clear();
    }
    ASSIGN_OR_RETURN(out.final_norm, Vector("model.norm.weight"));
    ASSIGN_OR_RETURN(const std::string head, HeadTensorName(config_, checkpoint_));
    ASSIGN_OR_RETURN(out.head, Matrix({head}));
    out.matrix_bytes = matrix_bytes_;
    return out;
  }

  absl::StatusOr<MlpWeights> LoadExperts(int32_t layer_idx, std::span<const int32_t> experts) {
    const std::string mlp = absl::StrCat("model.layers.", layer_idx, ".mlp.");
    std::vector<std::string> prefixes;
    for (int32_t e : experts) prefixes.push_back(absl::StrCat(mlp, "experts.", e, "."));
    const bool grouped = NumGroupedSharedExperts(config_, backend_.traits()) > 0;
    return LoadMlp(prefixes, grouped ? mlp + "shared_experts." : "");
  }

  // LoadExperts of one who reads nothing else.
  absl::StatusOr<MlpWeights> LoadExpertsAlone(int32_t layer_idx, std::span<const int32_t> experts) {
    std::vector<std::string> names;
    for (const int32_t e : experts) {
      const std::string prefix = absl::StrCat("model.layers.", layer_idx, ".mlp.experts.", e, ".");
      for (const char* part : {"gate_proj.weight", "up_proj.weight", "down_proj.weight"}) {
        AddTensor(prefix + part, names);
      }
    }
    const size_t num_names = names.size();
    ReadAhead ahead(checkpoint_, std::move(names));
    ahead.MoveTo(0, num_names);
    return LoadExperts(layer_idx, experts);
  }

 private:
  // The tensors of this rank, about as they are read. Those of layer i begin at layer_begin[i]; behind
  // the last layer comes the head, and the end.
  struct ReadInOrder {
    std::vector<std::string> names;
    std::vector<size_t> layer_begin;
  };
  ReadInOrder OrderOfReads() const {
    ReadInOrder out = {.names = {kEmbedTensor}, .layer_begin = {}};
    int32_t layer = -1;
    std::vector<int32_t> experts;
    for (const TensorSpec& spec : ExpectedTensors(config_)) {
      const TensorPlace place = PlaceOf(spec.name);
      if (place.layer < 0) continue;
      if (place.layer != layer) {
        layer = place.layer;
        out.layer_begin.push_back(out.names.size());
        experts = config_.IsMoeLayer(layer) ? ExpertsOf(layer) : std::vector<int32_t>();
        std::sort(experts.begin(), experts.end());
      }
      const bool mine =
          place.expert < 0 || std::binary_search(experts.begin(), experts.end(), place.expert);
      if (mine) AddTensor(spec.name, out.names);
    }
    out.layer_begin.push_back(out.names.size());
    if (!config_.tie_word_embeddings) out.names.push_back(kHeadTensor);
    out.layer_begin.push_back(out.names.size());
    return out;
  }
  void AddTensor(const std::string& name, std::vector<std::string>& names) const {
    names.push_back(name);
    const std::string scale = name + "_scale_inv";
    if (checkpoint_.Has(scale)) names.push_back(scale);
  }

  // A line now and then, where loading takes long.
  void ShowProgress(int32_t num_layers) {
    const absl::Time now = absl::Now();
    if (now - last_shown_ < kProgressInterval) return;
    last_shown_ = now;
    const double gigabytes = static_cast<double>(matrix_bytes_) / 1e9;
    LogInfo("loading",
            {{"layers", absl::StrCat(num_layers, "/", config_.num_hidden_layers)},
             {"gigabytes", absl::StrFormat("%.1f", gigabytes)},
             {"gigabytes_per_second",
              absl::StrFormat("%.2f", gigabytes / absl::ToDoubleSeconds(now - start_))}});
  }

  absl::StatusOr<LayerWeights> LoadLayer(int32_t layer_idx) {
    const std::string prefix = absl::StrCat("model.layers.", layer_idx, ".");
    LayerWeights out;
    ASSIGN_OR_RETURN(out.input_norm, Vector(prefix + "input_layernorm.weight"));
    ASSIGN_OR_RETURN(out.post_attention_norm, Vector(prefix + "post_attention_layernorm.weight"));
    ASSIGN_OR_RETURN(out.attention, LoadAttention(prefix + "self_attn."));
    const std::string mlp = prefix + "mlp.";
    if (!config_.IsMoeLayer(layer_idx)) {
      ASSIGN_OR_RETURN(out.dense, LoadMlp({mlp}));
      return out;
    }
    ASSIGN_OR_RETURN(out.moe.router, Matrix({mlp + "gate.weight"}));
    if (config_.topk_method == "noaux_tc") {
      ASSIGN_OR_RETURN(out.moe.router_bias, Vector(mlp + "gate.e_score_correction_bias"));
    }
    ASSIGN_OR_RETURN(out.moe.experts, LoadExperts(layer_idx, ExpertsOf(layer_idx)));
    if (config_.n_shared_experts > 0 && NumGroupedSharedExperts(config_, backend_.traits()) == 0) {
      ASSIGN_OR_RETURN(out.moe.shared, LoadMlp({mlp + "shared_experts."}));
    }
    return out;
  }

  std::vector<int32_t> ExpertsOf(int32_t layer_idx) const {
    if (!experts_.empty()) return experts_[layer_idx];
    std::vector<int32_t> all(config_.n_routed_experts);
    std::iota(all.begin(), all.end(), 0);
    return all;
  }

  absl::StatusOr<AttentionWeights> LoadAttention(const std::string& prefix) {
    const bool q_lora = config_.q_lora_rank > 0;
    AttentionWeights out;
    const std::string q = prefix + (q_lora ? "q_a_proj" : "q_proj");
    const std::string kv_a = prefix + "kv_a_proj_with_mqa";
    ASSIGN_OR_RETURN(out.qkv_a, Matrix({q + ".weight", kv_a + ".weight"}));
    ASSIGN_OR_RETURN(out.kv_a_norm, Vector(prefix + "kv_a_layernorm.weight"));
    if (q_lora) {
      ASSIGN_OR_RETURN(out.q_a_norm, Vector(prefix + "q_a_layernorm.weight"));
      ASSIGN_OR_RETURN(out.q_b, Matrix({prefix + "q_b_proj.weight"}));
    }
    RETURN_IF_ERROR(LoadKvB(prefix + "kv_b_proj.weight", out));
    ASSIGN_OR_RETURN(out.o, Matrix({prefix + "o_proj.weight"}));
    if (config_.attention_bias) {
      ASSIGN_OR_RETURN(std::vector<float> bias, Values(kv_a + ".bias"));
      std::vector<float> q_bias(config_.num_attention_heads * config_.qk_head_dim(), 0.0f);
      if (q_lora) {
        ASSIGN_OR_RETURN(q_bias, Values(q + ".bias"));
      }
      bias.insert(bias.begin(), q_bias.begin(), q_bias.end());
      ASSIGN_OR_RETURN(out.qkv_a_bias, UploadFloats(bias));
      ASSIGN_OR_RETURN(out.o_bias, Vector(prefix + "o_proj.bias"));
    }
    return out;
  }

  // Rows of head h in kv_b: qk_nope_head_dim of UK, then v_head_dim of UV. An f8 matrix becomes f32
  // first, because a head's rows cut through its scale blocks.
  absl::Status LoadKvB(const std::string& name, AttentionWeights& out) {
    ASSIGN_OR_RETURN(TensorView kv_b, Find(name));
    const int64_t rows = kv_b.dim(0);
    const int64_t r = kv_b.dim(1);
    const int64_t nope = config_.qk_nope_head_dim;
    const int64_t v = config_.v_head_dim;
    HostMatrix expanded(DType::kF32, kv_b.dtype == DType::kF8E4M3 ? rows : 0, r);
    if (kv_b.dtype == DType::kF8E4M3) {
      ASSIGN_OR_RETURN(const TensorView scale, Find(name + "_scale_inv"));
      const int64_t scale_cols = scale.dim(1);
      for (int64_t i = 0; i < rows * r; ++i) {
        const int64_t block = (i / r / kScaleBlock) * scale_cols + i % r / kScaleBlock;
        expanded.view.ptr<float>()[i] = LoadValue(kv_b, i) * LoadValue(scale, block);
      }
      kv_b = expanded.view;
    }
    const int64_t value_bytes = DTypeBytes(kv_b.dtype);
    WeightSpec uk, uv;
    std::vector<HostMatrix> transposed;
    for (int64_t h = 0; h < config_.num_attention_heads; ++h) {
      const TensorView head = kv_b.Slice(h * (nope + v), nope);
      HostMatrix& t = transposed.emplace_back(kv_b.dtype, r, nope);
      const char* from = static_cast<const char*>(head.data);
      for (int64_t i = 0; i < nope; ++i) {
        for (int64_t j = 0; j < r; ++j) {
          std::memcpy(&t.bytes[(j * nope + i) * value_bytes], from + (i * r + j) * value_bytes,
                      value_bytes);
        }
      }
      uk.groups.push_back({{.data = t.view, .scale = {}}});
      uv.groups.push_back({{.data = kv_b.Slice(h * (nope + v) + nope, v), .scale = {}}});
    }
    ASSIGN_OR_RETURN(out.uk, Pack(uk, name));
    ASSIGN_OR_RETURN(out.uv, Pack(uv, name));
    return absl::OkStatus();
  }

  // One group for each prefix ("...mlp.experts.3."), then one for each expert that `shared` holds.
  absl::StatusOr<MlpWeights> LoadMlp(const std::vector<std::string>& prefixes,
                                     const std::string& shared = "") {
    WeightSpec gate_up, down;
    gate_up.use = WeightUse::kGateUp;
    for (const std::string& prefix : prefixes) {
      ASSIGN_OR_RETURN(WeightPart gate, Part(prefix + "gate_proj.weight"));
      ASSIGN_OR_RETURN(WeightPart up, Part(prefix + "up_proj.weight"));
      ASSIGN_OR_RETURN(WeightPart down_part, Part(prefix + "down_proj.weight"));
      gate_up.groups.push_back({gate, up});
      down.groups.push_back({down_part});
    }
    std::vector<HostMatrix> cut;
    if (!shared.empty()) RETURN_IF_ERROR(AddShared(shared, gate_up, down, cut));
    MlpWeights out;
    ASSIGN_OR_RETURN(out.gate_up, Pack(gate_up, prefixes[0] + "gate_proj.weight"));
    ASSIGN_OR_RETURN(out.down, Pack(down, prefixes[0] + "down_proj.weight"));
    return out;
  }

  // The shared experts are stored as one, as wide as all of them: its rows, and the columns of its
  // down_proj, expert after expert. `cut` keeps the columns.
  absl::Status AddShared(const std::string& prefix, WeightSpec& gate_up, WeightSpec& down,
                         std::vector<HostMatrix>& cut) {
    ASSIGN_OR_RETURN(const WeightPart gate, Part(prefix + "gate_proj.weight"));
    ASSIGN_OR_RETURN(const WeightPart up, Part(prefix + "up_proj.weight"));
    ASSIGN_OR_RETURN(const WeightPart all, Part(prefix + "down_proj.weight"));
    const int64_t m = config_.moe_intermediate_size;
    const auto rows = [m](const WeightPart& part, int64_t i) {
      WeightPart out = {.data = part.data.Slice(i * m, m), .scale = {}};
      const int64_t blocks = (m + kScaleBlock - 1) / kScaleBlock;
      if (part.scale.present()) out.scale = part.scale.Slice(i * m / kScaleBlock, blocks);
      return out;
    };
    const auto columns = [&cut](const TensorView& from, int64_t begin, int64_t count) {
      HostMatrix& to = cut.emplace_back(from.dtype, from.dim(0), count);
      const int64_t width = DTypeBytes(from.dtype);
      for (int64_t r = 0; r < from.dim(0); ++r) {
        std::memcpy(&to.bytes[r * count * width],
                    from.ptr<char>() + (r * from.dim(1) + begin) * width, count * width);
      }
      return to.view;
    };
    for (int64_t i = 0; i < config_.n_shared_experts; ++i) {
      gate_up.groups.push_back({rows(gate, i), rows(up, i)});
      WeightPart part = {.data = columns(all.data, i * m, m), .scale = {}};
      if (all.scale.present()) {
        part.scale = columns(all.scale, i * m / kScaleBlock, (m + kScaleBlock - 1) / kScaleBlock);
      }
      down.groups.push_back({part});
    }
    return absl::OkStatus();
  }

  // The named matrices stacked by rows.
  absl::StatusOr<std::unique_ptr<Weight>> Matrix(const std::vector<std::string>& names) {
    WeightSpec spec;
    spec.groups.emplace_back();
    for (const std::string& name : names) {
      ASSIGN_OR_RETURN(WeightPart part, Part(name));
      spec.groups[0].push_back(part);
    }
    return Pack(spec, names[0]);
  }

  absl::StatusOr<std::unique_ptr<Weight>> Pack(WeightSpec& spec, const std::string& name) {
    if (IsAllFp8(spec)) spec.input = input_;
    auto packed = backend_.PackWeight(spec);
    if (!packed.ok()) {
      return absl::Status(packed.status().code(),
                          absl::StrCat(name, ": ", packed.status().message()));
    }
    matrix_bytes_ += (*packed)->bytes();
    return packed;
  }

  absl::StatusOr<WeightPart> Part(const std::string& name) {
    WeightPart part;
    ASSIGN_OR_RETURN(part.data, Find(name));
    if (part.data.dtype == DType::kF8E4M3) {
      ASSIGN_OR_RETURN(part.scale, Find(name + "_scale_inv"));
    }
    return part;
  }

  absl::StatusOr<TensorView> Find(const std::string& name) {
    read_.push_back(name);
    return checkpoint_.Find(name);
  }

  absl::StatusOr<std::vector<float>> Values(const std::string& name) {
    ASSIGN_OR_RETURN(const TensorView stored, Find(name));
    std::vector<float> out(stored.num_elements());
    for (size_t i = 0; i < out.size(); ++i) out[i] = LoadValue(stored, static_cast<int64_t>(i));
    return out;
  }

  absl::StatusOr<DeviceTensor> UploadFloats(std::vector<float>& values) {
    return backend_.Upload(
        TensorView(values.data(), DType::kF32, {static_cast<int64_t>(values.size())}));
  }

  // Norm weights and biases are kept in f32.
  absl::StatusOr<DeviceTensor> Vector(const std::string& name) {
    ASSIGN_OR_RETURN(std::vector<float> values, Values(name));
    return UploadFloats(values);
  }

  const ModelConfig& config_;
  const Checkpoint& checkpoint_;
  Backend& backend_;
  const std::span<const std::vector<int32_t>> experts_;
  const ActivationPrecision input_;
  const absl::Time start_ = absl::Now();
  absl::Time last_shown_ = start_;
  std::vector<std::string> read_;
  int64_t matrix_bytes_ = 0;
};

}  // namespace

int32_t NumGroupedSharedExperts(const ModelConfig& config, const BackendTraits& traits) {
  const bool cuts_scales =
      config.n_shared_experts > 1 && config.moe_intermediate_size % kScaleBlock != 0;
  if (!traits.groups_shared_experts || (config.stores_fp8 && cuts_scales)) return 0;
  return config.n_shared_experts;
}

absl::StatusOr<ModelWeights> LoadModelWeights(const ModelConfig& config,
                                              const Checkpoint& checkpoint, Backend& backend,
                                              std::span<const std::vector<int32_t>> experts,
                                              ActivationPrecision input) {
  return Loader(config, checkpoint, backend, experts, input).Load();
}

absl::StatusOr<MlpWeights> LoadExpertWeights(const ModelConfig& config,
                                             const Checkpoint& checkpoint, Backend& backend,
                                             int32_t layer_idx, std::span<const int32_t> experts,
                                             ActivationPrecision input) {
  return Loader(config, checkpoint, backend, {}, input).LoadExpertsAlone(layer_idx, experts);
}

}  // namespace jevons

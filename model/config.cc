#include "model/config.h"

#include <optional>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "model/config_reader.h"
#include "model/file.h"
#include "model/rope_config.h"

namespace jevons {
namespace {

using nlohmann::json;

// Limits far above any released model that keep every product of two sizes inside int32 and every
// tensor inside int64.
constexpr IntRange kVocab = {1, 1 << 24};
constexpr IntRange kWidth = {1, 1 << 20};
constexpr IntRange kLoraRank = {1, 1 << 16};
constexpr IntRange kHeads = {1, 4096};
constexpr IntRange kHeadDim = {1, 4096};
constexpr IntRange kLayers = {1, 1024};
constexpr IntRange kExperts = {0, 1 << 16};
constexpr IntRange kPositions = {1, 1 << 27};
constexpr int64_t kMaxTotalExperts = 1 << 18;  // over all layers
constexpr int64_t kMaxFileBytes = 16 << 20;

void ReadSizes(ConfigReader* reader, ModelConfig* config) {
  config->vocab_size = reader->Int("vocab_size", kVocab);
  config->hidden_size = reader->Int("hidden_size", kWidth);
  config->intermediate_size = reader->Int("intermediate_size", kWidth);
  config->num_hidden_layers = reader->Int("num_hidden_layers", kLayers);
  config->num_nextn_predict_layers = reader->Int("num_nextn_predict_layers", {0, 64}, 0);
  config->max_position_embeddings = reader->Int("max_position_embeddings", kPositions);
  config->rms_norm_eps = reader->Number("rms_norm_eps", {0, 0.1, true});
  config->tie_word_embeddings = reader->Bool("tie_word_embeddings", false);
}

void ReadAttention(ConfigReader* reader, ModelConfig* config) {
  config->num_attention_heads = reader->Int("num_attention_heads", kHeads);
  config->q_lora_rank = reader->Int("q_lora_rank", {0, kLoraRank.max}, 0);
  config->kv_lora_rank = reader->Int("kv_lora_rank", kLoraRank);
  config->qk_nope_head_dim = reader->Int("qk_nope_head_dim", kHeadDim);
  config->qk_rope_head_dim = reader->Int("qk_rope_head_dim", {2, kHeadDim.max});
  config->v_head_dim = reader->Int("v_head_dim", kHeadDim);
  config->attention_bias = reader->Bool("attention_bias", false);
  if (config->qk_rope_head_dim % 2 != 0) {
    reader->AddWrong(absl::StrCat("qk_rope_head_dim is ", config->qk_rope_head_dim,
                                  "; it must be even, because its values turn in pairs"));
  }
}

// Which keys a file may lack, and what that means. Released files have them all; those that
// transformers saves may not. Its V3 class knows only noaux_tc and sigmoid and has 8 groups of
// which 4 are kept; its V2 class knows only softmax and has no groups unless it is told.
// moe_layer_freq is 1 in every release.
void ReadExperts(ConfigReader* reader, ModelConfig* config) {
  const bool v3 = config->model_type == "deepseek_v3";
  using Default = std::optional<std::string>;
  config->moe_intermediate_size = reader->Int("moe_intermediate_size", kWidth);
  config->n_shared_experts = reader->Int("n_shared_experts", {0, 1024}, 0);
  config->num_experts_per_tok = reader->Int("num_experts_per_tok", {1, kExperts.max});
  config->routed_scaling_factor = reader->Number("routed_scaling_factor", {0, 1e6, true});
  config->first_k_dense_replace = reader->Int("first_k_dense_replace", {0, kLayers.max});
  config->moe_layer_freq = reader->Int("moe_layer_freq", {1, kLayers.max}, 1);
  config->norm_topk_prob = reader->Bool("norm_topk_prob");
  config->topk_method = reader->String("topk_method", v3 ? Default("noaux_tc") : std::nullopt);
  config->scoring_func = reader->String("scoring_func", v3 ? "sigmoid" : "softmax");
  const bool must_say = !v3 && config->topk_method == "group_limited_greedy";
  const auto groups = [&](const std::string& key, int32_t v3_default) {
    const int32_t fallback = v3 ? v3_default : 1;
    return reader->Int(key, {1, kExperts.max},
                       must_say ? std::nullopt : std::optional<int32_t>(fallback));
  };
  config->n_group = groups("n_group", 8);
  config->topk_group = groups("topk_group", 4);
}

// "n_group (8)"
std::string Shown(const std::string& key, int64_t value) {
  return absl::StrCat(key, " (", value, ")");
}

// Only for values that are in range each by itself.
void CheckExperts(const ModelConfig& c, ConfigReader* reader) {
  const std::string experts = Shown("n_routed_experts", c.n_routed_experts);
  const std::string top_k = Shown("num_experts_per_tok", c.num_experts_per_tok);
  const std::string n_group = Shown("n_group", c.n_group);
  if (c.num_experts_per_tok > c.n_routed_experts) {
    reader->AddWrong(absl::StrCat(top_k, " is more than ", experts));
  }
  const int64_t total = int64_t{c.n_routed_experts} * c.num_hidden_layers;
  if (total > kMaxTotalExperts) {
    reader->AddWrong(absl::StrCat(experts, " times ",
                                  Shown("num_hidden_layers", c.num_hidden_layers), " is ", total,
                                  "; allowed are ", kMaxTotalExperts));
  }
  if (c.topk_group > c.n_group) {
    reader->AddWrong(absl::StrCat(Shown("topk_group", c.topk_group), " is more than ", n_group));
  }
  if (c.n_routed_experts % c.n_group != 0) {
    reader->AddWrong(absl::StrCat(experts, " is not a multiple of ", n_group));
    return;
  }
  const int32_t group_size = c.n_routed_experts / c.n_group;
  if (c.topk_method == "greedy" || c.n_group == 1) return;
  if (c.topk_method == "noaux_tc" && group_size < 2) {
    reader->AddWrong(absl::StrCat(n_group, " leaves groups of ", group_size,
                                  " expert; noaux_tc rates a group by its best 2"));
  }
  const int64_t kept = int64_t{c.topk_group} * group_size;
  if (c.num_experts_per_tok > kept) {
    reader->AddWrong(absl::StrCat(top_k, " is more than the ", kept, " experts in ",
                                  Shown("topk_group", c.topk_group), " groups of ", group_size));
  }
}

void CheckRouting(const ModelConfig& c, ConfigReader* reader) {
  const bool v3 = c.model_type == "deepseek_v3";
  const bool method = v3 ? c.topk_method == "noaux_tc"
                         : c.topk_method == "greedy" || c.topk_method == "group_limited_greedy";
  if (!method && !c.topk_method.empty()) {
    reader->AddUnsupported(absl::StrCat(
        "topk_method ", ShortJson(c.topk_method), " is not supported in ", c.model_type,
        "; supported ", v3 ? "is noaux_tc" : "are greedy and group_limited_greedy"));
  }
  const std::string scoring = v3 ? "sigmoid" : "softmax";
  if (c.scoring_func != scoring) {
    reader->AddUnsupported(absl::StrCat("scoring_func ", ShortJson(c.scoring_func),
                                        " is not supported in ", c.model_type, "; supported is ",
                                        scoring));
  }
}

void CheckQuantization(ConfigReader* reader) {
  const json* config = reader->Get("quantization_config");
  if (config == nullptr) return;
  if (!config->is_object()) {
    reader->AddWrong(
        absl::StrCat("quantization_config is ", ShortJson(*config), ", not an object"));
    return;
  }
  const auto value = [&](const char* key) {
    const auto at = config->find(key);
    return at == config->end() ? json() : *at;
  };
  const json fmt = value("fmt");
  if (value("quant_method") == "fp8" && value("weight_block_size") == json({128, 128}) &&
      (fmt.is_null() || fmt == "e4m3")) {
    return;
  }
  reader->AddUnsupported(absl::StrCat("quantization_config with quant_method ",
                                      ShortJson(value("quant_method")), ", fmt ", ShortJson(fmt),
                                      ", weight_block_size ", ShortJson(value("weight_block_size")),
                                      " is not supported; supported is fp8, e4m3, [128,128]"));
}

void CheckFixedKeys(ConfigReader* reader) {
  const std::string act = reader->String("hidden_act", "silu");
  if (!act.empty() && act != "silu") {
    reader->AddUnsupported(
        absl::StrCat("hidden_act ", ShortJson(act), " is not supported; supported is silu"));
  }
  if (!reader->Bool("rope_interleave", true)) {
    reader->AddUnsupported("rope_interleave false is not supported");
  }
  if (reader->Bool("mlp_bias", false)) {
    reader->AddUnsupported("mlp_bias true is not supported");
  }
}

void ReadGeneration(ConfigReader* reader, ModelConfig* out) {
  const IntRange ids = {0, out->vocab_size - 1};
  for (int32_t id : reader->IntList("eos_token_id", ids)) out->eos_token_ids.push_back(id);
  const bool greedy = reader->Has("do_sample") && !reader->Bool("do_sample", true);
  if (reader->Has("temperature")) {
    out->default_temperature = reader->Number("temperature", {0, 100});
  }
  if (reader->Has("top_p")) out->default_top_p = reader->Number("top_p", {0, 1, true});
  if (reader->Has("top_k")) out->default_top_k = reader->Int("top_k", {0, INT32_MAX});
  if (greedy) out->default_temperature = 0;
}

absl::Status CheckModelType(ConfigReader* reader, const ConfigProblems& problems,
                            ModelConfig* config) {
  config->model_type = reader->String("model_type");
  RETURN_IF_ERROR(problems.ToStatus("config.json"));
  if (config->model_type == "deepseek_v2" || config->model_type == "deepseek_v3") {
    return absl::OkStatus();
  }
  return absl::UnimplementedError(
      absl::StrCat("config.json: model_type ", ShortJson(config->model_type),
                   " is not supported; supported are deepseek_v2 and deepseek_v3"));
}

absl::StatusOr<json> ParseNamed(std::string_view text, const std::string& file) {
  auto value = ParseJsonObject(text);
  if (value.ok()) return value;
  return absl::InvalidArgumentError(absl::StrCat(file, ": ", value.status().message()));
}

absl::Status ParseGeneration(std::string_view text, ModelConfig* config) {
  ASSIGN_OR_RETURN(const json root, ParseNamed(text, "generation_config.json"));
  ConfigProblems problems;
  ConfigReader reader(root, "", &problems);
  ReadGeneration(&reader, config);
  return problems.ToStatus("generation_config.json");
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view config_json,
                                             std::string_view generation_json) {
  ASSIGN_OR_RETURN(const json root, ParseNamed(config_json, "config.json"));
  ModelConfig config;
  ConfigProblems problems;
  ConfigReader reader(root, "", &problems);
  RETURN_IF_ERROR(CheckModelType(&reader, problems, &config));
  ReadSizes(&reader, &config);
  const int64_t max_token_id = problems.empty() ? config.vocab_size - 1 : kVocab.max;
  ReadAttention(&reader, &config);
  ReadRope(root, &problems, &config);
  // null says that every layer is dense; an absent key says nothing.
  if (!root.contains("n_routed_experts")) problems.missing.push_back("n_routed_experts");
  config.n_routed_experts = reader.Int("n_routed_experts", kExperts, 0);
  if (config.n_routed_experts > 0 || !root.contains("n_routed_experts")) {
    ReadExperts(&reader, &config);
  }
  config.bos_token_id = reader.Int("bos_token_id", {0, max_token_id}, -1);
  config.eos_token_ids = reader.IntList("eos_token_id", {0, max_token_id});
  CheckQuantization(&reader);
  config.stores_fp8 = reader.Get("quantization_config") != nullptr;
  CheckFixedKeys(&reader);
  if (problems.missing.empty() && problems.wrong.empty() && config.n_routed_experts > 0) {
    CheckExperts(config, &reader);
    CheckRouting(config, &reader);
  }
  RETURN_IF_ERROR(problems.ToStatus("config.json"));
  if (!generation_json.empty()) RETURN_IF_ERROR(ParseGeneration(generation_json, &config));
  const std::set<int32_t> eos(config.eos_token_ids.begin(), config.eos_token_ids.end());
  config.eos_token_ids.assign(eos.begin(), eos.end());
  return config;
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& folder) {
  const std::string generation_path = absl::StrCat(folder, "/generation_config.json");
  ASSIGN_OR_RETURN(const std::string config_json,
                   ReadTextFile(absl::StrCat(folder, "/config.json"), kMaxFileBytes));
  std::string generation_json;
  if (PathExists(generation_path)) {
    ASSIGN_OR_RETURN(generation_json, ReadTextFile(generation_path, kMaxFileBytes));
    if (generation_json.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(generation_path, " is empty"));
    }
  }
  auto config = ParseModelConfig(config_json, generation_json);
  if (config.ok()) return config;
  return absl::Status(config.status().code(), absl::StrCat(folder, "/", config.status().message()));
}

}  // namespace jevons

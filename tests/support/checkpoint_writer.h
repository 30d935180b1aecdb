// Writes small safetensors files and checkpoint folders, whole or broken on purpose.
#pragma once

#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/random.h"
#include "base/tensor_view.h"
#include "gtest/gtest.h"
#include "model/config.h"
#include "model/tensor_specs.h"
#include "nlohmann/json.hpp"

namespace jevons {

inline void WriteFile(const std::string& path, std::string_view bytes) {
  std::ofstream out(path, std::ios::binary);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.close();
  EXPECT_TRUE(out.good()) << "cannot write " << path;
}

// A new folder that goes away with the object.
class TempFolder {
 public:
  TempFolder() {
    std::string pattern = ::testing::TempDir() + "/jevons_XXXXXX";
    EXPECT_NE(mkdtemp(pattern.data()), nullptr);
    path_ = pattern;
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  const std::string& path() const { return path_; }
  std::string Path(const std::string& name) const { return path_ + "/" + name; }
  void Write(const std::string& name, std::string_view bytes) const {
    WriteFile(Path(name), bytes);
  }
  void Remove(const std::string& name) const { std::filesystem::remove(Path(name)); }

 private:
  std::string path_;
};

// u64 length, header, data: nothing is checked.
inline std::string SafetensorsBytes(std::string_view header, std::string_view data = "") {
  std::string out;
  const uint64_t length = header.size();
  for (int i = 0; i < 8; ++i) out.push_back(static_cast<char>(length >> (8 * i) & 0xFF));
  out.append(header);
  out.append(data);
  return out;
}

inline std::string ToBytes(const void* data, size_t size) {
  return std::string(static_cast<const char*>(data), size);
}
inline std::string F32Bytes(const std::vector<float>& values) {
  return ToBytes(values.data(), values.size() * sizeof(float));
}
inline std::string Bf16Bytes(const std::vector<float>& values) {
  std::string out;
  for (float v : values) {
    const uint16_t bits = FloatToBf16(v);
    out.append(ToBytes(&bits, sizeof(bits)));
  }
  return out;
}

// The tensors of a checkpoint to be written. Names come out sorted.
class CheckpointWriter {
 public:
  struct Tensor {
    std::string dtype;  // as safetensors spells it
    std::vector<int64_t> shape;
    std::string bytes;
  };

  // Replaces a tensor of the same name.
  void Add(const std::string& name, Tensor tensor) { tensors_[name] = std::move(tensor); }
  void AddF32(const std::string& name, std::vector<int64_t> shape, const std::vector<float>& v) {
    Add(name, {"F32", std::move(shape), F32Bytes(v)});
  }
  void AddBf16(const std::string& name, std::vector<int64_t> shape, const std::vector<float>& v) {
    Add(name, {"BF16", std::move(shape), Bf16Bytes(v)});
  }
  void Remove(const std::string& name) { tensors_.erase(name); }
  bool Has(const std::string& name) const { return tensors_.contains(name); }
  const Tensor& Get(const std::string& name) const { return tensors_.at(name); }
  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const auto& [name, tensor] : tensors_) names.push_back(name);
    return names;
  }

  // One file with these tensors. `metadata` is the text of __metadata__'s value, empty for none;
  // `padding` spaces end the header, so that 1 misaligns the data.
  std::string FileBytes(const std::vector<std::string>& names, const std::string& metadata = "",
                        int padding = 0) const {
    std::string header = "{";
    std::string data;
    if (!metadata.empty()) header += "\"__metadata__\":" + metadata;
    for (const std::string& name : names) {
      const Tensor& t = tensors_.at(name);
      const nlohmann::json entry = {{"dtype", t.dtype},
                                    {"shape", t.shape},
                                    {"data_offsets", {data.size(), data.size() + t.bytes.size()}}};
      if (header.size() > 1) header += ",";
      header += nlohmann::json(name).dump() + ":" + entry.dump();
      data += t.bytes;
    }
    header += "}";
    header.append((8 - header.size() % 8) % 8 + static_cast<size_t>(padding), ' ');
    return SafetensorsBytes(header, data);
  }
  std::string FileBytes() const { return FileBytes(Names()); }

  // FOLDER/model.safetensors.
  void WriteSingle(const std::string& folder) const {
    WriteFile(folder + "/model.safetensors", FileBytes());
  }

  static std::string ShardName(int shard, int num_shards) {
    char name[64];
    std::snprintf(name, sizeof(name), "model-%05d-of-%05d.safetensors", shard + 1, num_shards);
    return name;
  }

  // Deals the tensors out in turn, so that a scale is not beside its weight, and writes the index.
  void WriteShards(const std::string& folder, int num_shards) const {
    std::vector<std::vector<std::string>> parts(static_cast<size_t>(num_shards));
    nlohmann::json weight_map = nlohmann::json::object();
    int next = 0;
    for (const auto& [name, tensor] : tensors_) {
      weight_map[name] = ShardName(next % num_shards, num_shards);
      parts[static_cast<size_t>(next++ % num_shards)].push_back(name);
    }
    for (int i = 0; i < num_shards; ++i) {
      WriteFile(folder + "/" + ShardName(i, num_shards), FileBytes(parts[static_cast<size_t>(i)]));
    }
    const nlohmann::json index = {{"metadata", {{"total_size", 0}}}, {"weight_map", weight_map}};
    WriteFile(folder + "/model.safetensors.index.json", index.dump(1));
  }

 private:
  std::map<std::string, Tensor> tensors_;
};

// config.json of a model with a few thousand parameters: two layers, the second one with eight
// experts. `changes` replaces keys; a null in it removes the key.
inline nlohmann::json TinyConfigJson(const std::string& model_type = "deepseek_v3",
                                     const nlohmann::json& changes = nlohmann::json::object()) {
  const bool v3 = model_type == "deepseek_v3";
  nlohmann::json config = {{"model_type", model_type},
                           {"vocab_size", 64},
                           {"hidden_size", 32},
                           {"intermediate_size", 48},
                           {"moe_intermediate_size", 16},
                           {"num_hidden_layers", 2},
                           {"num_attention_heads", 2},
                           {"num_key_value_heads", 2},
                           {"kv_lora_rank", 16},
                           {"qk_nope_head_dim", 8},
                           {"qk_rope_head_dim", 4},
                           {"v_head_dim", 8},
                           {"n_routed_experts", 8},
                           {"n_shared_experts", 1},
                           {"num_experts_per_tok", 2},
                           {"n_group", v3 ? 4 : 1},
                           {"topk_group", v3 ? 2 : 1},
                           {"topk_method", v3 ? "noaux_tc" : "greedy"},
                           {"scoring_func", v3 ? "sigmoid" : "softmax"},
                           {"norm_topk_prob", v3},
                           {"routed_scaling_factor", v3 ? 2.5 : 1.0},
                           {"first_k_dense_replace", 1},
                           {"moe_layer_freq", 1},
                           {"hidden_act", "silu"},
                           {"rms_norm_eps", 1e-6},
                           {"rope_theta", 10000.0},
                           {"max_position_embeddings", 4096},
                           {"attention_bias", false},
                           {"tie_word_embeddings", false},
                           {"bos_token_id", 0},
                           {"eos_token_id", 1}};
  if (v3) config["q_lora_rank"] = 24;
  config.merge_patch(changes);
  return config;
}

// Every tensor that `config` needs, in bf16 (the router's bias in f32): matrices with outputs of
// about unit size, norms near 1.
inline CheckpointWriter RandomTensors(const ModelConfig& config, uint64_t seed) {
  CheckpointWriter writer;
  Random random(seed);
  for (const TensorSpec& spec : ExpectedTensors(config)) {
    size_t n = 1;
    for (int64_t dim : spec.shape) n *= static_cast<size_t>(dim);
    const bool norm = spec.kind == TensorKind::kNorm;
    const bool bias = spec.kind == TensorKind::kBias;
    const bool embedding = spec.kind == TensorKind::kEmbedding;
    const double scale = norm || bias ? 0.1
                         : embedding  ? 1
                                      : 1 / std::sqrt(static_cast<double>(spec.shape.back()));
    std::vector<float> values(n);
    for (float& v : values) v = static_cast<float>((norm ? 1 : 0) + scale * random.Normal());
    if (bias) {
      writer.AddF32(spec.name, spec.shape, values);
    } else {
      writer.AddBf16(spec.name, spec.shape, values);
    }
  }
  return writer;
}

// A whole folder, config.json and model.safetensors, of a random model.
inline void WriteRandomModel(const std::string& folder, const nlohmann::json& config_json,
                             uint64_t seed) {
  const auto config = ParseModelConfig(config_json.dump(), "");
  ASSERT_TRUE(config.ok()) << config.status();
  WriteFile(folder + "/config.json", config_json.dump(1));
  RandomTensors(*config, seed).WriteSingle(folder);
}

}  // namespace jevons

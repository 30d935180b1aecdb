#include <cinttypes>
#include <cstdio>
#include <memory>

#include "model/checkpoint.h"
#include "model/config.h"
#include "model/model_size.h"
#include "nlohmann/json.hpp"
#include "server/cmd.h"

namespace jevons {
namespace {

struct InspectFlags {
  std::string model;
  bool json = false;
};

nlohmann::ordered_json Describe(const ModelConfig& config) {
  const ModelSize size = ComputeModelSize(config);
  return {
      {"model_type", config.model_type},
      {"num_hidden_layers", config.num_hidden_layers},
      {"num_nextn_predict_layers", config.num_nextn_predict_layers},
      {"hidden_size", config.hidden_size},
      {"num_attention_heads", config.num_attention_heads},
      {"q_lora_rank", config.q_lora_rank},
      {"kv_lora_rank", config.kv_lora_rank},
      {"qk_nope_head_dim", config.qk_nope_head_dim},
      {"qk_rope_head_dim", config.qk_rope_head_dim},
      {"v_head_dim", config.v_head_dim},
      {"intermediate_size", config.intermediate_size},
      {"moe_intermediate_size", config.moe_intermediate_size},
      {"n_routed_experts", config.n_routed_experts},
      {"n_shared_experts", config.n_shared_experts},
      {"num_experts_per_tok", config.num_experts_per_tok},
      {"first_k_dense_replace", config.first_k_dense_replace},
      {"vocab_size", config.vocab_size},
      {"max_position_embeddings", config.max_position_embeddings},
      {"tie_word_embeddings", config.tie_word_embeddings},
      {"num_params", size.num_params},
      {"num_active_params_per_token", size.num_active_params},
      {"kv_bytes_per_token_bf16", size.kv_bytes_per_token},
      {"kv_bytes_per_token_f32", size.kv_values_per_token * int64_t{sizeof(float)}},
  };
}

absl::Status Inspect(const InspectFlags& flags) {
  ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(flags.model));
  nlohmann::ordered_json out = Describe(config);
  const absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(flags.model);
  // The sizes follow from config.json alone; weights may not have been downloaded.
  if (!checkpoint.ok() && !absl::IsNotFound(checkpoint.status())) return checkpoint.status();
  if (checkpoint.ok()) {
    for (const auto& [dtype, bytes] : BytesByDType(**checkpoint)) {
      out["stored_bytes_" + dtype] = bytes;
    }
  }
  if (flags.json) {
    std::printf("%s\n", out.dump(1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    return absl::OkStatus();
  }
  for (const auto& [key, value] : out.items()) {
    std::printf("%-30s %s\n", key.c_str(),
                value.is_string() ? value.get<std::string>().c_str() : value.dump().c_str());
  }
  if (!checkpoint.ok()) {
    std::printf("no weights: %s\n", std::string(checkpoint.status().message()).c_str());
  }
  return absl::OkStatus();
}

}  // namespace

void AddInspect(CLI::App& app, CommandRun& run) {
  const auto flags = std::make_shared<InspectFlags>();
  CLI::App& cmd = *app.add_subcommand("inspect", "Print a model's sizes; reads no weights");
  cmd.add_option("--model", flags->model, "Checkpoint folder")->required();
  cmd.add_flag("--json", flags->json, "Print one JSON object");
  cmd.callback([&run, flags] {
    run = [flags] {
      const absl::Status status = Inspect(*flags);
      return status.ok() ? kExitOk : Fail(status);
    };
  });
}

}  // namespace jevons

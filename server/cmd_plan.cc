#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_format.h"
#include "engine/memory_plan.h"
#include "nlohmann/json.hpp"
#include "server/cmd.h"

namespace jevons {
namespace {

struct PlanFlags {
  EngineOptions engine;
  std::string gpu = "h100";
  bool json = false;
};

nlohmann::ordered_json Describe(const MemoryPlan& plan) {
  return {{"gpu", plan.device},
          {"gpu_bytes", plan.device_bytes},
          {"weight_bytes", plan.weight_bytes},
          {"workspace_bytes", plan.workspace_bytes},
          {"moving_bytes", plan.moving_bytes},
          {"reserve_bytes", plan.reserve_bytes},
          {"kv_bytes_per_token", plan.kv_bytes_per_token},
          {"kv_cache_tokens", std::max<int64_t>(plan.kv_cache_tokens, 0)}};
}

void Print(const nlohmann::ordered_json& values) {
  for (const auto& [key, value] : values.items()) {
    const bool large = key.ends_with("_bytes");
    std::printf("%-20s %s%s\n", key.c_str(),
                value.is_string() ? value.get<std::string>().c_str() : value.dump().c_str(),
                large ? absl::StrFormat("  (%.2f GB)", value.get<double>() / 1e9).c_str() : "");
  }
}

absl::Status Plan(const PlanFlags& flags) {
  ASSIGN_OR_RETURN(const MemoryPlan plan, PlanMemory(flags.engine, flags.gpu));
  const nlohmann::ordered_json values = Describe(plan);
  if (flags.json) {
    std::printf("%s\n", values.dump(1).c_str());
  } else {
    Print(values);
  }
  std::fflush(stdout);  // before the error, if there is one
  return CheckFits(plan, flags.engine);
}

}  // namespace

void AddPlan(CLI::App& app, CommandRun& run) {
  const auto flags = std::make_shared<PlanFlags>();
  EngineOptions& engine = flags->engine;
  CLI::App& cmd = *app.add_subcommand(
      "plan", "Print what a model takes of a GPU's memory and what is left for its cache");
  cmd.add_option("--model", engine.model_folder, "Checkpoint folder; config.json is enough")
      ->required();
  cmd.add_option("--gpu", flags->gpu, "a100, h100, h200 or b200")->capture_default_str();
  cmd.add_option("--max-num-seqs", engine.max_num_seqs, "As for serve")->capture_default_str();
  cmd.add_option("--max-num-batched-tokens", engine.max_num_batched_tokens, "As for serve")
      ->capture_default_str();
  cmd.add_option("--max-model-len", engine.max_model_len, "As for serve");
  cmd.add_option("--kv-cache-tokens", engine.kv_cache_tokens,
                 "Tokens that the cache must hold; fails where they do not fit");
  AddKvCacheDType(cmd, engine);
  AddActivationPrecision(cmd, engine);
  AddCublasLtRows(cmd, engine);
  cmd.add_option("--ranks", engine.num_ranks, "GPUs that share the experts; the plan is of one")
      ->capture_default_str();
  cmd.add_option("--redundant-experts", engine.num_redundant_experts, "As for serve")
      ->capture_default_str();
  engine.rank_transport = RankTransport::kNccl;
  cmd.add_flag("--json", flags->json, "Print one JSON object");
  cmd.callback([&run, flags] {
    run = [flags] {
      const absl::Status status = Plan(*flags);
      return status.ok() ? kExitOk : Fail(status);
    };
  });
}

}  // namespace jevons

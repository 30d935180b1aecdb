// What the prefix cache saves: the time to the first token of a prompt of 4,100 tokens of which the first
// 4,000 are new, or were computed for another request.
//
//   prefix_bench [LAYERS] [ROUNDS]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "bench/model_shapes.h"
#include "bench/random_checkpoint.h"
#include "engine/loaded_model.h"

namespace jevons {
namespace {

constexpr int32_t kShared = 4000;
constexpr int32_t kOwn = 100;

absl::StatusOr<double> SecondsToFirstToken(Engine& engine, int32_t shared_id, int32_t own_id) {
  GenerationRequest request;
  request.prompt_ids.assign(kShared, shared_id);
  request.prompt_ids.resize(kShared + kOwn, own_id);
  request.max_new_tokens = 1;
  request.ignore_eos = true;
  const auto start = std::chrono::steady_clock::now();
  ASSIGN_OR_RETURN(const std::shared_ptr<TokenStream> stream, engine.Submit(std::move(request)));
  while (true) {
    const auto chunk = stream->WaitChunk(absl::Minutes(10));
    if (!chunk.has_value()) return absl::DeadlineExceededError("no token for ten minutes");
    if (!chunk->end) continue;
    RETURN_IF_ERROR(chunk->end->error);
    break;
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

absl::Status Run(int32_t num_layers, int32_t num_rounds) {
  ModelConfig config = V2LiteShape();
  config.num_hidden_layers = num_layers;
  EngineOptions options;
  options.backend = BackendKind::kCpu;
  options.max_model_len = kShared + kOwn + 1;
  options.kv_cache_tokens = 2 * options.max_model_len;
  const RandomCheckpoint checkpoint(config, 1);
  ASSIGN_OR_RETURN(LoadedModel model, LoadModel(options, config, checkpoint, nullptr, nullptr));
  const RealClock clock;
  const std::unique_ptr<Engine> engine = StartEngine(std::move(model), &clock);
  std::vector<double> cold, hit, ratios;
  for (int32_t round = 0; round < num_rounds; ++round) {
    ASSIGN_OR_RETURN(const double first, SecondsToFirstToken(*engine, round, 1000));
    ASSIGN_OR_RETURN(const double second, SecondsToFirstToken(*engine, round, 1001));
    cold.push_back(first);
    hit.push_back(second);
    ratios.push_back(second / first);
  }
  std::printf(
      R"({"model": "V2-Lite, %d layers, bf16", "prompt": %d, "shared": %d, "rounds": %d, )"
      R"("backend": "%s", "cold_seconds": %.4f, "hit_seconds": %.4f, "hit_over_cold": %.4f})"
      "\n",
      num_layers, kShared + kOwn, kShared, num_rounds, engine->backend_description().c_str(),
      Median(cold), Median(hit), Median(ratios));
  return absl::OkStatus();
}

}  // namespace
}  // namespace jevons

int main(int argc, char** argv) {
  const absl::Status status =
      jevons::Run(argc > 1 ? std::atoi(argv[1]) : 5, argc > 2 ? std::atoi(argv[2]) : 3);
  if (status.ok()) return 0;
  std::fprintf(stderr, "error: %s\n", status.ToString().c_str());
  return 1;
}

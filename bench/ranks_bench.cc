// What sharing experts over ranks costs on one machine: the same model and requests in one process with
// all threads, and in ranks of one thread each, in turns.
//
//   ranks_bench [RANKS] [LAYERS] [ROUNDS]
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

constexpr int kBatch = 16;
constexpr int kNewTokens = 24;

EngineOptions Options(int32_t num_ranks, int32_t num_threads) {
  EngineOptions options;
  options.backend = BackendKind::kCpu;
  options.num_ranks = num_ranks;
  options.num_threads = num_threads;
  options.max_num_seqs = kBatch;
  options.max_num_batched_tokens = 64;
  options.max_model_len = 256;
  options.kv_cache_tokens = 4096;
  options.balance_interval_steps = 0;
  return options;
}

// Tokens a second of kBatch sequences, from their first tokens to their last.
absl::StatusOr<double> Decode(Engine& engine) {
  std::vector<std::shared_ptr<TokenStream>> streams;
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < kBatch; ++i) {
    GenerationRequest request;
    request.prompt_ids = {100 + i};
    request.max_new_tokens = kNewTokens;
    request.ignore_eos = true;
    request.sampling.temperature = 0;
    ASSIGN_OR_RETURN(std::shared_ptr<TokenStream> stream, engine.Submit(std::move(request)));
    streams.push_back(std::move(stream));
  }
  for (const auto& stream : streams) {
    bool ended = false;
    while (!ended) {
      const auto chunk = stream->WaitChunk(absl::Minutes(10));
      if (!chunk.has_value()) return absl::DeadlineExceededError("no token for ten minutes");
      ended = chunk->end.has_value();
      if (ended) RETURN_IF_ERROR(chunk->end->error);
    }
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  return kBatch * kNewTokens / took.count();
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

absl::Status Run(int32_t num_ranks, int32_t num_layers, int32_t rounds) {
  ModelConfig config = V2LiteShape();
  config.num_hidden_layers = num_layers;
  const RealClock clock;
  ASSIGN_OR_RETURN(LoadedModel model, LoadModel(Options(1, num_ranks), config,
                                                RandomCheckpoint(config, 1), nullptr, nullptr));
  const auto one = StartEngine(std::move(model), &clock);
  ASSIGN_OR_RETURN(LoadedGroup group,
                   LoadModelGroup(Options(num_ranks, 1), config, RandomCheckpoint(config, 1)));
  const auto many = StartEngine(std::move(group), &clock);
  std::vector<double> of_one, of_many, ratios;
  for (int round = -1; round < rounds; ++round) {
    ASSIGN_OR_RETURN(const double a, Decode(*one));
    ASSIGN_OR_RETURN(const double b, Decode(*many));
    if (round < 0) continue;  // warm up
    of_one.push_back(a);
    of_many.push_back(b);
    ratios.push_back(b / a);
  }
  std::printf(
      R"({"model": "V2-Lite, %d layers, bf16", "batch": %d, "new_tokens": %d, "rounds": %d, )"
      R"("one_rank_threads": %d, "one_rank_tokens_per_second": %.2f, "ranks": %d, )"
      R"("ranks_tokens_per_second": %.2f, "ratio": %.3f})"
      "\n",
      num_layers, kBatch, kNewTokens, rounds, num_ranks, Median(of_one), num_ranks, Median(of_many),
      Median(ratios));
  return absl::OkStatus();
}

}  // namespace
}  // namespace jevons

int main(int argc, char** argv) {
  const auto number = [&](int i, int32_t otherwise) {
    return i < argc ? std::atoi(argv[i]) : otherwise;
  };
  const absl::Status status = jevons::Run(number(1, 2), number(2, 5), number(3, 5));
  if (status.ok()) return 0;
  std::fprintf(stderr, "error: %s\n", status.ToString().c_str());
  return 1;
}

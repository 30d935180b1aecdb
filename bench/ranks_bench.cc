// What sharing experts over ranks costs on one machine: the same model and requests on several sides, in
// turns.
//
//   ranks_bench [RANKS] [LAYERS] [ROUNDS] [BATCH] [SIDE...]
//
//   one                   one rank with a thread for each rank of the others
//   threads               ranks of one thread each, in one process
//   off, shared, batches  the same over Gloo, with so much overlap of exchanges and computing
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/model_shapes.h"
#include "bench/random_checkpoint.h"
#include "engine/loaded_model.h"
#include "parallel/gloo_communicator.h"
#include "tests/parallel/free_address.h"

namespace jevons {
namespace {

constexpr int kNewTokens = 24;

struct BenchOptions {
  int32_t num_ranks = 2;
  int32_t num_layers = 5;
  int32_t num_rounds = 5;
  int32_t batch = 16;
  std::vector<std::string> sides = {"one", "threads"};
};

EngineOptions Options(const BenchOptions& bench, int32_t num_ranks, int32_t num_threads) {
  EngineOptions options;
  options.backend = BackendKind::kCpu;
  options.num_ranks = num_ranks;
  options.num_threads = num_threads;
  options.max_num_seqs = bench.batch;
  options.max_num_batched_tokens = std::max(bench.batch, 64);
  options.max_model_len = 256;
  options.kv_cache_tokens = int64_t{bench.batch} * options.max_model_len;
  options.balance_interval_steps = 0;
  return options;
}

// Tokens a second of `batch` sequences, from their first tokens to their last.
absl::StatusOr<double> Decode(Engine& engine, int batch) {
  std::vector<std::shared_ptr<TokenStream>> streams;
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < batch; ++i) {
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
  return batch * kNewTokens / took.count();
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

absl::StatusOr<std::vector<std::unique_ptr<Communicator>>> ConnectOverGloo(int32_t num_ranks) {
  const std::string leader = FreeAddress();
  std::vector<absl::StatusOr<std::unique_ptr<Communicator>>> made(num_ranks);
  std::vector<std::thread> threads;
  for (int32_t r = 0; r < num_ranks; ++r) {
    threads.emplace_back([&, r] {
      GlooOptions options;
      options.rendezvous.info = {.rank = r, .world_size = num_ranks};
      options.rendezvous.leader = leader;
      made[r] = CreateGlooCommunicator(options);
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::vector<std::unique_ptr<Communicator>> out;
  for (auto& communicator : made) {
    RETURN_IF_ERROR(communicator.status());
    out.push_back(*std::move(communicator));
  }
  return out;
}

absl::StatusOr<std::unique_ptr<Engine>> MakeSide(const std::string& side, const BenchOptions& bench,
                                                 const Clock& clock) {
  ModelConfig config = V2LiteShape();
  config.num_hidden_layers = bench.num_layers;
  const RandomCheckpoint checkpoint(config, 1);
  if (side == "one") {
    ASSIGN_OR_RETURN(LoadedModel model, LoadModel(Options(bench, 1, bench.num_ranks), config,
                                                  checkpoint, nullptr, nullptr));
    return StartEngine(std::move(model), &clock);
  }
  EngineOptions options = Options(bench, bench.num_ranks, 1);
  if (side == "threads") {
    ASSIGN_OR_RETURN(LoadedGroup group, LoadModelGroup(options, config, checkpoint));
    return StartEngine(std::move(group), &clock);
  }
  for (const auto overlap :
       {ExchangeOverlap::kOff, ExchangeOverlap::kShared, ExchangeOverlap::kBatches}) {
    if (ExchangeOverlapName(overlap) == side) options.exchange_overlap = overlap;
  }
  if (ExchangeOverlapName(options.exchange_overlap) != side) {
    return absl::InvalidArgumentError(
        absl::StrCat("a side is one, threads, off, shared or batches, given ", side));
  }
  ASSIGN_OR_RETURN(auto communicators, ConnectOverGloo(bench.num_ranks));
  LoadedGroup group;
  for (auto& communicator : communicators) {
    ASSIGN_OR_RETURN(LoadedModel model, LoadModel(options, config, checkpoint, nullptr, nullptr,
                                                  std::move(communicator)));
    group.models.push_back(std::move(model));
  }
  return StartEngine(std::move(group), &clock);
}

absl::Status Run(const BenchOptions& bench) {
  const RealClock clock;
  const size_t num_sides = bench.sides.size();
  std::vector<std::unique_ptr<Engine>> engines;
  for (const std::string& side : bench.sides) {
    ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine, MakeSide(side, bench, clock));
    engines.push_back(std::move(engine));
  }
  std::vector<std::vector<double>> speeds(num_sides), ratios(num_sides);
  for (int round = -1; round < bench.num_rounds; ++round) {
    double first = 0;
    for (size_t i = 0; i < num_sides; ++i) {
      ASSIGN_OR_RETURN(const double speed, Decode(*engines[i], bench.batch));
      if (i == 0) first = speed;
      if (round < 0) continue;  // warm up
      speeds[i].push_back(speed);
      ratios[i].push_back(speed / first);
    }
  }
  for (size_t i = 0; i < num_sides; ++i) {
    std::printf(
        R"({"model": "V2-Lite, %d layers, bf16", "batch": %d, "new_tokens": %d, "rounds": %d, )"
        R"("ranks": %d, "side": "%s", "tokens_per_second": %.2f, "over_%s": %.3f})"
        "\n",
        bench.num_layers, bench.batch, kNewTokens, bench.num_rounds, bench.num_ranks,
        bench.sides[i].c_str(), Median(speeds[i]), bench.sides[0].c_str(), Median(ratios[i]));
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace jevons

int main(int argc, char** argv) {
  jevons::BenchOptions bench;
  const auto read = [&](int i, int32_t& value) {
    if (i < argc) value = std::atoi(argv[i]);
  };
  read(1, bench.num_ranks);
  read(2, bench.num_layers);
  read(3, bench.num_rounds);
  read(4, bench.batch);
  if (argc > 5) bench.sides.assign(argv + 5, argv + argc);
  const absl::Status status = jevons::Run(bench);
  if (status.ok()) return 0;
  std::fprintf(stderr, "error: %s\n", status.ToString().c_str());
  return 1;
}

// CPU time of a step's host work: Schedule and Update with every sequence decoding, in the steady
// state.
#include <memory>
#include <vector>

#include "benchmark/benchmark.h"
#include "scheduler/scheduler.h"

namespace jevons {
namespace {

constexpr int32_t kNumNew = 1024;  // steps until the sequences start anew

class Load {
 public:
  Load(int32_t num_seqs, int32_t num_prompt, bool with_prefixes)
      : num_seqs_(num_seqs),
        num_prompt_(num_prompt),
        blocks_(static_cast<int32_t>(num_seqs * BlocksFor(num_prompt + kNumNew))),
        prefixes_(&blocks_),
        scheduler_({.max_num_seqs = num_seqs, .max_num_batched_tokens = num_seqs * num_prompt},
                   &blocks_, with_prefixes ? &prefixes_ : nullptr),
        sampled_(static_cast<size_t>(num_seqs), 1) {
    Restart();
  }

  void Step() {
    benchmark::DoNotOptimize(scheduler_.Schedule().block_tables.data());
    scheduler_.Update(sampled_);
  }

  bool Complete() const { return sequences_[0]->num_new_tokens() >= kNumNew; }

  void Restart() {
    for (const auto& sequence : sequences_) scheduler_.Finish(sequence.get());
    sequences_.clear();
    for (int32_t i = 0; i < num_seqs_; ++i) {
      Request request = {.id = static_cast<uint64_t>(i), .max_new_tokens = kNumNew};
      request.prompt_ids.assign(static_cast<size_t>(num_prompt_), i);
      sequences_.push_back(std::make_unique<Sequence>(std::move(request)));
      scheduler_.Add(sequences_.back().get());
    }
    Step();
  }

 private:
  const int32_t num_seqs_;
  const int32_t num_prompt_;
  BlockManager blocks_;
  PrefixCache prefixes_;
  std::vector<std::unique_ptr<Sequence>> sequences_;
  Scheduler scheduler_;
  std::vector<int32_t> sampled_;
};

void BM_DecodeStep(benchmark::State& state) {
  Load load(static_cast<int32_t>(state.range(0)), static_cast<int32_t>(state.range(1)),
            state.range(2) != 0);
  for (auto _ : state) {
    load.Step();
    if (!load.Complete()) continue;
    state.PauseTiming();
    load.Restart();
    state.ResumeTiming();
  }
}
BENCHMARK(BM_DecodeStep)
    ->ArgNames({"num_seqs", "num_prompt", "prefixes"})
    ->ArgsProduct({{1, 64, 256}, {128, 1024, 16384}, {0, 1}})
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace jevons

BENCHMARK_MAIN();

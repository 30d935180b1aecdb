// A group whose ranks hear of pokes and stops late, each at its own time, as over a network.
#include <deque>
#include <thread>

#include "base/random.h"
#include "engine/engine_group.h"
#include "engine/process_rank.h"
#include "gtest/gtest.h"
#include "tests/support/engine_run.h"
#include "tests/support/tiny_model.h"

namespace jevons {
namespace {

// Does one thing after the other, each after a pause.
class LateThread {
 public:
  explicit LateThread(uint64_t seed) : random_(seed), thread_([this] { Loop(); }) {}
  ~LateThread() {
    Post({});
    thread_.join();
  }
  void Post(std::function<void()> job) {
    MutexLock lock(&mutex_);
    jobs_.push_back(std::move(job));
    changed_.NotifyAll();
  }

 private:
  void Loop() {
    while (true) {
      std::function<void()> job;
      {
        MutexLock lock(&mutex_);
        while (jobs_.empty()) changed_.Wait(&mutex_);
        job = std::move(jobs_.front());
        jobs_.pop_front();
      }
      if (!job) return;
      absl::SleepFor(absl::Microseconds(random_.Below(5000)));
      job();
    }
  }

  Random random_;
  Mutex mutex_;
  CondVar changed_;
  std::deque<std::function<void()>> jobs_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

class LateRank : public Rank {
 public:
  LateRank(LoadedModel model, const Clock* clock, uint64_t seed)
      : engine_(std::move(model), clock), late_(seed) {}

  absl::StatusOr<std::shared_ptr<TokenStream>> Submit(GenerationRequest request,
                                                      std::function<void()> ready) override {
    return engine_.Submit(std::move(request), std::move(ready));
  }
  absl::Status Resume(OpenRequest open) override { return engine_.Resume(std::move(open)); }
  absl::Status failure() const override { return engine_.failure(); }
  EngineStats stats() const override { return engine_.stats(); }
  int32_t NumCachedBlocks(std::span<const uint64_t> keys) const override {
    return engine_.NumCachedBlocks(keys);
  }
  absl::Status CheckIntegrity() override { return engine_.CheckIntegrity(); }
  void StopAccepting() override { engine_.StopAccepting(); }
  void WaitIdle(SteadyTime deadline) override { engine_.WaitIdle(deadline); }
  void Join() override { engine_.Join(); }
  void Stop() override {
    late_.Post([this] { engine_.Stop(); });
  }
  void Poke() override {
    late_.Post([this] { engine_.Poke(); });
  }

 private:
  RankEngine engine_;
  LateThread late_;
};

class LateRanks : public RemoteRanks {
 public:
  LateRanks(LoadedGroup& group, const Clock* clock) : threads_(std::move(group.threads)) {
    for (size_t r = 1; r < group.models.size(); ++r) {
      ranks_.push_back(std::make_unique<LateRank>(std::move(group.models[r]), clock, r));
    }
  }
  std::vector<Rank*> ranks() override {
    std::vector<Rank*> out;
    for (const auto& rank : ranks_) out.push_back(rank.get());
    return out;
  }
  void Listen(Listener*) override {}
  void Broken(const GroupBreak&) override {}
  void Fail(const absl::Status&) override {}
  absl::Status failure() const override { return absl::OkStatus(); }

  std::unique_ptr<ThreadGroup> TakeThreads() { return std::move(threads_); }

 private:
  std::unique_ptr<ThreadGroup> threads_;
  std::vector<std::unique_ptr<LateRank>> ranks_;
};

GenerationRequest MakeRequest(int number) {
  GenerationRequest out;
  for (int i = 0; i < 1 + number % 7; ++i) out.prompt_ids.push_back((number * 13 + i) % 100);
  out.max_new_tokens = 1 + number % 5;
  out.ignore_eos = true;
  out.sampling.seed = number;
  out.num_logprobs = 2;
  return out;
}

TEST(LatePokeTest, RequestsAfterSilencesOfAnyLengthAllFinishWithTheirBytes) {
  SKIP_WITHOUT_TEST_BACKEND();
  EngineOptions options;
  options.num_threads = 1;
  options.kv_cache_tokens = 2048;
  options.max_num_seqs = 8;
  options.max_num_batched_tokens = 48;
  options.cpu_target = TestCpuTarget();
  options.backend = BackendKind::kCpu;
  const RealClock clock;
  const auto alone = StartTinyEngine(TinyV3Config(), options, &clock);
  options.num_ranks = 3;
  auto loaded = LoadModelGroup(options, TinyV3Config(), RandomCheckpoint(TinyV3Config(), 7));
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  LoadedModel first = std::move(loaded->models[0]);
  auto others = std::make_unique<LateRanks>(*loaded, &clock);
  const std::unique_ptr<ThreadGroup> threads = others->TakeThreads();
  const std::unique_ptr<Engine> group = StartEngine(std::move(first), std::move(others), &clock);
  Random random(9);
  for (int i = 0; i < 120; ++i) {
    SCOPED_TRACE(i);
    std::vector<GenerationRequest> requests;
    for (int64_t j = 0; j < 1 + random.Below(4); ++j) requests.push_back(MakeRequest(4 * i + j));
    const std::vector<Outcome> want = RunTogether(*alone, requests);
    const std::vector<Outcome> got = RunTogether(*group, requests);
    for (size_t j = 0; j < requests.size(); ++j) ExpectSame(got[j], want[j]);
    absl::SleepFor(absl::Microseconds(random.Below(6000)));
  }
  EXPECT_EQ(group->stats().num_free_blocks, group->stats().num_blocks);
  group->Drain(absl::Seconds(10));
  EXPECT_TRUE(group->failure().ok()) << group->failure();
}

}  // namespace
}  // namespace jevons

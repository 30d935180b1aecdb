// Two thousand requests, a third of them cancelled at random moments: nothing is left behind.
#include <malloc.h>

#include <atomic>
#include <thread>

#include "base/random.h"
#include "tests/e2e/demo_server.h"
#include "tests/support/proc_self.h"

namespace jevons {
namespace {

constexpr uint64_t kSeed = 20261125;
constexpr int kNumRequests = 2000;
constexpr int kNumWarmUp = 400;
constexpr int kNumThreads = 24;
#ifdef __SANITIZE_ADDRESS__
constexpr long kMaxGrowthKib = 512 << 10;  // the sanitizer holds freed memory back
#else
constexpr long kMaxGrowthKib = 64 << 10;
#endif
constexpr long kMaxMoreThreads = 4;

struct Plan {
  enum class Kind { kRun, kCancelEarly, kCancelAtMessage, kCancelByTime, kDeadline, kImpossible };
  Kind kind = Kind::kRun;
  int at = 0;  // message number or microseconds
  v1::GenerateRequest request;
};

Plan MakePlan(uint64_t seed) {
  Random random(seed);
  Plan plan;
  v1::TokenIds& ids = *plan.request.mutable_token_ids();
  const int64_t num_ids = random.Below(8) == 0 ? random.Below(1500) : random.Below(60);
  for (int64_t i = 0; i <= num_ids; ++i) ids.add_ids(static_cast<int32_t>(random.Below(400)));
  plan.request.set_max_tokens(static_cast<int32_t>(1 + random.Below(60)));
  plan.request.set_ignore_eos(random.Below(2) == 0);
  plan.request.mutable_sampling()->set_temperature(static_cast<float>(random.Uniform() * 2));
  if (random.Below(4) == 0) plan.request.set_logprobs(static_cast<int32_t>(random.Below(5)));
  if (random.Below(8) == 0) plan.request.set_prompt_logprobs(1);
  if (random.Below(4) == 0) plan.request.add_stop("1");
  const int64_t kind = random.Below(30);
  if (kind < 3) {
    plan.kind = Plan::Kind::kCancelEarly;
  } else if (kind < 6) {
    plan.kind = Plan::Kind::kCancelAtMessage;
    plan.at = static_cast<int>(1 + random.Below(20));
  } else if (kind < 10) {
    plan.kind = Plan::Kind::kCancelByTime;
    plan.at = static_cast<int>(random.Below(50'000));
  } else if (kind < 12) {
    plan.kind = Plan::Kind::kDeadline;
    plan.at = static_cast<int>(1000 + random.Below(50'000));
  } else if (kind < 14) {
    plan.kind = Plan::Kind::kImpossible;
    if (kind == 12) ids.add_ids(-1);
    if (kind == 13) plan.request.mutable_sampling()->set_top_p(-1);
  }
  return plan;
}

struct Counts {
  std::atomic<int> ok{0};
  std::atomic<int> cancelled{0};
  std::atomic<int> late{0};
  std::atomic<int> invalid{0};
  std::atomic<int> wrong{0};
};

void CountEnd(const Plan& plan, const Generation& got, Counts& counts) {
  const bool ended_well = got.status.ok();
  // A client that gives up between the terminal message and the status has both.
  const bool gives_up = plan.kind != Plan::Kind::kRun && plan.kind != Plan::Kind::kImpossible;
  const int most_terminal = ended_well || gives_up ? 1 : 0;
  if (got.num_terminal < (ended_well ? 1 : 0) || got.num_terminal > most_terminal) ++counts.wrong;
  if (plan.kind == Plan::Kind::kImpossible) {
    ++(absl::IsInvalidArgument(got.status) ? counts.invalid : counts.wrong);
  } else if (ended_well) {
    ++counts.ok;
    if (got.usage.completion_tokens() > plan.request.max_tokens()) ++counts.wrong;
  } else if (absl::IsCancelled(got.status)) {
    ++counts.cancelled;
  } else if (absl::IsDeadlineExceeded(got.status) && plan.kind == Plan::Kind::kDeadline) {
    ++counts.late;
  } else {
    ++counts.wrong;
    ADD_FAILURE() << got.status;
  }
}

void RunPlan(Client& client, const Plan& plan, Counts& counts) {
  CallHandle handle;
  CallOptions options = {.handle = &handle};
  std::thread canceller;
  if (plan.kind == Plan::Kind::kCancelEarly) handle.Cancel();
  if (plan.kind == Plan::Kind::kDeadline) {
    options.deadline = absl::Now() + absl::Microseconds(plan.at);
  }
  if (plan.kind == Plan::Kind::kCancelByTime) {
    // A random moment of the request's life; no assertion depends on it.
    canceller = std::thread([&] {
      absl::SleepFor(absl::Microseconds(plan.at));
      handle.Cancel();
    });
  }
  Generation got;
  got.status = client.Generate(
      plan.request,
      [&](const v1::GenerateResponse& message) {
        got.Add(message);
        if (plan.kind == Plan::Kind::kCancelAtMessage && got.num_messages == plan.at) {
          handle.Cancel();
        }
      },
      options);
  if (canceller.joinable()) canceller.join();
  CountEnd(plan, got, counts);
}

void RunMany(DemoServer& server, uint64_t seed, int num_requests, Counts& counts) {
  std::atomic<int> next{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kNumThreads; ++t) {
    threads.emplace_back([&] {
      const auto client = Client::Connect(server.server().address());
      for (int i = next++; i < num_requests; i = next++) {
        RunPlan(*client, MakePlan(seed + static_cast<uint64_t>(i)), counts);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(LoadTest, TwoThousandRequestsLeaveNothingBehind) {
  RecordProperty("seed", std::to_string(kSeed));
  std::printf("seed %llu\n", static_cast<unsigned long long>(kSeed));
  // A small pool, so that requests wait and are preempted.
  EngineOptions options;
  options.max_num_seqs = 16;
  options.max_num_batched_tokens = 256;
  options.kv_cache_tokens = 2048;
  DemoServer server(options);
  ASSERT_TRUE(server.ok());
  Counts warm_up;
  RunMany(server, kSeed + 1'000'000, kNumWarmUp, warm_up);
  server.ExpectIdleSoon();
  malloc_trim(0);
  const long rss = ProcSelf("VmRSS:");
  const long threads = ProcSelf("Threads:");

  Counts counts;
  RunMany(server, kSeed, kNumRequests, counts);
  EXPECT_EQ(counts.wrong, 0);
  EXPECT_EQ(counts.ok + counts.cancelled + counts.late + counts.invalid, kNumRequests);
  EXPECT_GT(counts.cancelled, kNumRequests / 10);
  EXPECT_GT(counts.invalid, 0);
  EXPECT_GT(counts.ok, kNumRequests / 3);
  EXPECT_GT(server.engine().stats().num_preemptions, 0);
  std::printf("ok %d cancelled %d late %d invalid %d preemptions %lld\n", counts.ok.load(),
              counts.cancelled.load(), counts.late.load(), counts.invalid.load(),
              static_cast<long long>(server.engine().stats().num_preemptions));

  server.ExpectIdleSoon();
  malloc_trim(0);
  EXPECT_LT(ProcSelf("VmRSS:"), rss + kMaxGrowthKib);
  EXPECT_TRUE(WaitFor([&] { return ProcSelf("Threads:") <= threads + kMaxMoreThreads; }))
      << ProcSelf("Threads:") << " threads, " << threads << " after the warm-up";
  EXPECT_TRUE(Generate(server.client(), ChatRequest("What is 2 + 2?", "low")).status.ok());
}

}  // namespace
}  // namespace jevons

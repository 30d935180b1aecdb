// The scheduler with a fake model and a fake clock, under random load.
#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/random.h"
#include "gtest/gtest.h"
#include "scheduler/scheduler.h"

namespace jevons {
namespace {

// What the fake KV cache holds in a slot: a chain over all tokens up to that one, as the keys of a
// layer depend on all of them.
struct CachedToken {
  uint64_t chain = 0;
  int64_t step = -1;
};

uint64_t Chain(uint64_t before, int32_t token_id) {
  return RandomBits(before, static_cast<uint64_t>(token_id));
}

struct Totals {
  int64_t finished = 0;
  int64_t cancelled = 0;
  int64_t expired = 0;
  int64_t skipped = 0;
  int64_t stopped = 0;
  int64_t preemptions = 0;
  int64_t unknown = 0;  // tokens that were computed before the scheduler knew them
  int64_t dropped = 0;  // tokens of sequences that had ended meanwhile
  int64_t cached = 0;   // tokens that a sequence found
  int64_t again = 0;    // of these, after a preemption
  int64_t chunks = 0;
};

// The new token of a sequence depends on nothing but the sequence.
int32_t FakeToken(uint64_t sequence_id, int32_t new_idx) {
  return static_cast<int32_t>(RandomBits(sequence_id, static_cast<uint64_t>(new_idx)) % 50000);
}

// kOff: a step ends before the next one is planned. kOn: when the next one is under way.
enum class Overlap { kOff, kOn };
enum class Prefixes { kOff, kOn };

class Simulation {
 public:
  Simulation(uint64_t seed, Overlap overlap, Prefixes prefixes)
      : overlap_(overlap),
        random_(seed),
        num_blocks_(1 + Pick(Pick(2) == 0 ? 4 : 40)),
        config_(MakeConfig()),
        blocks_(num_blocks_),
        prefixes_(&blocks_),
        has_prefixes_(prefixes == Prefixes::kOn),
        scheduler_(config_, &blocks_, has_prefixes_ ? &prefixes_ : nullptr),
        cache_(static_cast<size_t>(num_blocks_) * kKvBlockTokens) {}

  void Run(int32_t num_requests, Totals& totals) {
    while (num_requests > 0 || !live_.empty() || under_way_.has_value()) {
      for (int64_t n = Pick(3); n > 0 && num_requests > 0; --n, --num_requests) Arrive();
      ASSERT_NO_FATAL_FAILURE(DropSome(totals));
      ASSERT_NO_FATAL_FAILURE(Step(totals));
      clock_.Advance(absl::Milliseconds(Pick(20)));
      ++step_;
      ASSERT_LT(step_, 1000000) << "no progress";
    }
    totals.preemptions += scheduler_.num_preemptions();
    EXPECT_EQ(blocks_.num_free(), num_blocks_);
    EXPECT_EQ(scheduler_.num_running() + scheduler_.num_waiting(), 0);
    EXPECT_TRUE(scheduler_.Schedule().empty());
  }

 private:
  struct Live {
    explicit Live(Request request) : sequence(std::move(request)) {}
    Sequence sequence;
    int32_t num_computed = 0;  // as the entries tell
    int32_t num_preemptions = 0;
    std::optional<int64_t> cancel_step;
    std::optional<int32_t> stop_at;  // the number of new tokens of which the last one is an end
    bool skipped = false;            // its row is lost

    // The device has drawn its last token, or will in the step under way.
    bool complete() const { return sequence.num_new_tokens() >= sequence.request.max_new_tokens; }
    bool stopped() const {
      return stop_at.has_value() && sequence.num_known_new_tokens() >= *stop_at;
    }
  };

  int64_t Pick(int64_t n) { return random_.Below(n); }

  SchedulerConfig MakeConfig() {
    const auto max_num_seqs = static_cast<int32_t>(1 + Pick(12));
    return {.max_num_seqs = max_num_seqs,
            .max_num_batched_tokens = max_num_seqs + static_cast<int32_t>(Pick(2) * Pick(200)),
            .max_prefill_chunk_tokens = static_cast<int32_t>(Pick(2) * (1 + Pick(100)))};
  }

  void Arrive() {
    const int64_t pool_tokens = int64_t{num_blocks_} * kKvBlockTokens;
    const int64_t num_total = 2 + Pick(std::min<int64_t>(pool_tokens, 400) - 1);
    const int64_t num_prompt = 1 + Pick(num_total - 1);
    Request request = {.id = next_id_++,
                       .max_new_tokens = static_cast<int32_t>(num_total - num_prompt)};
    // Three beginnings, each followed for a while.
    const auto beginning = static_cast<uint64_t>(1'000'000 + Pick(3));
    const int64_t num_common = Pick(num_prompt + 1);
    for (int64_t i = 0; i < num_prompt; ++i) {
      request.prompt_ids.push_back(i < num_common ? FakeToken(beginning, static_cast<int32_t>(i))
                                                  : static_cast<int32_t>(Pick(50000)));
    }
    request.cache_salt = Pick(8) == 0 ? 1 : 0;
    if (Pick(8) == 0) request.reuse = Request::Reuse::kNone;
    if (Pick(8) == 0) request.deadline = clock_.Now() + absl::Milliseconds(Pick(3000));
    live_.push_back(std::make_unique<Live>(std::move(request)));
    if (Pick(4) == 0) live_.back()->cancel_step = step_ + Pick(200);
    if (Pick(6) == 0) live_.back()->stop_at = static_cast<int32_t>(1 + Pick(40));
    scheduler_.Add(&live_.back()->sequence);
  }

  void DropSome(Totals& totals) {
    for (size_t i = 0; i < live_.size();) {
      Live& live = *live_[i];
      const bool cancelled = live.cancel_step.has_value() && *live.cancel_step <= step_;
      const bool expired = live.sequence.request.deadline <= clock_.Now();
      if (!cancelled && !expired && !live.skipped) {
        ++i;
        continue;
      }
      ++(live.skipped ? totals.skipped : cancelled ? totals.cancelled : totals.expired);
      Remove(i);
    }
    ASSERT_TRUE(scheduler_.CheckIntegrity().ok()) << scheduler_.CheckIntegrity();
  }

  void Remove(size_t live_idx) {
    Sequence& sequence = live_[live_idx]->sequence;
    scheduler_.Finish(&sequence);
    EXPECT_EQ(sequence.state, Sequence::State::kFinished);
    EXPECT_TRUE(sequence.block_table.empty());
    EXPECT_EQ(sequence.num_unknown, 0);
    live_.erase(live_.begin() + static_cast<int64_t>(live_idx));
  }

  void Step(Totals& totals) {
    std::vector<const Live*> was_running;
    for (const auto& live : live_) {
      if (live->sequence.state == Sequence::State::kRunning) was_running.push_back(live.get());
    }
    const Batch& batch = scheduler_.Schedule();
    ASSERT_TRUE(scheduler_.CheckIntegrity().ok()) << scheduler_.CheckIntegrity();
    ASSERT_NO_FATAL_FAILURE(CheckPlan(batch, was_running));
    std::vector<int32_t> sampled;
    for (size_t i = 0; i < batch.entries.size(); ++i) {
      ASSERT_NO_FATAL_FAILURE(Compute(batch, i, sampled, totals));
    }
    drawn_ = sampled;
    if (overlap_ == Overlap::kOff) {
      ASSERT_EQ(batch.empty(), live_.empty());
      return EndStep(sampled, totals);
    }
    if (!batch.empty()) scheduler_.Start();
    ASSERT_TRUE(scheduler_.CheckIntegrity().ok()) << scheduler_.CheckIntegrity();
    ASSERT_TRUE(!batch.empty() || live_.empty() || under_way_.has_value());
    std::optional<std::vector<int32_t>> ended = std::exchange(under_way_, std::nullopt);
    if (!batch.empty()) under_way_ = std::move(sampled);
    if (ended.has_value()) EndStep(*ended, totals);
  }

  void EndStep(const std::vector<int32_t>& sampled, Totals& totals) {
    int64_t num_known = 0;
    for (const auto& live : live_) num_known -= live->sequence.num_known_new_tokens();
    scheduler_.Update(sampled);
    ASSERT_TRUE(scheduler_.CheckIntegrity().ok()) << scheduler_.CheckIntegrity();
    for (const auto& live : live_) num_known += live->sequence.num_known_new_tokens();
    totals.dropped += static_cast<int64_t>(sampled.size()) - num_known;
    ASSERT_NO_FATAL_FAILURE(FinishComplete(totals));
  }

  void CheckPlan(const Batch& batch, const std::vector<const Live*>& was_running) {
    ASSERT_LE(batch.num_tokens(), config_.max_num_batched_tokens);
    ASSERT_LE(scheduler_.num_running(), config_.max_num_seqs);
    // The oldest advances in each step, and everything that ran and was not preempted too.
    if (!live_.empty() && !live_[0]->complete()) {
      ASSERT_FALSE(batch.empty());
      ASSERT_EQ(batch.entries[0].sequence, &live_[0]->sequence);
    }
    size_t num_old = 0;
    for (const Live* live : was_running) {
      if (live->complete() || live->sequence.state != Sequence::State::kRunning) continue;
      ASSERT_EQ(batch.entries[num_old++].sequence, &live->sequence);
    }
    // Running are planned, in the order of arrival, unless they are complete; the rest waits.
    size_t entry_idx = 0;
    const Sequence* head = nullptr;
    for (const auto& live : live_) {
      if (live->sequence.state == Sequence::State::kWaiting) {
        if (head == nullptr) head = &live->sequence;
        continue;
      }
      ASSERT_EQ(head, nullptr);
      if (live->complete()) continue;
      ASSERT_LT(entry_idx, batch.entries.size());
      ASSERT_EQ(batch.entries[entry_idx++].sequence, &live->sequence);
    }
    ASSERT_EQ(entry_idx, batch.entries.size());
    int64_t num_spare = blocks_.num_free();
    for (const BatchEntry& entry : batch.entries) num_spare -= MissingBlocks(*entry.sequence);
    // What was admitted takes nothing that others need for the tokens that they have, plus one.
    const bool admitted = batch.entries.size() > num_old;
    ASSERT_TRUE(!admitted || num_spare >= 0) << num_spare;
    // The head waits for a reason.
    const bool preempted =
        std::exchange(num_preempted_, scheduler_.num_preemptions()) < scheduler_.num_preemptions();
    ASSERT_TRUE(head == nullptr || scheduler_.num_running() == config_.max_num_seqs || preempted ||
                batch.num_tokens() == config_.max_num_batched_tokens ||
                MissingBlocks(*head) > num_spare + NumHeldByOthers(*head));
  }

  // Blocks that it would not have to take from the free ones.
  int64_t NumHeldByOthers(const Sequence& sequence) {
    if (!has_prefixes_ || sequence.request.reuse == Request::Reuse::kNone) return 0;
    const int32_t num_known = sequence.num_tokens() - std::max(sequence.num_unknown, 1);
    const int64_t num_free = blocks_.num_free();
    BlockTable table;
    prefixes_.Match(std::span(sequence.token_ids).first(static_cast<size_t>(num_known)),
                    sequence.request.cache_salt, table);
    const int64_t num_held = static_cast<int64_t>(table.size()) - (num_free - blocks_.num_free());
    table.clear();
    return num_held;
  }

  static int64_t MissingBlocks(const Sequence& sequence) {
    return BlocksFor(sequence.num_tokens() + 1) - static_cast<int64_t>(sequence.block_table.size());
  }

  Live& LiveOf(const Sequence* sequence) {
    return **std::find_if(live_.begin(), live_.end(),
                          [&](const auto& live) { return &live->sequence == sequence; });
  }

  // Writes the entry's tokens to the cache, reads the whole context back through its block table,
  // and samples: what the device does, step by step, whatever the scheduler knows of it.
  void Compute(const Batch& batch, size_t entry_idx, std::vector<int32_t>& sampled,
               Totals& totals) {
    const BatchEntry& entry = batch.entries[entry_idx];
    Live& live = LiveOf(entry.sequence);
    const Sequence& sequence = live.sequence;
    if (sequence.num_preemptions != live.num_preemptions) {
      live.num_preemptions = sequence.num_preemptions;
      live.num_computed = 0;
    }
    if (live.num_computed == 0 && entry.first_position > 0) {
      ASSERT_TRUE(has_prefixes_ && sequence.request.reuse == Request::Reuse::kPrefix);
      ASSERT_EQ(entry.first_position % kKvBlockTokens, 0);
      live.num_computed = entry.first_position;
      totals.cached += entry.first_position;
      totals.again += sequence.num_preemptions > 0 ? entry.first_position : 0;
    }
    ASSERT_EQ(entry.first_position, live.num_computed);
    live.num_computed += entry.num_tokens;
    const int32_t num_left = sequence.num_tokens() - entry.first_position;
    ASSERT_TRUE(entry.num_tokens >= 1 && entry.num_tokens <= num_left);
    if (num_left > 1 && config_.max_prefill_chunk_tokens > 0) {
      ASSERT_LE(entry.num_tokens, config_.max_prefill_chunk_tokens);
    }
    totals.chunks += entry.num_tokens < num_left;

    const auto slot_of = [&](int32_t position) -> CachedToken& {
      const size_t table_idx = entry_idx * static_cast<size_t>(batch.max_blocks) +
                               static_cast<size_t>(position / kKvBlockTokens);
      return cache_.at(static_cast<size_t>(batch.block_tables.at(table_idx)) * kKvBlockTokens +
                       static_cast<size_t>(position % kKvBlockTokens));
    };
    for (int32_t i = batch.cu_seqlens_q[entry_idx]; i < batch.cu_seqlens_q[entry_idx + 1]; ++i) {
      CachedToken& slot = cache_.at(static_cast<size_t>(batch.slot_mapping[i]));
      ASSERT_NE(slot.step, step_) << "slot " << batch.slot_mapping[i] << " is written twice";
      const int32_t id = batch.token_ids[i];
      totals.unknown += id < 0;
      const int32_t position = batch.positions[i];
      slot = {.chain = Chain(position == 0 ? 0 : slot_of(position - 1).chain,
                             id < 0 ? drawn_.at(static_cast<size_t>(UnknownTokenId(0) - id)) : id),
              .step = step_};
    }
    ASSERT_EQ(batch.context_lens[entry_idx], live.num_computed);
    uint64_t chain = 0;
    for (int32_t position = 0; position < live.num_computed && !live.skipped; ++position) {
      chain = Chain(chain, TokenAt(sequence, position));
      ASSERT_EQ(slot_of(position).chain, chain)
          << "its slot does not hold token " << position << " of sequence " << sequence.request.id;
    }
    if (!entry.samples) return;
    live.skipped |= Pick(500) == 0;
    sampled.push_back(live.skipped ? Scheduler::kSkip
                                   : FakeToken(sequence.request.id, sequence.num_new_tokens()));
  }

  static int32_t TokenAt(const Sequence& sequence, int32_t position) {
    const int32_t id = sequence.token_ids[position];
    return id >= 0 ? id : FakeToken(sequence.request.id, position - sequence.num_prompt_tokens());
  }

  void FinishComplete(Totals& totals) {
    for (size_t i = 0; i < live_.size();) {
      const Sequence& sequence = live_[i]->sequence;
      ASSERT_LE(sequence.num_new_tokens(), sequence.request.max_new_tokens);
      if (sequence.state == Sequence::State::kFinished) {
        ASSERT_TRUE(live_[i]->skipped);
        ++i;
        continue;
      }
      ASSERT_EQ(sequence.num_computed,
                sequence.state == Sequence::State::kRunning ? live_[i]->num_computed : 0);
      const bool all = sequence.num_known_new_tokens() == sequence.request.max_new_tokens;
      if (!all && !live_[i]->stopped()) {
        ++i;
        continue;
      }
      const int32_t num_new = sequence.num_known_new_tokens();
      ASSERT_EQ(num_new, std::min(sequence.request.max_new_tokens,
                                  live_[i]->stop_at.value_or(sequence.request.max_new_tokens)));
      for (int32_t j = 0; j < num_new; ++j) {
        ASSERT_EQ(sequence.token_ids[sequence.num_prompt_tokens() + j],
                  FakeToken(sequence.request.id, j));
      }
      ++(all ? totals.finished : totals.stopped);
      Remove(i);
    }
  }

  const Overlap overlap_;
  Random random_;
  const int32_t num_blocks_;
  const SchedulerConfig config_;
  FakeClock clock_;
  BlockManager blocks_;
  std::vector<std::unique_ptr<Live>> live_;  // by arrival
  PrefixCache prefixes_;
  const bool has_prefixes_;
  Scheduler scheduler_;
  std::vector<CachedToken> cache_;                 // by slot
  std::vector<int32_t> drawn_;                     // by the last step
  std::optional<std::vector<int32_t>> under_way_;  // drawn, but not known to the scheduler
  int64_t step_ = 0;
  uint64_t next_id_ = 1;
  int64_t num_preempted_ = 0;
};

class SchedulerSimulationTest : public testing::TestWithParam<std::tuple<Overlap, Prefixes>> {};

TEST_P(SchedulerSimulationTest, EverySequenceFinishesInOrderWithItsOwnTokensAndNoBlockIsLost) {
  constexpr uint64_t kNumSeeds = 150;
  constexpr int32_t kNumRequests = 40;
  Totals totals;
  for (uint64_t seed = 0; seed < kNumSeeds; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Simulation simulation(seed, std::get<0>(GetParam()), std::get<1>(GetParam()));
    simulation.Run(kNumRequests, totals);
    if (testing::Test::HasFailure()) return;
  }
  const int64_t num_ended =
      totals.finished + totals.stopped + totals.cancelled + totals.expired + totals.skipped;
  EXPECT_EQ(num_ended, static_cast<int64_t>(kNumSeeds) * kNumRequests);
  // The load reached what it is meant to test.
  EXPECT_GT(totals.finished, 2000);
  EXPECT_GT(totals.stopped, 400);
  EXPECT_GT(totals.cancelled, 300);
  EXPECT_GT(totals.expired, 100);
  EXPECT_GT(totals.skipped, 100);
  EXPECT_GT(totals.preemptions, 400);
  EXPECT_GT(totals.chunks, 2000);
  const bool overlapped = std::get<0>(GetParam()) == Overlap::kOn;
  const bool has_prefixes = std::get<1>(GetParam()) == Prefixes::kOn;
  EXPECT_GT(totals.cached, has_prefixes ? 20000 : -1);
  EXPECT_GT(totals.again, has_prefixes ? 2000 : -1);
  EXPECT_GT(totals.unknown, overlapped ? 50000 : -1);
  EXPECT_GT(totals.dropped, overlapped ? 1000 : -1);
}

INSTANTIATE_TEST_SUITE_P(Overlap, SchedulerSimulationTest,
                         testing::Combine(testing::Values(Overlap::kOff, Overlap::kOn),
                                          testing::Values(Prefixes::kOff, Prefixes::kOn)),
                         [](const auto& info) {
                           const bool on = std::get<0>(info.param) == Overlap::kOn;
                           const bool prefixes = std::get<1>(info.param) == Prefixes::kOn;
                           return std::string(on ? "On" : "Off") + (prefixes ? "WithPrefixes" : "");
                         });

}  // namespace
}  // namespace jevons

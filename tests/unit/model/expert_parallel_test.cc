#include "model/expert_parallel.h"

#include <cmath>
#include <cstring>
#include <numeric>
#include <thread>
#include <vector>

#include "base/random.h"
#include "gtest/gtest.h"
#include "model/model_runner.h"
#include "parallel/thread_communicator.h"
#include "tests/support/skewed_checkpoint.h"
#include "tests/support/tiny_model.h"
#ifdef JEVONS_TEST_CUDA
#include "parallel/nccl_communicator.h"
#endif

namespace jevons {
namespace {

constexpr int32_t kBlockTokens = 64;
constexpr int32_t kMaxTokens = 24;

// The tokens of one rank in one step, all of one sequence.
using Tokens = std::vector<int32_t>;
using LogitRows = std::vector<std::vector<float>>;

struct Layout {
  int32_t num_ranks = 1;
  int32_t num_redundant = 0;
  int32_t masked_capacity = 0;
  bool checks_bytes = false;  // of the exchanges, against the formula
  int32_t num_wanted = 0;     // of the first experts, which all tokens want; 0: as the weights say
  ExchangeOverlap overlap = ExchangeOverlap::kOff;
  ExchangePrecision precision = ExchangePrecision::kExact;
  ExchangeBy exchange_by = ExchangeBy::kCalls;  // of devices
};
// Some steps have as many tokens at some rank, some do not.
constexpr int32_t kMinSplitTokens = 12;

// Holds what a rank exchanges in each layer of a contiguous step against the formula of
// docs/expert-parallel.md.
class FormulaCommunicator : public Communicator {
 public:
  FormulaCommunicator(std::unique_ptr<Communicator> inner, const ModelConfig& config,
                      const Layout& layout)
      : inner_(std::move(inner)),
        config_(config),
        overlap_(layout.overlap),
        token_bytes_(layout.precision == ExchangePrecision::kFp8
                         ? PackedRowBytes(config.hidden_size)
                         : int64_t{config.hidden_size} * 4) {}

  std::string Description() const override { return inner_->Description(); }
  RankInfo info() const override { return inner_->info(); }
  absl::Status AllToAll(const AllToAllArgs& args) override {
    const absl::Status status = inner_->AllToAll(args);
    Check(args);
    return status;
  }
  absl::Status StartAllToAll(const AllToAllArgs& args) override {
    ++num_started_;
    Check(args);
    return inner_->StartAllToAll(args);
  }
  absl::Status FinishAllToAll() override { return inner_->FinishAllToAll(); }
  absl::Status AllGather(const void* send, int64_t bytes, void* recv) override {
    return inner_->AllGather(send, bytes, recv);
  }
  absl::Status Broadcast(void* data, int64_t bytes, int32_t root) override {
    return inner_->Broadcast(data, bytes, root);
  }
  // The number of tokens of the rank that has most, before a step.
  absl::Status AllReduce(std::span<int64_t> values, ReduceOp op) override {
    const absl::Status status = inner_->AllReduce(values, op);
    num_parts_ = overlap_ == ExchangeOverlap::kBatches && values[0] >= kMinSplitTokens ? 2 : 1;
    return status;
  }
  absl::Status Barrier(absl::Duration timeout) override { return inner_->Barrier(timeout); }
  absl::Status Wait() override { return inner_->Wait(); }
  void Abort(const std::string& reason) override { inner_->Abort(reason); }

  ~FormulaCommunicator() override {
    EXPECT_EQ(call_in_layer_, 0);
    EXPECT_GT(num_layers_, 0);
    const bool splits = overlap_ == ExchangeOverlap::kBatches;
    EXPECT_EQ(splits, num_split_layers_ > 0);
    EXPECT_LT(num_split_layers_, num_layers_);
    // Tokens, or tokens and results of both halves.
    const int64_t num_beside = num_layers_ + 3 * num_split_layers_;
    EXPECT_EQ(num_started_, overlap_ == ExchangeOverlap::kOff ? 0 : num_beside);
  }

 private:
  enum class What { kCounts, kChoices, kTokens, kResults };
  struct Expected {
    What what;
    int32_t part = 0;
  };
  struct Counts {
    int32_t rows = 0;
    int32_t choices = 0;
  };

  Expected Next() {
    using enum What;
    static constexpr Expected kWhole[] = {{kCounts}, {kChoices}, {kTokens}, {kResults}};
    static constexpr Expected kSplit[] = {{kCounts, 0},  {kChoices, 0}, {kTokens, 0},
                                          {kCounts, 1},  {kChoices, 1}, {kTokens, 1},
                                          {kResults, 0}, {kResults, 1}};
    const std::span<const Expected> calls =
        num_parts_ == 2 ? std::span<const Expected>(kSplit) : std::span<const Expected>(kWhole);
    const Expected next = calls[call_in_layer_++];
    if (call_in_layer_ == calls.size()) {
      call_in_layer_ = 0;
      ++num_layers_;
      num_split_layers_ += num_parts_ - 1;
    }
    return next;
  }

  void Check(const AllToAllArgs& args) {
    const Expected next = Next();
    const int64_t row = int64_t{config_.hidden_size} * 4;
    for (int32_t r = 0; r < info().world_size; ++r) {
      Counts& sent = sent_[next.part][r];
      Counts& got = got_[next.part][r];
      switch (next.what) {
        case What::kCounts:
          EXPECT_EQ(args.send_bytes[r], 8);
          std::memcpy(&sent, static_cast<const char*>(args.send) + args.send_offsets[r], 8);
          std::memcpy(&got, static_cast<const char*>(args.recv) + args.recv_offsets[r], 8);
          break;
        case What::kChoices:
          EXPECT_EQ(args.send_bytes[r], sent.rows * 4 * config_.num_experts_per_tok);
          break;
        case What::kTokens:
          EXPECT_EQ(args.send_bytes[r], sent.rows * token_bytes_);
          break;
        case What::kResults:
          EXPECT_EQ(args.send_bytes[r], got.choices * row);
          EXPECT_EQ(args.recv_bytes[r], sent.choices * row);
          break;
      }
    }
  }

  const std::unique_ptr<Communicator> inner_;
  const ModelConfig config_;
  const ExchangeOverlap overlap_;
  const int64_t token_bytes_;
  int32_t num_parts_ = 1;
  size_t call_in_layer_ = 0;
  int64_t num_layers_ = 0;
  int64_t num_split_layers_ = 0;
  int64_t num_started_ = 0;
  Counts sent_[2][8], got_[2][8];
};

// Ranks that are threads reach each other's host memory, and devices over NCCL.
std::unique_ptr<Communicator> Connect(std::unique_ptr<Communicator> member, Backend& backend,
                                      const ModelConfig& config, const Layout& layout) {
  if (member == nullptr) return member;
#ifdef JEVONS_TEST_CUDA
  const int32_t device = member->info().rank;
  auto out = CreateNcclCommunicator(
      std::move(member),
      {.device = device, .stream = backend.queue(), .exchange_by = layout.exchange_by});
  EXPECT_TRUE(out.ok()) << out.status();
  return *std::move(out);
#else
  if (!layout.checks_bytes) return member;
  return std::make_unique<FormulaCommunicator>(std::move(member), config, layout);
#endif
}

// Runs the steps of one rank. steps[i] empty: it takes part with no tokens.
LogitRows RunRank(const ModelConfig& config, const Layout& layout,
                  std::unique_ptr<Communicator> member, const std::vector<Tokens>& steps) {
  LogitRows out;
  const SkewedCheckpoint checkpoint(config, 3, layout.num_wanted);
  const int32_t device = member != nullptr ? member->info().rank : 0;
  auto backend = MakeTestBackend(device);
  const auto communicator = Connect(std::move(member), *backend, config, layout);
  RankGroup group;
  std::vector<std::vector<int32_t>> experts;
  ModelRunnerOptions options = {.max_tokens = kMaxTokens,
                                .max_num_seqs = 1,
                                .max_positions = 256,
                                .max_logits_rows = kMaxTokens,
                                .num_blocks = 4,
                                .block_tokens = kBlockTokens,
                                .num_ranks = layout.num_ranks,
                                .masked_capacity = layout.masked_capacity,
                                .exchange_overlap = layout.overlap,
                                .exchange_precision = layout.precision,
                                .min_split_tokens = kMinSplitTokens};
  if (communicator != nullptr) {
    group.communicator = communicator.get();
    group.maps = *EvenMaps(config, layout.num_ranks, layout.num_redundant);
    options.slots_per_rank = group.maps[0].slots_per_rank();
    for (const ExpertMap& map : group.maps) {
      experts.push_back(FilledSlots(map.experts_of_rank(communicator->info().rank)));
    }
  }
  auto weights = LoadModelWeights(config, checkpoint, *backend, experts);
  EXPECT_TRUE(weights.ok()) << weights.status();
  auto runner = ModelRunner::Create(config, *std::move(weights), backend.get(), options, group);
  EXPECT_TRUE(runner.ok()) << runner.status();
  const absl::Status warm = (*runner)->WarmUp();
  EXPECT_TRUE(warm.ok()) << warm;
  int32_t position = 0;
  const std::vector<int32_t> table = {2, 0, 3, 1};
  for (const Tokens& ids : steps) {
    const int32_t n = static_cast<int32_t>(ids.size());
    std::vector<int32_t> positions(n), rows(n);
    std::vector<int64_t> slots(n);
    std::iota(positions.begin(), positions.end(), position);
    std::iota(rows.begin(), rows.end(), 0);
    for (int32_t i = 0; i < n; ++i) {
      const int32_t p = position + i;
      slots[i] = int64_t{table[p / kBlockTokens]} * kBlockTokens + p % kBlockTokens;
    }
    position += n;
    const std::vector<int32_t> cu = {0, n};
    const std::vector<int32_t> context = {position};
    StepInput input = {.token_ids = ids, .positions = positions, .slot_mapping = slots};
    input.cu_seqlens_q = n > 0 ? std::span(cu) : std::span(cu).first(1);
    if (n > 0) {
      input.context_lens = context;
      input.block_tables = table;
      input.max_blocks = 4;
    }
    const absl::Status status = (*runner)->Run(input);
    EXPECT_TRUE(status.ok()) << status;
    if (!status.ok()) return out;
    const auto logits = (*runner)->Logits(rows);
    EXPECT_TRUE(logits.ok()) << logits.status();
    for (int32_t i = 0; i < n; ++i) {
      out.emplace_back(logits->row<float>(i), logits->row<float>(i) + logits->dim(1));
    }
  }
  // None may go while another still reads from it.
  if (communicator != nullptr) {
    EXPECT_TRUE(communicator->Barrier(absl::Minutes(5)).ok());
  }
  return out;
}

// steps[r][i]: the tokens of rank r in step i.
std::vector<LogitRows> RunGroup(const ModelConfig& config, const Layout& layout,
                                const std::vector<std::vector<Tokens>>& steps) {
  ThreadGroup group(layout.num_ranks);
  std::vector<LogitRows> out(layout.num_ranks);
  std::vector<std::thread> threads;
  for (int32_t r = 0; r < layout.num_ranks; ++r) {
    threads.emplace_back([&, r] { out[r] = RunRank(config, layout, *group.Join(r), steps[r]); });
  }
  for (std::thread& thread : threads) thread.join();
  return out;
}

// Steps of 0 to kMaxTokens tokens; rank 0 has one in all of them, the last rank none at all.
std::vector<std::vector<Tokens>> RandomSteps(const ModelConfig& config, int32_t num_ranks) {
  Random random(5);
  std::vector<std::vector<Tokens>> out(num_ranks, std::vector<Tokens>(5));
  for (int32_t r = 0; r < num_ranks; ++r) {
    for (Tokens& ids : out[r]) {
      int64_t n = random.Below(2) == 0 ? 0 : random.Below(kMaxTokens + 1);
      if (r == 0) n = std::max<int64_t>(n, 1);
      if (r > 0 && r + 1 == num_ranks) n = 0;
      for (int64_t i = 0; i < n; ++i) {
        ids.push_back(static_cast<int32_t>(random.Below(config.vocab_size)));
      }
    }
  }
  return out;
}

void ExpectSameLogits(const LogitRows& got, const LogitRows& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t t = 0; t < got.size(); ++t) {
    ASSERT_EQ(std::memcmp(got[t].data(), want[t].data(), want[t].size() * sizeof(float)), 0)
        << "token " << t;
  }
}

void ExpectBitsOfOneRank(const ModelConfig& config, const Layout& layout) {
  SCOPED_TRACE(testing::Message() << layout.num_ranks << " ranks, " << layout.num_redundant
                                  << " redundant, capacity " << layout.masked_capacity
                                  << ", overlap " << static_cast<int>(layout.overlap) << ", by "
                                  << ExchangeByName(layout.exchange_by));
  const auto steps = RandomSteps(config, layout.num_ranks);
  const auto got = RunGroup(config, layout, steps);
  Layout alone;
  alone.num_wanted = layout.num_wanted;
  for (int32_t r = 0; r < layout.num_ranks; ++r) {
    SCOPED_TRACE(testing::Message() << "rank " << r);
    ExpectSameLogits(got[r], RunRank(config, alone, nullptr, steps[r]));
  }
}

class ExpertParallelTest : public testing::TestWithParam<ModelConfig> {
 protected:
  void SetUp() override { SKIP_WITHOUT_TEST_BACKEND(); }
};

TEST_P(ExpertParallelTest, AnyNumberOfRanksGivesTheBitsOfOne) {
  // The emulator is slow.
  for (int32_t num_ranks : kTestsCuda ? std::vector{1, 3} : std::vector{1, 2, 3, 4, 8}) {
    for (int32_t num_redundant : kTestsCuda ? std::vector{5} : std::vector{0, 5}) {
      ExpectBitsOfOneRank(GetParam(), {num_ranks, num_redundant, 0, !kTestsCuda});
    }
  }
}

// MaskedHalvesTest does it for devices.
#ifndef JEVONS_TEST_CUDA
TEST_P(ExpertParallelTest, OverlapOfExchangesAndComputingGivesTheSameBits) {
  const auto expect = [](int32_t num_ranks, ExchangeOverlap overlap) {
    ExpectBitsOfOneRank(
        GetParam(),
        {.num_ranks = num_ranks, .num_redundant = 5, .checks_bytes = true, .overlap = overlap});
  };
  for (int32_t num_ranks : {1, 2, 3, 4, 8}) expect(num_ranks, ExchangeOverlap::kBatches);
  for (int32_t num_ranks : {2, 8}) expect(num_ranks, ExchangeOverlap::kShared);
}
#endif

// Devices that store to each other's memory themselves.
#ifdef JEVONS_TEST_CUDA
TEST_P(ExpertParallelTest, KernelsExchangeTheSameBits) {
  constexpr ExchangeBy kKernels = ExchangeBy::kKernels;
  ExpectBitsOfOneRank(GetParam(), {.num_ranks = 3, .num_redundant = 5, .exchange_by = kKernels});
  ExpectBitsOfOneRank(GetParam(), {.num_ranks = 2, .masked_capacity = 8, .exchange_by = kKernels});
}
#endif

// In steps with more tokens than the capacity the layout changes, and back.
TEST_P(ExpertParallelTest, MaskedStepsGiveTheSameBits) {
  for (int32_t num_ranks : kTestsCuda ? std::vector{2} : std::vector{1, 2, 8}) {
    for (int32_t capacity : kTestsCuda ? std::vector{8} : std::vector{1, 8, kMaxTokens}) {
      ExpectBitsOfOneRank(GetParam(), {num_ranks, 3, capacity});
    }
  }
}

// What a rank alone in a group gives, every other group gives; and it is near what nothing rounded gives.
TEST_P(ExpertParallelTest, PackedRowsGiveTheSameBitsInEveryGroup) {
  std::vector<Layout> layouts = {{.num_ranks = 2, .masked_capacity = 8}};
  if (!kTestsCuda) {
    layouts = {{.num_ranks = 2, .checks_bytes = true},
               {.num_ranks = 3, .num_redundant = 5, .masked_capacity = 8},
               {.num_ranks = 8, .checks_bytes = true, .overlap = ExchangeOverlap::kBatches}};
  }
  for (Layout& layout : layouts) {
    SCOPED_TRACE(layout.num_ranks);
    layout.precision = ExchangePrecision::kFp8;
    const auto steps = RandomSteps(GetParam(), layout.num_ranks);
    const auto got = RunGroup(GetParam(), layout, steps);
    const Layout alone = {.precision = ExchangePrecision::kFp8};
    for (int32_t r = 0; r < layout.num_ranks; ++r) {
      ExpectSameLogits(got[r], RunGroup(GetParam(), alone, {steps[r]})[0]);
    }
    const LogitRows exact = RunRank(GetParam(), {}, nullptr, steps[0]);
    double error = 0, size = 0;
    for (size_t t = 0; t < exact.size(); ++t) {
      for (size_t i = 0; i < exact[t].size(); ++i) {
        error += std::pow(got[0][t][i] - exact[t][i], 2);
        size += std::pow(exact[t][i], 2);
      }
    }
    EXPECT_GT(error, 0);
    EXPECT_LT(std::sqrt(error / size), 0.2);  // random weights suffer more than trained ones
  }
}

INSTANTIATE_TEST_SUITE_P(V2AndV3, ExpertParallelTest,
                         testing::Values(TinyV2Config(), TinyV3Config()),
                         [](const auto& info) { return info.param.model_type; });

// Recorded where the backend records; a step of 20 tokens or more is not masked.
TEST(MaskedHalvesTest, GiveTheBitsOfOneRank) {
  SKIP_WITHOUT_TEST_BACKEND();
  for (int32_t num_ranks : kTestsCuda ? std::vector{2} : std::vector{2, 8}) {
    for (const ExchangeBy by : {ExchangeBy::kCalls, ExchangeBy::kKernels}) {
      if (!kTestsCuda && by != ExchangeBy::kCalls) continue;
      ExpectBitsOfOneRank(TinyV3Config(), {.num_ranks = num_ranks,
                                           .num_redundant = 3,
                                           .masked_capacity = 19,
                                           .overlap = ExchangeOverlap::kBatches,
                                           .exchange_by = by});
    }
  }
}

TEST(SkewedExpertsTest, AllTokensMayWantTheExpertsOfOneRank) {
  SKIP_WITHOUT_TEST_BACKEND();
  for (int32_t capacity : {0, kMaxTokens}) {
    ExpectBitsOfOneRank(TinyV3Config(), {2, 0, capacity, false, 6});
  }
}

}  // namespace
}  // namespace jevons

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
#include "tests/support/formula_communicator.h"
#include "tests/support/fp8_checkpoint.h"
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
  int32_t num_wanted = 0;  // of the first experts, which all tokens want; 0: as the weights say
  ExchangeOverlap overlap = ExchangeOverlap::kOff;
  ExchangePrecision precision = ExchangePrecision::kExact;
  ExchangeBy exchange_by = ExchangeBy::kCalls;  // of devices
  // kFp8: of a checkpoint with FP8 weights.
  ActivationPrecision activations = ActivationPrecision::kExact;
};
// Some steps have as many tokens at some rank, some do not.
constexpr int32_t kMinSplitTokens = 12;

// Ranks that are threads reach each other's host memory, and devices over NCCL.
std::unique_ptr<Communicator> Connect(std::unique_ptr<Communicator> member, Backend& backend,
                                      const Layout& layout) {
#ifdef JEVONS_TEST_CUDA
  const int32_t device = member->info().rank;
  auto out = CreateNcclCommunicator(
      std::move(member),
      {.device = device, .stream = backend.queue(), .exchange_by = layout.exchange_by});
  EXPECT_TRUE(out.ok()) << out.status();
  return *std::move(out);
#else
  return member;
#endif
}

ModelRunnerOptions OptionsOf(const Layout& layout) {
  return {.max_tokens = kMaxTokens,
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
}

// Runs the steps of one rank. steps[i] empty: it takes part with no tokens.
LogitRows RunRank(const ModelConfig& config, const Layout& layout,
                  std::unique_ptr<Communicator> member, const std::vector<Tokens>& steps) {
  LogitRows out;
  std::unique_ptr<Checkpoint> checkpoint;
  if (layout.activations == ActivationPrecision::kFp8) {
    checkpoint = std::make_unique<Fp8Checkpoint>(config, 3);
  } else {
    checkpoint = std::make_unique<SkewedCheckpoint>(config, 3, layout.num_wanted);
  }
  auto backend = MakeTestBackend(member != nullptr ? member->info().rank : 0);
  ModelRunnerOptions options = OptionsOf(layout);
  RankGroup group;
  std::unique_ptr<FormulaCommunicator> communicator;
  std::vector<std::vector<int32_t>> experts;
  if (member != nullptr) {
    group.maps = *EvenMaps(config, layout.num_ranks, layout.num_redundant);
    options.slots_per_rank = group.maps[0].slots_per_rank();
    for (const ExpertMap& map : group.maps) {
      experts.push_back(FilledSlots(map.experts_of_rank(member->info().rank)));
    }
    communicator = std::make_unique<FormulaCommunicator>(
        Connect(std::move(member), *backend, layout), config, options, backend->traits());
    group.communicator = communicator.get();
  }
  auto weights = LoadModelWeights(config, *checkpoint, *backend, experts, layout.activations);
  EXPECT_TRUE(weights.ok()) << weights.status();
  auto runner = ModelRunner::Create(config, *std::move(weights), backend.get(), options, group);
  EXPECT_TRUE(runner.ok()) << runner.status();
  const absl::Status warm = (*runner)->WarmUp();
  EXPECT_TRUE(warm.ok()) << warm;
  if (communicator != nullptr) communicator->ExpectRecorded();
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

void ExpectBitsOfOneRank(const ModelConfig& config, const Layout& layout,
                         const std::vector<std::vector<Tokens>>& steps) {
  SCOPED_TRACE(testing::Message() << layout.num_ranks << " ranks, " << layout.num_redundant
                                  << " redundant, capacity " << layout.masked_capacity
                                  << ", overlap " << static_cast<int>(layout.overlap) << ", by "
                                  << ExchangeByName(layout.exchange_by));
  const auto got = RunGroup(config, layout, steps);
  Layout alone;
  alone.num_wanted = layout.num_wanted;
  alone.activations = layout.activations;
  for (int32_t r = 0; r < layout.num_ranks; ++r) {
    SCOPED_TRACE(testing::Message() << "rank " << r);
    ExpectSameLogits(got[r], RunRank(config, alone, nullptr, steps[r]));
  }
}

void ExpectBitsOfOneRank(const ModelConfig& config, const Layout& layout) {
  ExpectBitsOfOneRank(config, layout, RandomSteps(config, layout.num_ranks));
}

class ExpertParallelTest : public testing::TestWithParam<ModelConfig> {
 protected:
  void SetUp() override { SKIP_WITHOUT_TEST_BACKEND(); }
};

TEST_P(ExpertParallelTest, AnyNumberOfRanksGivesTheBitsOfOne) {
  // The emulator is slow.
  for (int32_t num_ranks : kTestsCuda ? std::vector{1, 3} : std::vector{1, 2, 3, 4, 8}) {
    for (int32_t num_redundant : kTestsCuda ? std::vector{5} : std::vector{0, 5}) {
      ExpectBitsOfOneRank(GetParam(), {num_ranks, num_redundant});
    }
  }
}

// MaskedStepTest does it for devices.
#ifndef JEVONS_TEST_CUDA
TEST_P(ExpertParallelTest, OverlapOfExchangesAndComputingGivesTheSameBits) {
  const auto expect = [](int32_t num_ranks, ExchangeOverlap overlap) {
    ExpectBitsOfOneRank(GetParam(),
                        {.num_ranks = num_ranks, .num_redundant = 5, .overlap = overlap});
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
    layouts = {{.num_ranks = 2},
               {.num_ranks = 3, .num_redundant = 5, .masked_capacity = 8},
               {.num_ranks = 8, .overlap = ExchangeOverlap::kBatches}};
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

// Rows are rounded by who reads them, or by who sends them too: what experts read is the same.
TEST(RoundedActivationsTest, GiveTheBitsOfOneRankWhateverIsExchanged) {
  SKIP_WITHOUT_TEST_BACKEND();
  Layout layout = {.num_ranks = 2, .masked_capacity = 8};
  layout.activations = ActivationPrecision::kFp8;
  const ModelConfig config = TinyV3Config();
  ExpectBitsOfOneRank(config, layout);
  if (kTestsCuda) return;
  layout.num_ranks = 8;
  layout.precision = ExchangePrecision::kFp8;
  ExpectBitsOfOneRank(config, layout);
}

INSTANTIATE_TEST_SUITE_P(V2AndV3, ExpertParallelTest,
                         testing::Values(TinyV2Config(), TinyV3Config()),
                         [](const auto& info) { return info.param.model_type; });

// MaskedStepTest does it for devices.
#ifndef JEVONS_TEST_CUDA
TEST(MaskedHalvesTest, GiveTheBitsOfOneRank) {
  SKIP_WITHOUT_TEST_BACKEND();
  for (int32_t num_ranks : {2, 8}) {
    ExpectBitsOfOneRank(TinyV3Config(), {.num_ranks = num_ranks,
                                         .num_redundant = 3,
                                         .masked_capacity = 19,
                                         .overlap = ExchangeOverlap::kBatches});
  }
}
#endif

// One token somewhere, a few on both ranks, none; cut in halves where one rank has three; too many.
TEST(MaskedStepTest, SendsAsManyRowsAsTheRankWithMostHas) {
  SKIP_WITHOUT_TEST_BACKEND();
  Tokens many(14), too_many(22);
  std::iota(many.begin(), many.end(), 40);
  std::iota(too_many.begin(), too_many.end(), 70);
  const std::vector<std::vector<Tokens>> steps = {
      {{7}, {}, {3, 9, 27}, {}, many, too_many, {5}},
      {{}, {11}, {81, 2}, {}, {12, 13, 14}, {100}, {6}}};
  Layout layout = {.num_ranks = 2,
                   .num_redundant = 3,
                   .masked_capacity = 19,
                   .overlap = ExchangeOverlap::kBatches};
  ExpectBitsOfOneRank(TinyV3Config(), layout, steps);
  if (!kTestsCuda) return;
  layout.exchange_by = ExchangeBy::kKernels;
  ExpectBitsOfOneRank(TinyV3Config(), layout, steps);
}

TEST(SkewedExpertsTest, AllTokensMayWantTheExpertsOfOneRank) {
  SKIP_WITHOUT_TEST_BACKEND();
  for (int32_t capacity : {0, kMaxTokens}) {
    ExpectBitsOfOneRank(TinyV3Config(), {2, 0, capacity, 6});
  }
}

}  // namespace
}  // namespace jevons

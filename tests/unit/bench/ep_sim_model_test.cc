#include "bench/ep_sim_model.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "bench/ep_sim_machines.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace jevons::ep_sim {
namespace {

using ::testing::AllOf;
using ::testing::DoubleNear;
using ::testing::HasSubstr;

// docs/performance.md's limits by hand: 3.0 TB/s, no cost of a kernel beside its work.
Deployment Roofline() {
  Deployment d;
  d.gpu = H100();
  d.gpu.memory_bytes = 1e15;
  d.kernels = {.linear = 1300e12,
               .head = 800e12,
               .grouped = 1300e12,
               .mla_decode = 600e12,
               .mla_prefill = 600e12};
  d.slots_per_rank = 256;
  return d;
}

ModelConfig Small() {
  ModelConfig c = V3Shape();
  c.hidden_size = 10;
  c.n_routed_experts = 8;
  c.n_group = 1;
  c.topk_group = 1;
  c.num_experts_per_tok = 2;
  return c;
}

double Sum(const StepTime& time) {
  return std::accumulate(time.parts.begin(), time.parts.end(), 0.0);
}

TEST(EpSimModelTest, ALayerOnOneGpuIsItsRoofline) {
  struct Row {
    int32_t batch;
    double moe_us;
    double layer_us;
  };
  // By the formula max(bytes / 3.0 TB/s, flops / rate) of each part, at 1,024 tokens of context.
  for (const Row& row : {Row{1, 133, 196}, Row{8, 859, 926}, Row{64, 3283, 3376},
                         Row{256, 3777, 3973}, Row{1024, 3834, 4616}, Row{4096, 4056, 7182}}) {
    const LayerTime layer =
        MoeLayerTime(V3Shape(), Roofline(), {.num_seqs = row.batch, .context = 1024});
    const double moe = layer.parts[kRouter] + layer.parts[kExperts] + layer.parts[kShared];
    const double rest = layer.parts[kProjections] + layer.parts[kAttention];
    EXPECT_NEAR(moe * 1e6, row.moe_us, 0.001 * row.moe_us + 0.5) << row.batch;
    EXPECT_NEAR((moe + rest) * 1e6, row.layer_us, 0.001 * row.layer_us + 0.5) << row.batch;
    EXPECT_EQ(layer.dispatch, 0);
    EXPECT_EQ(layer.combine, 0);
  }
}

TEST(EpSimModelTest, TheWholeModelHas671BillionWeights) {
  Deployment d = Roofline();
  d.weight_value_bytes = 2;
  const Memory memory = MemoryOf(V3Shape(), d, {.num_seqs = 1, .context = 0});
  EXPECT_NEAR((memory.replicated + memory.experts) / 2, 671.0e9, 0.1e9);
  const Step step = {.num_seqs = 3, .context = 99};
  EXPECT_EQ(MemoryOf(V3Shape(), d, step).cache, 3 * 100 * 70272.0);
}

TEST(EpSimModelTest, APromptsTokensSeeHalfOfItOnAverage) {
  Deployment d = Roofline();
  const Step step = {.prefill = true, .num_seqs = 2, .tokens_per_seq = 1000};
  // 2 prompts of 1,000 tokens with 500 pairs each, 128 heads of 192 + 128, two flops.
  EXPECT_NEAR(MoeLayerTime(V3Shape(), d, step).parts[kAttention],
              2.0 * 2 * 1000 * 500 * 128 * 320 / 600e12, 1e-12);
  d.kernels.absorbed_prefill = true;
  EXPECT_NEAR(MoeLayerTime(V3Shape(), d, step).parts[kAttention],
              2.0 * 2 * 1000 * 500 * 128 * 1088 / 600e12, 1e-12);
}

TEST(EpSimModelTest, DraftsAddFlopsButReadTheCacheOnce) {
  const Deployment d = Roofline();
  Deployment slow = d;
  slow.gpu.read = 1e9;  // the cache decides
  const Step one = {.num_seqs = 4, .context = 4096};
  const Step two = {.num_seqs = 4, .tokens_per_seq = 2, .context = 4096};
  EXPECT_DOUBLE_EQ(MoeLayerTime(V3Shape(), d, two).parts[kAttention],
                   2 * MoeLayerTime(V3Shape(), d, one).parts[kAttention]);
  EXPECT_DOUBLE_EQ(MoeLayerTime(V3Shape(), slow, two).parts[kAttention],
                   MoeLayerTime(V3Shape(), slow, one).parts[kAttention]);
}

TEST(EpSimModelTest, HitProbabilityByHand) {
  ModelConfig c = Small();
  // Both of two choices among the other 4 of 8: 4/8 * 3/7.
  EXPECT_NEAR(HitProbability(c, 4), 1 - 4.0 / 8 * 3 / 7, 1e-12);
  c.n_group = 4;
  c.topk_group = 2;
  EXPECT_NEAR(HitProbability(c, 1), 2.0 / 8, 1e-12);
  EXPECT_NEAR(HitProbability(c, 2), 5.0 / 12, 1e-12);
  // A whole group and one more expert: kept both, one of them, none.
  EXPECT_NEAR(HitProbability(c, 3), 11.0 / 18, 1e-12);
  EXPECT_NEAR(HitProbability(c, 8), 1, 1e-12);
  EXPECT_NEAR(HitProbability(c, 0), 0, 1e-12);
}

TEST(EpSimModelTest, HitProbabilityIsThatOfRandomTokens) {
  const ModelConfig c = V3Shape();
  std::mt19937 random(7);
  constexpr int32_t kTokens = 20000;
  const std::vector<int32_t> sizes = {2, 4, 32, 64, 85, 128, 200};
  std::vector<int32_t> hits(sizes.size());
  std::vector<int32_t> groups(8);
  std::iota(groups.begin(), groups.end(), 0);
  for (int32_t token = 0; token < kTokens; ++token) {
    std::shuffle(groups.begin(), groups.end(), random);
    std::vector<int32_t> kept;
    for (int32_t g = 0; g < 4; ++g) {
      for (int32_t e = 0; e < 32; ++e) kept.push_back(groups[g] * 32 + e);
    }
    std::shuffle(kept.begin(), kept.end(), random);
    const int32_t lowest = *std::min_element(kept.begin(), kept.begin() + 8);
    for (size_t i = 0; i < sizes.size(); ++i) hits[i] += lowest < sizes[i];
  }
  for (size_t i = 0; i < sizes.size(); ++i) {
    EXPECT_NEAR(HitProbability(c, sizes[i]), 1.0 * hits[i] / kTokens, 0.015) << sizes[i];
  }
}

TEST(EpSimModelTest, DistinctExpertsAsTheFormulaSays) {
  Deployment d = Roofline();
  EXPECT_NEAR(DistinctExperts(V3Shape(), d, 1), 8, 1e-9);
  EXPECT_NEAR(DistinctExperts(V3Shape(), d, 8), 57.4, 0.05);
  EXPECT_NEAR(DistinctExperts(V3Shape(), d, 64), 222.4, 0.05);
  EXPECT_NEAR(DistinctExperts(V3Shape(), d, 256), 255.9, 0.05);
  d.num_ranks = 32;
  d.slots_per_rank = 8;
  EXPECT_NEAR(32 * DistinctExperts(V3Shape(), d, 64), 222.4, 0.05);
  d.routing = Routing::kBalanced;
  EXPECT_DOUBLE_EQ(DistinctExperts(V3Shape(), d, 8), 2);
  EXPECT_DOUBLE_EQ(DistinctExperts(V3Shape(), d, 1000), 8);
}

TEST(EpSimModelTest, TrafficByHand) {
  const ModelConfig c = Small();
  Deployment d;
  d.gpu = H100();
  d.num_ranks = 16;
  d.slots_per_rank = 1;
  // 32 tokens, 2 choices, rows of 20 bytes: 7 ranks of 16 inside the node, 8 outside.
  Traffic traffic = DispatchTraffic(c, d, 32);
  EXPECT_DOUBLE_EQ(traffic.nvlink_bytes, 32 * 2 * 7.0 / 16 * 20);
  EXPECT_DOUBLE_EQ(traffic.rdma_bytes, 32 * 2 * 8.0 / 16 * 20);
  EXPECT_EQ(traffic.num_messages, 15);
  d.imbalance = 1.5;
  EXPECT_DOUBLE_EQ(DispatchTraffic(c, d, 32).rdma_bytes, 1.5 * traffic.rdma_bytes);
  d.dispatch_value_bytes = 1;
  EXPECT_DOUBLE_EQ(DispatchTraffic(c, d, 32).rdma_bytes, 0.75 * traffic.rdma_bytes);
  EXPECT_DOUBLE_EQ(CombineTraffic(c, d, 32).rdma_bytes, 1.5 * traffic.rdma_bytes);
  // A rank has one expert, so at most one row of each token goes there.
  d.sizes = Sizes::kPadded;
  traffic = CombineTraffic(c, d, 32);
  EXPECT_DOUBLE_EQ(traffic.nvlink_bytes, 7 * 32 * 20.0);
  EXPECT_DOUBLE_EQ(traffic.rdma_bytes, 8 * 32 * 20.0);
  d.num_ranks = 1;
  d.slots_per_rank = 8;
  EXPECT_EQ(DispatchTraffic(c, d, 32).nvlink_bytes, 0);
}

TEST(EpSimModelTest, TheFewerRowsTheFewerBytes) {
  for (const int32_t ranks : {8, 16, 32, 64}) {
    Deployment d = Baseline(H100(), ranks);
    const auto rdma = [&](Send send) {
      d.combine = send;
      return CombineTraffic(V3Shape(), d, 100).rdma_bytes;
    };
    const double choice = rdma(Send::kPerChoice);
    const double rank = rdma(Send::kPerRank);
    const double group = rdma(Send::kPerGroup);
    const double node = rdma(Send::kPerNode);
    if (ranks == 8) {
      EXPECT_EQ(choice + rank + group + node, 0);
      continue;
    }
    EXPECT_LT(rank, choice) << ranks;
    EXPECT_LT(group, rank) << ranks;
    EXPECT_LE(node, group * (1 + 1e-9)) << ranks;
  }
}

TEST(EpSimModelTest, AnExchangeIsItsBaseItsMessagesAndTheSlowerLink) {
  Deployment d = Baseline(H100(), 16);
  d.transport = {.efficiency = 0.5, .base = 1e-5, .per_message = 1e-6};
  EXPECT_NEAR(ExchangeSeconds(d, {450e3, 0, 15}), 1e-5 + 15e-6 + 2e-6, 1e-12);
  EXPECT_NEAR(ExchangeSeconds(d, {450e3, 50e4, 15}), 1e-5 + 15e-6 + 20e-6, 1e-12);
  d.num_ranks = 1;
  EXPECT_EQ(ExchangeSeconds(d, {}), 0);
}

TEST(EpSimModelTest, WhatTheOtherBatchCoversIsNotExposed) {
  Deployment d = Roofline();
  LayerTime layer;
  layer.parts[kAttention] = 5;
  layer.parts[kExperts] = 3;
  layer.parts[kShared] = 1;
  layer.dispatch = 6;
  layer.combine = 7;
  EXPECT_DOUBLE_EQ(ExposedSeconds(d, layer), 13);
  d.shared_fills_gaps = true;
  EXPECT_DOUBLE_EQ(ExposedSeconds(d, layer), 12);
  // Dispatch behind 5 + 1 and 3 + 1, combine behind 3 and 5.
  d.overlap = Overlap::kTwoBatches;
  EXPECT_DOUBLE_EQ(ExposedSeconds(d, layer), 0 + 2 + 4 + 2);
  // The shared expert belongs to the experts: behind 5 and 4, behind 4 and 5.
  d.shared_fills_gaps = false;
  EXPECT_DOUBLE_EQ(ExposedSeconds(d, layer), 1 + 2 + 3 + 2);
  layer.parts[kAttention] = 7;
  layer.parts[kExperts] = 6;
  EXPECT_DOUBLE_EQ(ExposedSeconds(d, layer), 0);
}

TEST(EpSimModelTest, ALinkWithoutCostLeavesTheKernels) {
  for (const Overlap overlap : {Overlap::kNone, Overlap::kTwoBatches}) {
    Deployment d = Baseline(H100(), 72);
    d.overlap = overlap;
    d.transport = {.efficiency = 1e12};
    const absl::StatusOr<StepTime> time = Simulate(V3Shape(), d, {.num_seqs = 64, .context = 2048});
    ASSERT_TRUE(time.ok()) << time.status();
    EXPECT_NEAR(time->seconds, Sum(*time), 1e-9);
    EXPECT_NE(time->binds, "network");
  }
}

TEST(EpSimModelTest, AStepIsItsPartsAndWhatIsExposed) {
  const absl::StatusOr<StepTime> time =
      Simulate(V3Shape(), Baseline(H100(), 72), {.num_seqs = 128, .context = 2048});
  ASSERT_TRUE(time.ok()) << time.status();
  EXPECT_GT(time->exposed, 0);
  EXPECT_LT(time->exposed, time->dispatch + time->combine);
  EXPECT_NEAR(time->seconds, Sum(*time) + time->exposed, 1e-12);
  EXPECT_EQ(time->binds, "network");
}

TEST(EpSimModelTest, TwoBatchesReadTheWeightsTwice) {
  Deployment d = Baseline(H100(), 72);
  const Step step = {.num_seqs = 32, .context = 2048};
  const absl::StatusOr<StepTime> two = Simulate(V3Shape(), d, step);
  d.overlap = Overlap::kNone;
  const absl::StatusOr<StepTime> one = Simulate(V3Shape(), d, step);
  ASSERT_TRUE(one.ok() && two.ok());
  EXPECT_NEAR(two->parts[kProjections], 2 * one->parts[kProjections], 1e-12);
  EXPECT_EQ(two->parts[kHead], one->parts[kHead]);
  // A step of one sequence cannot be halved.
  d.overlap = Overlap::kTwoBatches;
  const Step single = {.num_seqs = 1, .context = 2048};
  const absl::StatusOr<StepTime> whole = Simulate(V3Shape(), d, single);
  d.overlap = Overlap::kNone;
  EXPECT_EQ(whole->seconds, Simulate(V3Shape(), d, single)->seconds);
}

TEST(EpSimModelTest, MoreOfAnythingIsNeverSlower) {
  std::mt19937 random(11);
  const auto pick = [&](std::vector<int32_t> from) { return from[random() % from.size()]; };
  using Change = void (*)(Deployment&);
  const Change changes[] = {[](Deployment& d) { d.gpu.read *= 1.3; },
                            [](Deployment& d) { d.gpu.nvlink *= 1.3; },
                            [](Deployment& d) { d.gpu.rdma *= 1.3; },
                            [](Deployment& d) { d.kernels.linear *= 1.3; },
                            [](Deployment& d) { d.kernels.head *= 1.3; },
                            [](Deployment& d) { d.kernels.grouped *= 1.3; },
                            [](Deployment& d) { d.kernels.mla_decode *= 1.3; },
                            [](Deployment& d) { d.kernels.mla_prefill *= 1.3; },
                            [](Deployment& d) { d.transport.efficiency *= 1.2; },
                            [](Deployment& d) { d.transport.base /= 2; },
                            [](Deployment& d) { d.transport.per_message /= 2; },
                            [](Deployment& d) { d.transport.count /= 2; },
                            [](Deployment& d) { d.transport.num_sms /= 2; },
                            [](Deployment& d) { d.dispatch_value_bytes = 1; },
                            [](Deployment& d) { d.imbalance = 1; }};
  int32_t num_compared = 0;
  for (int32_t i = 0; i < 300; ++i) {
    Deployment d = Baseline(i % 2 ? H100() : H800(), pick({8, 16, 32, 72, 144}));
    d.gpu.memory_bytes = 1e15;
    d.transport = i % 3 == 0 ? Nccl() : i % 3 == 1 ? Forwarding() : LowLatency();
    d.dispatch = static_cast<Send>(pick({0, 1, 2}));
    d.combine = static_cast<Send>(pick({0, 1, 2}));
    d.overlap = random() % 2 ? Overlap::kTwoBatches : Overlap::kNone;
    d.shared_fills_gaps = random() % 2;
    d.imbalance = pick({1, 2});
    Step step = {.num_seqs = pick({1, 2, 31, 256}), .context = pick({0, 2048, 65536})};
    step.prefill = random() % 2;
    if (step.prefill) step.tokens_per_seq = pick({1, 512, 4096});
    const absl::StatusOr<StepTime> before = Simulate(V3Shape(), d, step);
    ASSERT_TRUE(before.ok()) << before.status();
    for (const Change change : changes) {
      Deployment better = d;
      change(better);
      const absl::StatusOr<StepTime> after = Simulate(V3Shape(), better, step);
      ASSERT_TRUE(after.ok()) << after.status();
      EXPECT_LE(after->seconds, before->seconds * (1 + 1e-12));
      EXPECT_GT(after->seconds, 0);
      ++num_compared;
    }
  }
  EXPECT_EQ(num_compared, 4500);
}

TEST(EpSimModelTest, WhatDoesNotFitIsRefusedWithNumbers) {
  const Step step = {.num_seqs = 1, .context = 1024};
  const absl::Status status = Simulate(V3Shape(), Baseline(H100(), 8), step).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("H100 has 72.0 GB"), HasSubstr("92.0 experts")));
  EXPECT_TRUE(Simulate(V3Shape(), Baseline(H200(), 8), step).ok());
  EXPECT_TRUE(Simulate(V3Shape(), Baseline(H100(), 16), step).ok());
  // The cache decides: one token more a sequence does not fit.
  const Deployment d = Baseline(H100(), 72);
  Step full = {.num_seqs = 64, .context = 0};
  const Memory empty = MemoryOf(V3Shape(), d, full);
  full.context = static_cast<int64_t>((empty.limit - empty.total()) / (64 * 70272.0));
  EXPECT_TRUE(Simulate(V3Shape(), d, full).ok());
  ++full.context;
  EXPECT_EQ(Simulate(V3Shape(), d, full).status().code(), absl::StatusCode::kResourceExhausted);
  // Room for the worst case of a prompt on every rank.
  Deployment padded = Baseline(H100(), 32);
  padded.sizes = Sizes::kPadded;
  EXPECT_EQ(Simulate(V3Shape(), padded, {.prefill = true, .num_seqs = 4, .tokens_per_seq = 4096})
                .status()
                .code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(EpSimModelTest, WhatMakesNoSenseIsRefused) {
  const Step step = {.num_seqs = 1, .context = 1024};
  const auto refused = [&](void (*change)(Deployment&, Step&), const char* text) {
    Deployment d = Baseline(H200(), 16);
    Step s = step;
    change(d, s);
    const absl::Status status = Simulate(V3Shape(), d, s).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  };
  refused([](Deployment& d, Step&) { d.num_ranks = 0; }, "not 0");
  refused([](Deployment& d, Step&) { d.num_ranks = 12; }, "whole nodes of 8, not 12");
  refused([](Deployment& d, Step&) { d.slots_per_rank = 15; }, "hold 240 experts at most, not 256");
  refused([](Deployment& d, Step&) { d.imbalance = 0.5; }, "not 0.5");
  refused([](Deployment& d, Step&) { d.dispatch = Send::kPerGroup; }, "only go back");
  refused(
      [](Deployment& d, Step&) {
        d.sizes = Sizes::kPadded;
        d.combine = Send::kPerNode;
      },
      "rank to rank");
  refused(
      [](Deployment& d, Step&) {
        d.num_ranks = 24;
        d.combine = Send::kPerGroup;
      },
      "3 nodes cannot hold 8 whole groups");
  refused([](Deployment&, Step& s) { s.num_seqs = 0; }, "not 0 of 1");
  refused([](Deployment&, Step& s) { s.context = -1; }, "after -1");
}

}  // namespace
}  // namespace jevons::ep_sim

// How the kernels around the experts are started: the plans are pure, and a device of each kind can
// run them.
#include <cstdint>
#include <initializer_list>

#include "cuda/combine.h"
#include "cuda/finish.h"
#include "cuda/linear_route.h"
#include "cuda/route.h"
#include "cuda/router.h"
#include "gtest/gtest.h"
#include "tests/cuda/plan_cases.h"

namespace jevons::cuda {
namespace {

const int32_t kWidths[] = {1, 7, 8, 64, 255, 2048, 5120, 7168, 18432};
const int32_t kTokens[] = {1, 2, 7, 8, 9, 16, 33, 64, 256, 1000, 8192};

RmsNormParams NormOf(int32_t num_tokens, int32_t hidden) {
  return {.x = kEven,
          .delta = kEven,
          .weight = static_cast<const float*>(kEven),
          .out = kEven,
          .num_tokens = num_tokens,
          .hidden = hidden,
          .x_stride = hidden,
          .delta_stride = hidden,
          .out_stride = hidden};
}

ExpertCombineParams CombineOf(int32_t num_tokens, int32_t hidden) {
  return {.expert_out = kEven,
          .out = kEven,
          .num_tokens = num_tokens,
          .num_rows = 8 * num_tokens,
          .top_k = 8,
          .hidden = hidden,
          .expert_stride = hidden,
          .out_stride = hidden};
}

TEST(ChooseCombineTest, BlocksCoverEachRow) {
  for (int32_t width : kWidths) {
    ExpertCombineParams params = CombineOf(3, width);
    const CombinePlan plan = ChooseCombine(params);
    ExpectBlock(plan.threads);
    EXPECT_GE(int64_t{plan.threads} * plan.blocks_per_token * 8, width);
    EXPECT_LE(plan.blocks_per_token, kMostGridY);
    EXPECT_EQ(plan.whole, width % 8 == 0);
    params.shared = kOdd;
    params.shared_stride = width;
    EXPECT_FALSE(ChooseCombine(params).whole);
  }
}

TEST(ChooseCombineTest, WithANormABlockHasTheWholeTokenAndTheThreadsOfTheNorm) {
  for (int32_t width : kWidths) {
    ExpertCombineParams combine = CombineOf(3, width);
    const CombinePlan plan = ChooseCombineAndNorm(combine, NormOf(3, width));
    EXPECT_EQ(plan.threads, ChooseRmsNorm(NormOf(3, width)).threads);
    EXPECT_EQ(plan.blocks_per_token, 1);
    EXPECT_EQ(plan.whole, width % 8 == 0);
    combine.expert_out = kOdd;
    EXPECT_FALSE(ChooseCombineAndNorm(combine, NormOf(3, width)).whole);
  }
}

struct Routing {
  int32_t num_experts;
  int32_t top_k;
  int32_t n_group;
};
const Routing kRoutings[] = {{1, 1, 1},   {12, 4, 4},  {64, 6, 1},     {160, 6, 8},
                             {256, 8, 8}, {384, 8, 1}, {1024, 32, 32}, {1024, 32, 512}};

TEST(ChooseRouteTest, EveryTokenHasAWarp) {
  for (const Routing& routing : kRoutings) {
    for (int32_t tokens : kTokens) {
      const RouteTopKParams params = {.num_tokens = tokens,
                                      .num_experts = routing.num_experts,
                                      .top_k = routing.top_k,
                                      .n_group = routing.n_group,
                                      .topk_group = 1};
      const RoutePlan plan = ChooseRouteTopK(params);
      ExpectBlock(plan.threads);
      EXPECT_GE(int64_t{plan.blocks} * (plan.threads / 32), tokens);
      EXPECT_LE(plan.smem_bytes, kDefaultSmem);
      if (tokens > kMaxFusedTokens) continue;
      const RoutePlan fused = ChooseRouteAndDispatch({.route = params});
      ExpectBlock(fused.threads);
      EXPECT_GE(int64_t{fused.blocks} * (fused.threads / 32), tokens);
      for (const DeviceFacts& device : kDevices) {
        EXPECT_LE(fused.smem_bytes, device.max_smem_bytes);
      }
    }
  }
}

TEST(ChooseRouteTest, EveryExpertHasABlockToCollectItsRows) {
  for (const Routing& routing : kRoutings) {
    for (int32_t tokens : kTokens) {
      const RoutePlan plan = ChooseExpertDispatch(
          {.num_tokens = tokens, .top_k = routing.top_k, .num_experts = routing.num_experts});
      ExpectBlock(plan.threads);
      EXPECT_GE(plan.blocks, routing.num_experts);
      EXPECT_LE(plan.smem_bytes, kDefaultSmem);
    }
  }
}

// V2-Lite, V2, V3, and the most experts that there may be.
const Routing kModels[] = {{64, 6, 1}, {160, 6, 8}, {256, 8, 8}, {1024, 32, 32}};

RouterParams RouterOf(const Routing& routing, int32_t num_tokens, int32_t hidden) {
  return {.norm = NormOf(num_tokens, hidden),
          .weight = kEven,
          .layout = {.n = routing.num_experts, .k = hidden},
          .route = {.num_tokens = num_tokens,
                    .num_experts = routing.num_experts,
                    .top_k = routing.top_k,
                    .n_group = routing.n_group}};
}

TEST(ChooseRouterTest, SetsFitTheDeviceAndTheirBlocksHaveAllTokensAndExperts) {
  for (const DeviceFacts& device : kDevices) {
    for (const Routing& routing : kModels) {
      for (int32_t hidden : kWidths) {
        for (int32_t tokens : kTokens) {
          const RouterPlan plan = ChooseRouter(RouterOf(routing, tokens, hidden), device);
          if (plan.threads == 0) continue;
          EXPECT_LE(tokens, kMaxFusedTokens);
          EXPECT_LE(plan.set_tokens, Min(plan.threads / 32, kMostSetTokens));
          const int32_t num_sets = CeilDiv(tokens, plan.set_tokens);
          EXPECT_LE(kMeetingCounters + num_sets, kRouterCounters);
          EXPECT_EQ(plan.blocks, num_sets * plan.set_blocks);
          EXPECT_LE(plan.set_blocks, CeilDiv(routing.num_experts, 16));
          EXPECT_LE(plan.smem_bytes, device.max_smem_bytes);
          EXPECT_EQ(plan.whole, hidden % 8 == 0);
        }
      }
    }
  }
}

// How a step is cut: tokens of a set, blocks of each; 0: a kernel for each op.
struct Cut {
  int32_t tokens;
  int32_t set_tokens[3];  // on each device
  int32_t set_blocks[3];
};

void ExpectCuts(const Routing& routing, int32_t hidden, std::initializer_list<Cut> cuts) {
  for (const Cut& cut : cuts) {
    for (int i = 0; i < 3; ++i) {
      SCOPED_TRACE(testing::Message() << cut.tokens << " on sm_" << kDevices[i].sm);
      const RouterPlan plan = ChooseRouter(RouterOf(routing, cut.tokens, hidden), kDevices[i]);
      EXPECT_EQ(plan.set_tokens, cut.set_tokens[i]);
      EXPECT_EQ(plan.set_blocks, cut.set_blocks[i]);
    }
  }
}

TEST(ChooseRouterTest, TheStepsOfServedModelsThatOneKernelTakes) {
  ExpectCuts(kModels[0], 2048,
             {{1, {1, 1, 1}, {4, 4, 4}},
              {2, {2, 2, 2}, {4, 4, 4}},
              {8, {1, 1, 1}, {4, 4, 4}},
              {9, {1, 1, 1}, {4, 4, 4}},
              {64, {3, 2, 2}, {4, 4, 4}},
              {65, {3, 2, 2}, {4, 4, 4}},
              {256, {5, 8, 7}, {2, 4, 4}},
              {257, {0, 0, 0}, {0, 0, 0}}});
  ExpectCuts(kModels[2], 7168,
             {{1, {1, 1, 1}, {16, 16, 16}},
              {2, {2, 2, 2}, {16, 16, 16}},
              {8, {2, 1, 1}, {16, 16, 16}},
              {9, {2, 2, 1}, {16, 16, 16}},
              {64, {0, 4, 4}, {0, 8, 9}},
              {96, {0, 6, 6}, {0, 8, 9}},
              {97, {0, 0, 6}, {0, 0, 8}},
              {256, {0, 0, 0}, {0, 0, 0}}});
}

TEST(ChooseRouterTest, OtherWeightsAndNoTokensHaveNoKernel) {
  for (const DeviceFacts& device : kDevices) {
    EXPECT_EQ(ChooseRouter(RouterOf(kModels[0], 0, 2048), device).threads, 0);
    RouterParams e4m3 = RouterOf(kModels[0], 8, 2048);
    e4m3.layout.format = WeightFormat::kE4m3;
    EXPECT_EQ(ChooseRouter(e4m3, device).threads, 0);
  }
}

// As o of a model.
LinearRouteParams LinearRouteOf(const Routing& routing, int32_t num_tokens, int32_t hidden,
                                int32_t k, WeightFormat format) {
  LinearRouteParams p;
  p.router = RouterOf(routing, num_tokens, hidden);
  p.product.layout = {.format = format, .n = hidden, .k = k};
  p.product.x = kEven;
  p.product.x_row_stride = k;
  p.product.num_x_rows = num_tokens;
  p.product.num_rows = num_tokens;
  p.product.out = kEven;
  p.product.out_row_stride = hidden;
  return p;
}

TEST(ChooseLinearRouteTest, TheProductsBlocksAreAsManyAndAllThereAndTheLastWhoWaitAreHalfAtMost) {
  for (const DeviceFacts& device : kDevices) {
    for (const Routing& routing : kModels) {
      for (int32_t hidden : kWidths) {
        for (int32_t tokens : kTokens) {
          for (WeightFormat format : {WeightFormat::kBf16, WeightFormat::kE4m3}) {
            const LinearRouteParams p = LinearRouteOf(routing, tokens, hidden, 2048, format);
            const LinearRoutePlan plan = ChooseLinearRoute(p, device);
            if (plan.gemm.num_blocks == 0) continue;
            EXPECT_EQ(plan.gemm.num_blocks, ChooseGemm(p.product, device).num_blocks);
            EXPECT_GE(plan.smem_bytes, plan.gemm.smem_bytes);
            EXPECT_GE(plan.smem_bytes, plan.router.smem_bytes);
            const int32_t on_one_sm = CeilDiv(plan.gemm.num_blocks, device.num_sms);
            EXPECT_LE(on_one_sm * (plan.smem_bytes + 1024), device.max_smem_bytes + 1024);
            EXPECT_GE(plan.router.blocks, 1);
            EXPECT_LE(plan.router.blocks, plan.gemm.num_blocks);
            EXPECT_LE(plan.router.blocks, device.num_sms / 2);
            EXPECT_LE(routing.num_experts, 256);
          }
        }
      }
    }
  }
}

TEST(ChooseLinearRouteTest, TheStepsOfServedModelsThatOneKernelTakes) {
  // Tokens of a set on each device; 0: a kernel for the product alone.
  struct Step {
    int32_t tokens;
    int32_t v2_lite[3];
    int32_t v3[3];
  };
  const Step steps[] = {
      {1, {1, 1, 1}, {1, 1, 1}},  {2, {2, 2, 2}, {1, 2, 2}},  {8, {1, 1, 1}, {0, 2, 2}},
      {9, {1, 1, 1}, {0, 3, 0}},  {12, {1, 1, 1}, {0, 3, 3}}, {13, {1, 1, 1}, {0, 0, 0}},
      {64, {5, 4, 4}, {0, 0, 0}}, {65, {5, 5, 4}, {0, 0, 0}}, {256, {0, 8, 7}, {0, 0, 0}}};
  for (const Step& step : steps) {
    for (int i = 0; i < 3; ++i) {
      SCOPED_TRACE(testing::Message() << step.tokens << " on sm_" << kDevices[i].sm);
      const auto set_of = [&](const Routing& routing, int32_t hidden, int32_t k,
                              WeightFormat format) {
        const LinearRouteParams p = LinearRouteOf(routing, step.tokens, hidden, k, format);
        return ChooseLinearRoute(p, kDevices[i]).router.set_tokens;
      };
      EXPECT_EQ(set_of(kModels[0], 2048, 2048, WeightFormat::kBf16), step.v2_lite[i]);
      EXPECT_EQ(set_of(kModels[0], 2048, 2048, WeightFormat::kE4m3), step.v2_lite[i]);
      EXPECT_EQ(set_of(kModels[2], 7168, 16384, WeightFormat::kE4m3), step.v3[i]);
    }
  }
}

TEST(ChooseLinearRouteTest, TheOutputOfV2LiteAndItsRouterAreOneKernelUpTo64Tokens) {
  for (const DeviceFacts& device : kDevices) {
    for (WeightFormat format : {WeightFormat::kBf16, WeightFormat::kE4m3}) {
      for (int32_t tokens = 1; tokens <= 64; ++tokens) {
        const LinearRouteParams p = LinearRouteOf(kModels[0], tokens, 2048, 2048, format);
        EXPECT_GT(ChooseLinearRoute(p, device).gemm.num_blocks, 0)
            << tokens << " on sm_" << device.sm;
      }
    }
  }
}

TEST(ChooseLinearRouteTest, OtherProductsAndOtherRowsHaveAKernelEach) {
  const LinearRouteParams good = LinearRouteOf(kModels[0], 1, 2048, 2048, WeightFormat::kBf16);
  const auto taken = [&](auto change) {
    LinearRouteParams p = good;
    change(p);
    return ChooseLinearRoute(p, kDevices[1]).gemm.num_blocks > 0;
  };
  EXPECT_TRUE(taken([](LinearRouteParams&) {}));
  EXPECT_FALSE(taken([](LinearRouteParams& p) { p.product.out = kOdd; }));
  EXPECT_FALSE(taken([](LinearRouteParams& p) { p.product.out_row_stride = 2056; }));
  EXPECT_FALSE(taken([](LinearRouteParams& p) { p.product.out_type = Element::kBF16; }));
  EXPECT_FALSE(taken([](LinearRouteParams& p) { p.product.num_groups = 2; }));
  EXPECT_FALSE(taken([](LinearRouteParams& p) { p.product.layout.n = 2040; }));
  EXPECT_FALSE(taken([](LinearRouteParams& p) { p.product.num_rows = 2; }));
  EXPECT_FALSE(taken([](LinearRouteParams& p) { p.router.norm.delta = nullptr; }));
}

// As down of a model, whose shared experts are more groups.
FinishParams FinishOf(int32_t num_tokens, int32_t hidden, int32_t k, int32_t num_groups,
                      WeightFormat format) {
  FinishParams p;
  p.combine = CombineOf(num_tokens, hidden);
  p.norm = NormOf(num_tokens, hidden);
  p.product.layout = {.format = format, .n = hidden, .k = k};
  p.product.num_groups = num_groups;
  p.product.cu_rows = static_cast<const int32_t*>(kEven);
  p.product.x = kEven;
  p.product.x_row_stride = k;
  p.product.num_x_rows = p.combine.num_rows;
  p.product.num_rows = p.combine.num_rows;
  p.product.out = kEven;
  p.product.out_type = Element::kBF16;
  p.product.out_row_stride = hidden;
  return p;
}
FinishParams OfV2Lite(int32_t num_tokens, WeightFormat format) {
  return FinishOf(num_tokens, 2048, 1408, 66, format);
}
FinishParams OfV3(int32_t num_tokens, WeightFormat format) {
  FinishParams p = FinishOf(num_tokens, 7168, 2048, 257, format);
  p.combine.top_k = 9;
  p.combine.num_rows = p.product.num_x_rows = p.product.num_rows = 9 * num_tokens;
  return p;
}
// Its query and keys, and the norm of the query.
FinishParams OfV3Query(int32_t num_tokens) {
  FinishParams p;
  p.norm = NormOf(num_tokens, 1536);
  p.norm.x_type = Element::kBF16;
  p.norm.delta = nullptr;
  p.norm.x_stride = 2112;
  p.product.layout = {.format = WeightFormat::kE4m3, .n = 2112, .k = 7168};
  p.product.x = kEven;
  p.product.x_row_stride = 7168;
  p.product.num_x_rows = p.product.num_rows = num_tokens;
  p.product.out = kEven;
  p.product.out_type = Element::kBF16;
  p.product.out_row_stride = 2112;
  return p;
}

void ExpectBlocksOfTheProduct(const FinishParams& p, const DeviceFacts& device) {
  const FinishPlan plan = ChooseFinish(p, device);
  if (plan.gemm.num_blocks == 0) return;
  EXPECT_EQ(plan.gemm.num_blocks, ChooseGemm(p.product, device).num_blocks);
  EXPECT_GE(plan.smem_bytes, plan.gemm.smem_bytes);
  EXPECT_GE(plan.smem_bytes, p.norm.hidden * int32_t{sizeof(float)});
  const int32_t on_one_sm = CeilDiv(plan.gemm.num_blocks, device.num_sms);
  EXPECT_LE(on_one_sm * (plan.smem_bytes + 1024), device.max_smem_bytes + 1024);
  EXPECT_GE(plan.num_last, 1);
  EXPECT_LE(plan.num_last, p.norm.num_tokens);
  EXPECT_LE(plan.num_last, plan.gemm.num_blocks);
  EXPECT_LE(plan.num_last, device.num_sms / 2);
  EXPECT_LE(p.norm.num_tokens, 64);
}

TEST(ChooseFinishTest, TheProductsBlocksAreAsManyAndAllThereAndTheLastWhoWaitAreHalfAtMost) {
  for (DeviceFacts device : kDevices) {
    for (int32_t num_sms : {device.num_sms, 16}) {
      device.num_sms = num_sms;
      for (WeightFormat format : {WeightFormat::kBf16, WeightFormat::kE4m3}) {
        for (int32_t hidden : kWidths) {
          for (int32_t tokens : kTokens) {
            ExpectBlocksOfTheProduct(FinishOf(tokens, hidden, 1408, 64, format), device);
            ExpectBlocksOfTheProduct(FinishOf(tokens, hidden, 1408, 4, format), device);
          }
        }
      }
    }
  }
}

TEST(ChooseFinishTest, TheStepsOfServedModelsThatOneKernelTakes) {
  for (const DeviceFacts& device : kDevices) {
    for (int32_t tokens : {0, 1, 2, 4, 5, 8, 40, 64, 65}) {
      SCOPED_TRACE(testing::Message() << tokens << " on sm_" << device.sm);
      // The last block alone where that is as soon done, else one for each token.
      const int32_t want = tokens <= 64 ? tokens : 0;
      const int32_t half = device.num_sms / 2;
      for (WeightFormat format : {WeightFormat::kBf16, WeightFormat::kE4m3}) {
        const FinishPlan v2_lite = ChooseFinish(OfV2Lite(tokens, format), device);
        EXPECT_EQ(v2_lite.num_last, tokens == 2 ? 1 : Min(want, half));
        EXPECT_EQ(v2_lite.whole, want > 0);
        EXPECT_EQ(ChooseFinish(OfV3(tokens, format), device).num_last, want <= half ? want : 0);
      }
      const FinishPlan query = ChooseFinish(OfV3Query(tokens), device);
      EXPECT_EQ(query.gemm.num_blocks > 0, want > 0);
      EXPECT_GE(query.num_last, tokens > 2 && want > 0 ? Min(tokens, 32) : 0);
    }
  }
}

// Few blocks would have many tokens each, wide rows take each block long.
TEST(ChooseFinishTest, WhatAKernelOfItsOwnIsFasterAtIsNotTaken) {
  DeviceFacts small = kDevices[1];
  small.num_sms = 16;
  constexpr WeightFormat kBf16 = WeightFormat::kBf16;
  EXPECT_EQ(ChooseFinish(OfV2Lite(24, kBf16), small).num_last, 8);
  EXPECT_EQ(ChooseFinish(OfV2Lite(25, kBf16), small).num_last, 0);
  EXPECT_EQ(ChooseFinish(OfV3(8, kBf16), small).num_last, 8);
  EXPECT_EQ(ChooseFinish(OfV3(9, kBf16), small).num_last, 0);
  EXPECT_EQ(ChooseFinish(FinishOf(1, 18432, 2048, 64, kBf16), kDevices[1]).num_last, 0);
}

}  // namespace
}  // namespace jevons::cuda

// How the kernels are started: the plans are pure, and a device of each kind can run them.
#include <cstdint>
#include <tuple>
#include <utility>

#include "cuda/gemm.h"
#include "cuda/round_rows.h"
#include "cuda/rows.h"
#include "cuda/sample.h"
#include "gtest/gtest.h"
#include "tests/cuda/plan_cases.h"

namespace jevons::cuda {
namespace {

const int32_t kWidths[] = {1, 7, 8, 64, 255, 576, 1408, 2048, 5120, 7168, 18432, 163840};

struct Product {
  int32_t n;
  int32_t k;
  int32_t num_groups = 1;
  bool grouped = false;  // rows of each group by cu_rows
  RowOrder order = RowOrder::kPlain;
};
// DeepSeek V2-Lite and V3: projections, heads, experts, router, vocabulary; and the smallest.
const Product kProducts[] = {{3648, 2048},
                             {2048, 2048},
                             {102400, 2048},
                             {64, 2048},
                             {512, 128, 16},
                             {128, 512, 128},
                             {21888, 2048, 1, false, RowOrder::kPaired},
                             {2816, 2048, 64, true, RowOrder::kPaired},
                             {2048, 1408, 64, true},
                             {2112, 7168},
                             {24576, 1536},
                             {7168, 16384},
                             {4096, 7168, 256, true, RowOrder::kPaired},
                             {7168, 2048, 256, true},
                             {1, 1},
                             {2, 17, 3, true, RowOrder::kPaired}};

GemmParams ParamsOf(const Product& product, WeightFormat format, int32_t num_rows) {
  GemmParams p;
  p.layout = {.format = format, .order = product.order, .n = product.n, .k = product.k};
  p.num_groups = product.num_groups;
  p.x = kEven;
  p.x_row_stride = product.k;
  p.num_x_rows = num_rows;
  if (product.grouped) p.cu_rows = static_cast<const int32_t*>(kEven);
  p.num_rows = num_rows;
  p.out = kEven;
  p.out_row_stride = product.n;
  if (product.order == RowOrder::kPaired) p.epilogue = GemmEpilogue::kSiluMul;
  return p;
}

auto Fields(const GemmPlan& p) {
  return std::tie(p.atom, p.tile_tokens, p.tile_strips, p.warps_per_strip, p.num_blocks,
                  p.resident_blocks, p.smem_bytes);
}

// Calls `use` with each product, format, number of rows and device.
template <typename Use>
void ForEachGemm(const Use& use) {
  for (const DeviceFacts& device : kDevices) {
    for (const Product& product : kProducts) {
      for (WeightFormat format : {WeightFormat::kBf16, WeightFormat::kE4m3}) {
        for (int32_t rows : kStepTokens) {
          SCOPED_TRACE(testing::Message()
                       << "sm_" << device.sm << " n " << product.n << " k " << product.k
                       << " format " << static_cast<int>(format) << " rows " << rows);
          GemmParams params = ParamsOf(product, format, rows);
          use(params, device);
          if (!MultipliesFp8(params.layout, device)) continue;
          params.atom = GemmAtom::kWgmmaFp8;
          params.x_row_stride = RoundedRowBytes(product.k, true);
          use(params, device);
        }
      }
    }
  }
}

TEST(ChooseGemmTest, EveryPlanFitsTheDevice) {
  ForEachGemm([](const GemmParams& params, const DeviceFacts& device) {
    const GemmPlan plan = ChooseGemm(params, device);
    EXPECT_GT(plan.tile_tokens, 0);
    EXPECT_TRUE(plan.warps_per_strip == 1 || plan.warps_per_strip == 2 ||
                plan.warps_per_strip == 4 || plan.warps_per_strip == 8);
    EXPECT_GT(plan.smem_bytes, 0);
    EXPECT_LE(plan.smem_bytes, device.max_smem_bytes);
    // Blocks walk over tiles: one is enough, and more than can be resident would wait.
    EXPECT_GE(plan.num_blocks, 1);
    EXPECT_LE(plan.num_blocks, plan.resident_blocks);
    EXPECT_GE(plan.resident_blocks, device.num_sms);
    EXPECT_LE(plan.resident_blocks, 2 * device.num_sms);
  });
}

TEST(ChooseGemmTest, TheDeviceAloneDecidesTheAtom) {
  ForEachGemm([](const GemmParams& params, const DeviceFacts& device) {
    const GemmAtom own = device.sm == 90 ? GemmAtom::kWgmma : GemmAtom::kMmaSync;
    EXPECT_EQ(ChooseGemm(params, device).atom,
              params.atom == GemmAtom::kOfDevice ? own : params.atom);
  });
}

TEST(ChooseGemmTest, TheSameArgumentsGiveTheSamePlan) {
  ForEachGemm([](const GemmParams& params, const DeviceFacts& device) {
    const GemmPlan plan = ChooseGemm(params, device);
    EXPECT_EQ(Fields(plan), Fields(ChooseGemm(params, device)));
    EXPECT_EQ(Fields(plan), Fields(PlanGemm(params, device, plan.tile_tokens, plan.tile_strips)));
  });
}

TEST(ChooseGemmTest, UpToEightRowsShareOneTile) {
  ForEachGemm([](const GemmParams& params, const DeviceFacts& device) {
    if (params.num_rows > 8) return;
    EXPECT_EQ(ChooseGemm(params, device).tile_tokens, 8);
  });
}

TEST(ChooseGemmTest, ALargeProductKeepsEveryMultiprocessorBusy) {
  for (const DeviceFacts& device : kDevices) {
    for (int32_t rows : {1, 64, 8192}) {
      const GemmParams params = ParamsOf({102400, 2048}, WeightFormat::kBf16, rows);
      EXPECT_GE(ChooseGemm(params, device).num_blocks, device.num_sms);
    }
  }
}

TEST(ChooseGemmTest, RowsOfFp8AreForSuchAWeightAndWhole) {
  const DeviceFacts& h100 = kDevices[1];
  GemmParams params = ParamsOf({2048, 200}, WeightFormat::kE4m3, 7);
  params.atom = GemmAtom::kWgmmaFp8;
  params.x_row_stride = RoundedRowBytes(200, true);
  EXPECT_EQ(params.x_row_stride, 208 + 16);
  EXPECT_EQ(ChooseGemm(params, h100).tile_tokens, 8);
  params.layout.format = WeightFormat::kBf16;
  EXPECT_EQ(ChooseGemm(params, h100).num_blocks, 0);
  params.layout.format = WeightFormat::kE4m3;
  params.x_row_stride -= 8;
  EXPECT_EQ(ChooseGemm(params, h100).num_blocks, 0);
}

// The products of tests/ops/many_rows_test.cc, on a device and on the emulated one.
TEST(ChooseGemmTest, WarpsWithRolesTakeTheRowsOfTheirTest) {
  const auto expect = [](const Product& product, int32_t num_rows, const DeviceFacts& device) {
    for (WeightFormat format : {WeightFormat::kBf16, WeightFormat::kE4m3}) {
      EXPECT_TRUE(IsWide(ChooseGemm(ParamsOf(product, format, num_rows), device)));
    }
    GemmParams fp8 = ParamsOf(product, WeightFormat::kE4m3, num_rows);
    fp8.atom = GemmAtom::kWgmmaFp8;
    fp8.x_row_stride = RoundedRowBytes(product.k, true);
    EXPECT_TRUE(IsWide(ChooseGemm(fp8, device)));
  };
  expect({2816, 512, 8, true}, 1600, kDevices[1]);
  expect({384, 296, 3, true}, 200, {.sm = 90, .num_sms = 4});
}

// What DeepSeek V2-Lite's and V3's experts take on an H100, by rows of an expert.
TEST(ChooseGemmTest, WarpsWithRolesTakeManyRowsOfAnExpert) {
  const DeviceFacts& h100 = kDevices[1];
  const Product experts[] = {kProducts[7], kProducts[8], kProducts[12], kProducts[13]};
  for (const Product& product : experts) {
    for (int32_t rows_of_expert : {1, 8, 64, 160, 512, 1536}) {
      const int32_t rows = rows_of_expert * product.num_groups;
      SCOPED_TRACE(testing::Message() << "n " << product.n << " rows " << rows);
      const bool many = rows_of_expert > 64;
      for (WeightFormat format : {WeightFormat::kBf16, WeightFormat::kE4m3}) {
        GemmParams params = ParamsOf(product, format, rows);
        const GemmPlan plan = ChooseGemm(params, h100);
        EXPECT_EQ(IsWide(plan), many);
        EXPECT_TRUE(!many || plan.num_blocks == h100.num_sms);
        EXPECT_FALSE(IsWide(ChooseGemm(params, kDevices[0])));
        EXPECT_FALSE(IsWide(ChooseGemm(params, kDevices[2])));
        params.x_row_stride += 4;  // rows of eight bytes
        EXPECT_FALSE(IsWide(ChooseGemm(params, h100)));
      }
      GemmParams fp8 = ParamsOf(product, WeightFormat::kE4m3, rows);
      fp8.atom = GemmAtom::kWgmmaFp8;
      fp8.x_row_stride = RoundedRowBytes(product.k, true);
      EXPECT_EQ(IsWide(ChooseGemm(fp8, h100)), many);
    }
  }
}

TEST(ChooseGemmTest, FewStripsKeepSmallerTiles) {
  const DeviceFacts& h100 = kDevices[1];
  // The router's product and q/kv, of a prompt.
  EXPECT_FALSE(IsWide(ChooseGemm(ParamsOf({64, 2048}, WeightFormat::kBf16, 8192), h100)));
  EXPECT_FALSE(IsWide(ChooseGemm(ParamsOf({3648, 2048}, WeightFormat::kBf16, 256), h100)));
  EXPECT_TRUE(IsWide(ChooseGemm(ParamsOf({3648, 2048}, WeightFormat::kBf16, 8192), h100)));
}

TEST(ChooseGemmTest, NoRowsNeedNoBlocks) {
  for (const DeviceFacts& device : kDevices) {
    EXPECT_EQ(ChooseGemm(ParamsOf({2048, 2048}, WeightFormat::kBf16, 0), device).num_blocks, 0);
  }
}

TEST(ChooseRowsTest, BlocksCoverEachRow) {
  const auto covers = [](const RowsPlan& plan, int32_t units) {
    ExpectBlock(plan.threads);
    EXPECT_GE(int64_t{plan.threads} * plan.blocks_per_row, units);
    EXPECT_LE(plan.blocks_per_row, kMostGridY);
  };
  for (int32_t width : kWidths) {
    SCOPED_TRACE(width);
    const int32_t vectors = (width + 7) / 8;
    covers(ChooseEmbed({.hidden = width}), vectors);
    covers(ChooseSiluMul({.width = width}), vectors);
    for (int32_t heads : {1, 16, 128}) {
      covers(ChooseRope({.num_heads = heads, .d = width}), heads * vectors);
    }
    for (Element type : {Element::kF32, Element::kBF16}) {
      GatherRowsParams params = {.x = kEven,
                                 .out = kEven,
                                 .type = type,
                                 .num_rows = 3,
                                 .width = width,
                                 .x_stride = width,
                                 .out_stride = width};
      const RowsPlan plan = ChooseGatherRows(params);
      covers(plan, plan.whole ? width * ElementBytes(type) / 16 : width);
      params.x = kOdd;
      EXPECT_FALSE(ChooseGatherRows(params).whole);
      covers(ChooseGatherRows(params), width);
    }
  }
}

TEST(ChooseRowsTest, ANormHasOneBlockARow) {
  for (int32_t width : kWidths) {
    const RmsNormParams params = {.num_tokens = 3, .hidden = width, .x_stride = width};
    const RowsPlan plan = ChooseRmsNorm(params);
    ExpectBlock(plan.threads);
    EXPECT_EQ(plan.blocks_per_row, 1);
    // The order of the sum is that of the threads: hidden alone decides it.
    RmsNormParams other = params;
    other.x = kOdd;
    other.num_tokens = 4096;
    other.x_stride = 3 * width + 1;
    other.out_type = Element::kF32;
    EXPECT_EQ(ChooseRmsNorm(other).threads, plan.threads);
  }
}

TEST(ChooseRowsTest, OnlyAlignedRowsAreMovedInVectors) {
  EmbedParams params = {.table = kEven,
                        .out = static_cast<float*>(kEven),
                        .num_tokens = 3,
                        .hidden = 64,
                        .table_stride = 64,
                        .out_stride = 64};
  EXPECT_TRUE(ChooseEmbed(params).whole);
  params.table_stride = 68;
  EXPECT_FALSE(ChooseEmbed(params).whole);
  params.table_stride = 64;
  params.table = kOdd;
  EXPECT_FALSE(ChooseEmbed(params).whole);
}

TEST(ChooseSampleTest, EveryRowHasABlock) {
  for (int32_t rows : {0, 1, 64, 1024}) {
    SampleTokensParams params;
    params.logits = static_cast<float*>(kEven);
    params.num_rows = rows;
    params.num_valid = 129280;
    params.max_top = 20;
    params.logits_stride = 129280;
    const SamplePlan plan = ChooseSampleTokens(params);
    ExpectBlock(plan.threads);
    EXPECT_EQ(plan.blocks, rows);
    EXPECT_LE(plan.smem_bytes, kDefaultSmem);
    EXPECT_TRUE(plan.whole);
    params.logits_stride = 129281;
    EXPECT_FALSE(ChooseSampleTokens(params).whole);
  }
}

}  // namespace
}  // namespace jevons::cuda

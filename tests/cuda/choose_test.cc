// How the kernels are started: the plans are pure, and a device of each kind can run them.
#include <cstdint>
#include <tuple>
#include <utility>

#include "cuda/gemm.h"
#include "cuda/mla.h"
#include "cuda/mla_store.h"
#include "cuda/round_rows.h"
#include "cuda/rows.h"
#include "cuda/sample.h"
#include "gtest/gtest.h"
#include "tests/cuda/plan_cases.h"

namespace jevons::cuda {
namespace {

const int32_t kWidths[] = {1, 7, 8, 64, 255, 576, 1408, 2048, 5120, 7168, 18432, 163840};
const int32_t kTokens[] = {1, 2, 7, 8, 9, 16, 33, 64, 65, 120, 256, 1000, 4096, 8192, 65536};

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
  return std::tie(p.atom, p.tile_tokens, p.warps_per_strip, p.num_blocks, p.resident_blocks,
                  p.smem_bytes);
}
auto Fields(const MlaPlan& p) {
  return std::tie(p.latent, p.keys, p.grid, p.smem_bytes, p.q_unit, p.cache_unit, p.wide,
                  p.out_pairs, p.entry_bytes, p.entry_scales, p.entry_keys, p.value_blocks);
}

// Calls `use` with each product, format, number of rows and device.
template <typename Use>
void ForEachGemm(const Use& use) {
  for (const DeviceFacts& device : kDevices) {
    for (const Product& product : kProducts) {
      for (WeightFormat format : {WeightFormat::kBf16, WeightFormat::kE4m3}) {
        for (int32_t rows : kTokens) {
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
    EXPECT_EQ(Fields(plan),
              Fields(PlanGemm(params, device, plan.tile_tokens, plan.warps_per_strip)));
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

TEST(ChooseGemmTest, NoRowsNeedNoBlocks) {
  for (const DeviceFacts& device : kDevices) {
    EXPECT_EQ(ChooseGemm(ParamsOf({2048, 2048}, WeightFormat::kBf16, 0), device).num_blocks, 0);
  }
}

MlaAttentionParams AttentionOf(int32_t latent, int32_t rope, int32_t num_heads,
                               int32_t num_tokens) {
  MlaAttentionParams p;
  p.q = static_cast<const device::Bf16*>(kEven);
  p.cache = p.q;
  p.out = static_cast<device::Bf16*>(kEven);
  p.num_tokens = num_tokens;
  p.num_seqs = 1;
  p.num_heads = num_heads;
  p.latent = latent;
  p.rope = rope;
  p.num_blocks = 1024;
  p.block_size = 64;
  p.max_blocks = 1024;
  p.q_head_stride = latent + rope;
  p.q_stride = num_heads * p.q_head_stride;
  p.out_head_stride = latent;
  p.out_stride = num_heads * p.out_head_stride;
  return p;
}

TEST(ChooseMlaAttentionTest, ATileFitsEveryDevice) {
  for (const DeviceFacts& device : kDevices) {
    for (const auto& [latent, rope] :
         {std::pair(512, 64), std::pair(24, 8), std::pair(64, 64), std::pair(65, 2)}) {
      for (int32_t heads : {1, 3, 16, 128}) {
        for (int32_t tokens : kTokens) {
          MlaAttentionParams params = AttentionOf(latent, rope, heads, tokens);
          params.num_slots = MlaNumSlots(heads, device);
          const MlaPlan bf16 = ChooseMlaAttention(params, device);
          params.entry = MlaEntry::kFp8;
          const MlaPlan fp8 = ChooseMlaAttention(params, device);
          // A device has the same tiles, and so the same sums, for both.
          EXPECT_EQ(fp8.keys, bf16.keys);
          EXPECT_EQ(Fields(fp8), Fields(ChooseMlaAttention(params, device)));
          for (const MlaPlan& plan : {bf16, fp8}) {
            EXPECT_GE(plan.latent, latent);
            EXPECT_GT(plan.smem_bytes, 0);
            EXPECT_LE(plan.smem_bytes, device.max_smem_bytes);
            EXPECT_TRUE(plan.keys == 32 || plan.keys == 64);
            EXPECT_EQ(plan.grid, device.num_sms);
          }
        }
      }
    }
  }
}

TEST(ChooseMlaAttentionTest, ModelAndDeviceAloneDecideWhetherRowsAreTakenTogether) {
  for (const DeviceFacts& device : kDevices) {
    for (const auto& [latent, rope] :
         {std::pair(512, 64), std::pair(512, 32), std::pair(256, 64)}) {
      for (int32_t heads : {16, 63, 64, 96, 128}) {
        for (MlaEntry entry : {MlaEntry::kBf16, MlaEntry::kFp8}) {
          for (int32_t tokens : kTokens) {
            MlaAttentionParams params = AttentionOf(latent, rope, heads, tokens);
            params.entry = entry;
            EXPECT_EQ(ChooseMlaAttention(params, device).wide,
                      device.sm == 90 && latent == 512 && rope == 64 && heads % 64 == 0);
          }
        }
      }
    }
  }
}

TEST(ChooseMlaAttentionTest, TotalsOfAllBlocksMustHavePlaces) {
  const DeviceFacts& device = kDevices[1];
  EXPECT_GE(MlaNumSlots(128, device), MlaNumSlots(16, device) + 4 * device.num_sms);
  MlaAttentionParams params = AttentionOf(512, 64, 128, 1);
  params.num_slots = 4 * device.num_sms - 1;
  EXPECT_EQ(LaunchMlaAttention(params, device, nullptr), cudaErrorInvalidValue);
}

TEST(ChooseMlaAttentionTest, NothingToDoNeedsNoBlocks) {
  EXPECT_EQ(ChooseMlaAttention(AttentionOf(512, 64, 16, 0), kDevices[1]).grid, 0);
  MlaAttentionParams params = AttentionOf(512, 64, 16, 4);
  params.num_seqs = 0;
  EXPECT_EQ(ChooseMlaAttention(params, kDevices[1]).grid, 0);
}

TEST(ChooseMlaAttentionTest, CopiesAreAsWideAsAddressesAllow) {
  MlaAttentionParams params = AttentionOf(512, 64, 16, 4);
  EXPECT_EQ(ChooseMlaAttention(params, kDevices[1]).q_unit, 16);
  EXPECT_EQ(ChooseMlaAttention(params, kDevices[1]).cache_unit, 16);
  EXPECT_TRUE(ChooseMlaAttention(params, kDevices[1]).out_pairs);
  params.q = static_cast<const device::Bf16*>(kOdd);
  params.q_stride += 2;
  params.out = static_cast<device::Bf16*>(kOdd);
  EXPECT_EQ(ChooseMlaAttention(params, kDevices[1]).q_unit, 2);
  EXPECT_FALSE(ChooseMlaAttention(params, kDevices[1]).out_pairs);
  params = AttentionOf(24, 10, 3, 4);
  EXPECT_EQ(ChooseMlaAttention(params, kDevices[1]).cache_unit, 4);
  // Entries are in units of 16 bytes whatever they hold; keys of q move to columns of their own.
  params.entry = MlaEntry::kFp8;
  EXPECT_EQ(ChooseMlaAttention(params, kDevices[1]).cache_unit, 16);
  params = AttentionOf(28, 4, 3, 4);
  EXPECT_EQ(ChooseMlaAttention(params, kDevices[1]).q_unit, 16);
  params.entry = MlaEntry::kFp8;
  EXPECT_EQ(ChooseMlaAttention(params, kDevices[1]).q_unit, 4);
}

TEST(ChooseMlaAttentionTest, ValuesOfFewTokensTakeHalfOfTheDeviceAtMost) {
  for (const DeviceFacts& device : kDevices) {
    for (const auto& [heads, units] : {std::pair(16, 32), std::pair(128, 256)}) {
      for (int32_t tokens : {1, 2, 8}) {
        MlaAttentionParams params = AttentionOf(512, 64, heads, tokens);
        EXPECT_EQ(ChooseMlaAttention(params, device).value_blocks, 0);
        params.values.weight = kEven;
        params.values.layout = {.n = 128, .k = 512};
        const MlaPlan plan = ChooseMlaAttention(params, device);
        EXPECT_EQ(plan.value_blocks, Min(units, device.num_sms / 2));
        EXPECT_LT(plan.value_blocks, plan.grid);
        params.num_tokens = 9;
        EXPECT_EQ(ChooseMlaAttention(params, device).value_blocks, 0);
        params.num_tokens = tokens;
        params.values.layout.format = WeightFormat::kE4m3;
        EXPECT_EQ(ChooseMlaAttention(params, device).value_blocks, 0);
      }
    }
  }
}

TEST(MlaWorkspaceTest, MoreNeverTakesLess) {
  int64_t before = 0;
  for (int32_t slots = 0; slots < 5000; slots = slots * 3 / 2 + 1) {
    const int64_t bytes = MlaWorkspaceBytes(512, slots);
    EXPECT_GE(bytes, before);
    // A maximum, a sum and the latent of 16 rows, and a counter.
    EXPECT_GE(bytes, slots * (int64_t{16} * (8 + 512 * 4) + 4));
    before = bytes;
    int64_t narrower = 0;
    for (int32_t latent : {1, 24, 64, 65, 256, 512}) {
      EXPECT_GE(MlaWorkspaceBytes(latent, slots), narrower);
      narrower = MlaWorkspaceBytes(latent, slots);
    }
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

TEST(ChooseMlaStoreTest, BlocksCoverTheTokens) {
  MlaStoreKvParams params;
  params.kv = static_cast<const device::Bf16*>(kEven);
  params.norm_weight = static_cast<const float*>(kEven);
  params.cache = static_cast<device::Bf16*>(kEven);
  params.latent = 512;
  params.rope = 64;
  params.kv_stride = 576;
  EXPECT_EQ(ChooseMlaStoreKv(params).grid, 0);
  int32_t before = 0;
  for (int32_t tokens : kTokens) {
    params.num_tokens = tokens;
    const MlaStorePlan plan = ChooseMlaStoreKv(params);
    EXPECT_GE(plan.grid, before);
    // A warp a token, and no block has more than 32.
    EXPECT_GE(int64_t{plan.grid} * 32, tokens);
    EXPECT_TRUE(plan.whole);
    before = plan.grid;
  }
  params.kv = static_cast<const device::Bf16*>(kOdd);
  EXPECT_FALSE(ChooseMlaStoreKv(params).whole);
}

}  // namespace
}  // namespace jevons::cuda

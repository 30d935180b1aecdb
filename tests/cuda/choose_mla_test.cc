// How the kernels of attention are started: the plans are pure, and a device of each kind can run them.
#include <cstdint>
#include <tuple>
#include <utility>

#include "cuda/mla.h"
#include "cuda/mla_store.h"
#include "gtest/gtest.h"
#include "tests/cuda/plan_cases.h"

namespace jevons::cuda {
namespace {

auto Fields(const MlaPlan& p) {
  return std::tie(p.latent, p.keys, p.grid, p.smem_bytes, p.q_unit, p.cache_unit, p.wide,
                  p.out_pairs, p.entry_bytes, p.entry_scales, p.entry_keys, p.value_blocks);
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
        for (int32_t tokens : kStepTokens) {
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
          for (int32_t tokens : kStepTokens) {
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
  for (int32_t tokens : kStepTokens) {
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

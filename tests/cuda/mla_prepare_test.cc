// How MlaPrepare is started: its plan is pure, a decoding step takes one launch, and what is wrong
// is refused.
#include "cuda/mla_prepare.h"

#include <cstdint>
#include <memory>
#include <vector>

#include "tests/cuda/backend_fixture.h"
#include "tests/cuda/plan_cases.h"

namespace jevons {
namespace {

using absl::StatusCode;
using cuda::ChooseMlaPrepare;
using cuda::DeviceFacts;
using cuda::kDevices;
using cuda::MlaPrepareParams;
using cuda::MlaPreparePlan;

// DeepSeek's widths; the addresses are never followed.
MlaPrepareParams ParamsOf(int32_t num_tokens, int32_t num_heads) {
  alignas(256) static char place[256];
  MlaPrepareParams p;
  p.store.kv = reinterpret_cast<const device::Bf16*>(place);
  p.store.norm_weight = reinterpret_cast<const float*>(place);
  p.store.cache = place;
  p.store.num_tokens = num_tokens;
  p.store.latent = 512;
  p.store.rope = 64;
  p.store.kv_stride = 576;
  p.product.layout = {.n = 512, .k = 128};
  p.product.num_groups = num_heads;
  p.product.x = place;
  p.product.x_row_stride = num_heads * int64_t{192};
  p.product.x_group_stride = 192;
  p.product.num_x_rows = num_tokens;
  p.product.num_rows = num_tokens;
  p.product.out = place;
  p.product.out_type = cuda::Element::kBF16;
  p.product.out_row_stride = num_heads * int64_t{576};
  p.product.out_group_stride = 576;
  p.rope.x = place;
  p.rope.cos_sin = p.store.norm_weight;
  p.rope.out = place;
  p.rope.num_tokens = num_tokens;
  p.rope.num_heads = num_heads;
  p.rope.d = 64;
  p.rope.x_stride = p.product.x_row_stride;
  p.rope.x_head_stride = 192;
  p.rope.out_stride = p.product.out_row_stride;
  p.rope.out_head_stride = 576;
  return p;
}

TEST(ChooseMlaPrepareTest, DecodingStepsTakeOneKernelWhoseBlocksAreAllResident) {
  for (const DeviceFacts& device : kDevices) {
    for (int32_t num_heads : {16, 128}) {
      for (int32_t num_tokens : {1, 2, 7, 8, 9, 32, 33, 64}) {
        SCOPED_TRACE(testing::Message()
                     << "sm_" << device.sm << " heads " << num_heads << " tokens " << num_tokens);
        const MlaPreparePlan plan = ChooseMlaPrepare(ParamsOf(num_tokens, num_heads), device);
        ASSERT_TRUE(plan.at_once);
        EXPECT_GE(plan.row_blocks, 0);
        EXPECT_GE(plan.product.num_blocks, 1);
        EXPECT_LE(plan.row_blocks + plan.product.num_blocks, plan.product.resident_blocks);
        EXPECT_LE(plan.product.tile_tokens, 64);
        EXPECT_LE(plan.product.smem_bytes, device.max_smem_bytes);
        EXPECT_TRUE(plan.store.whole);
        EXPECT_TRUE(plan.rope.whole);
        // Blocks without a part in the product are there for something.
        EXPECT_LE(plan.row_blocks, (num_tokens * (1 + num_heads * 8 / 32) + 7) / 8);
      }
    }
  }
}

TEST(ChooseMlaPrepareTest, LargeStepsAndOtherTypesTakeThree) {
  for (const DeviceFacts& device : kDevices) {
    EXPECT_FALSE(ChooseMlaPrepare(ParamsOf(0, 16), device).at_once);
    EXPECT_FALSE(ChooseMlaPrepare(ParamsOf(8192, 16), device).at_once);
    EXPECT_FALSE(ChooseMlaPrepare(ParamsOf(256, 128), device).at_once);
    MlaPrepareParams params = ParamsOf(1, 16);
    params.product.layout.format = cuda::WeightFormat::kE4m3;
    EXPECT_FALSE(ChooseMlaPrepare(params, device).at_once);
    params = ParamsOf(1, 16);
    params.product.out_type = params.rope.out_type = cuda::Element::kF32;
    EXPECT_FALSE(ChooseMlaPrepare(params, device).at_once);
  }
}

class MlaPrepareLaunchTest : public CudaBackendTest {
 protected:
  static constexpr int64_t kRope = 8;

  absl::Status Run(int64_t num_tokens, DType kv, const Weight* uk) {
    const int64_t n = uk->n();
    const DeviceTensor q = Normal(DType::kBF16, {num_tokens, 2, uk->k() + kRope});
    const DeviceTensor out = Normal(DType::kBF16, {num_tokens, 2, n + kRope});
    const DeviceTensor positions = Upload(IntTensor(std::vector<int32_t>(num_tokens, 1)));
    const DeviceTensor slots = Upload(TestTensor(DType::kI64, {num_tokens}));
    const DeviceTensor entries = Normal(kv, {num_tokens, n + kRope});
    const DeviceTensor norm = Normal(DType::kF32, {n});
    const DeviceTensor table = Normal(DType::kF32, {4, kRope});
    const DeviceTensor cache = Normal(DType::kBF16, {1, 8, n + kRope});
    const int64_t before = emu::NumCalls(emu::CallKind::kLaunch);
    const absl::Status status =
        backend_->MlaPrepare({.store = {entries.view, norm.view, 1e-6f, positions.view, table.view,
                                        slots.view, cache.view},
                              .q = q.view,
                              .uk = uk,
                              .out = out.view});
    num_launches_ = emu::NumCalls(emu::CallKind::kLaunch) - before;
    return status;
  }

  int64_t num_launches_ = 0;
};

TEST_F(MlaPrepareLaunchTest, AFewTokensTakeOneLaunchAndManyThree) {
  const auto uk = Pack(*backend_, {{24}, {24}}, 16);
  for (int64_t num_tokens : {1, 8}) {
    ASSERT_TRUE(Run(num_tokens, DType::kBF16, uk.get()).ok());
    EXPECT_EQ(num_launches_, 1);
  }
  ASSERT_TRUE(Run(300, DType::kBF16, uk.get()).ok());
  EXPECT_EQ(num_launches_, 3);
}

TEST_F(MlaPrepareLaunchTest, WhatIsNotItsOwnIsRefusedAndNothingIsLaunched) {
  const std::unique_ptr<Backend> cpu = CreateReferenceBackend();
  const auto foreign = Pack(*cpu, {{24}, {24}}, 16);
  ExpectError(Run(2, DType::kBF16, foreign.get()), StatusCode::kInvalidArgument,
              {"MlaPrepare", "packed by the CUDA backend"});
  EXPECT_EQ(num_launches_, 0);
  const auto uk = Pack(*backend_, {{24}, {24}}, 16);
  ExpectError(Run(2, DType::kF32, uk.get()), StatusCode::kInvalidArgument,
              {"MlaStoreKv", "kv must be bf16", "f32 [2, 32]"});
  EXPECT_EQ(num_launches_, 0);
}

}  // namespace
}  // namespace jevons

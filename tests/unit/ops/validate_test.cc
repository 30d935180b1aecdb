#include "tests/unit/ops/validate_fixture.h"

namespace jevons {
namespace {

TEST(ValidateTest, RmsNormNamesTheArgumentWhatWasWantedAndWhatWasGiven) {
  RmsNormArgs args = {F32({2, 8}), {}, F32({8}), 1e-6f, F32({2, 8})};
  EXPECT_TRUE(Validate(args).ok());
  args.weight = F32({7});
  ExpectRefused(Validate(args), "RmsNorm: weight must be f32 [8], got f32 [7]");
  args.weight = TensorView(storage, DType::kBF16, {8});
  ExpectRefused(Validate(args), "RmsNorm: weight must be f32 [8], got bf16 [8]");
  args.weight = {};
  ExpectRefused(Validate(args), "RmsNorm: weight must be f32 [8], got nothing");
  args.weight = F32({8});
  args.delta = F32({1, 8});
  ExpectRefused(Validate(args), "RmsNorm: delta must be f32 [2, 8], got f32 [1, 8]");
  args.delta = {};
  args.out.stride[0] = 7;
  ExpectRefused(Validate(args),
                "RmsNorm: out must be laid out without overlap, got f32 [2, 8] with row stride 7");
  args.out = F32({2, 8});
  args.eps = -1;
  ExpectRefused(Validate(args), "RmsNorm: eps must be in [0, 1), got -1");
}

TEST(ValidateTest, StridedRowsAreFineWhereTheContractSaysSo) {
  RmsNormArgs args = {F32({2, 8}), {}, F32({8}), 1e-6f, F32({2, 8})};
  args.x.stride[0] = 20;
  args.out.stride[0] = 9;
  EXPECT_TRUE(Validate(args).ok());
}

TEST(ValidateTest, NoTokensNeedNoMemory) {
  RmsNormArgs args = {F32({0, 8}), {}, F32({8}), 1e-6f, F32({0, 8})};
  args.x.data = nullptr;
  args.out.data = nullptr;
  EXPECT_TRUE(Validate(args).ok());
}

TEST(ValidateTest, SiluMulNeedsAnEvenWidth) {
  EXPECT_TRUE(Validate(SiluMulArgs{F32({2, 8}), F32({2, 4})}).ok());
  ExpectRefused(Validate(SiluMulArgs{F32({2, 7}), F32({2, 3})}),
                "SiluMul: gate_up must have an even width, got 7");
}

TEST(ValidateTest, RopePositionsLieInTheTable) {
  std::vector<int32_t> positions = {0, 5};
  const RopeArgs args = {F32({2, 3, 4}), I32(positions), F32({6, 4}), F32({2, 3, 4})};
  EXPECT_TRUE(Validate(args).ok());
  positions[1] = 6;
  ExpectRefused(Validate(args), "Rope: positions[1] must be in [0, 5], got 6");
  positions[1] = -1;
  ExpectRefused(Validate(args), "Rope: positions[1] must be in [0, 5], got -1");
}

TEST(ValidateTest, EmbedLeavesIdsToTheOp) {
  std::vector<int32_t> ids = {-1, 1000};
  EXPECT_TRUE(Validate(EmbedArgs{I32(ids), F32({4, 8}), F32({2, 8})}).ok());
  const TensorView table(storage, DType::kI32, {4, 8});
  ExpectRefused(Validate(EmbedArgs{I32(ids), table, F32({2, 8})}),
                "Embed: table must be f32, f16 or bf16");
  EmbedArgs fed = {I32(ids), F32({4, 8}), F32({2, 8}), I32(ids)};
  EXPECT_TRUE(Validate(fed).ok());
  fed.drawn = F32({2});
  ExpectRefused(Validate(fed), "Embed: drawn must be i32 [*], got f32 [2]");
}

TEST(ValidateTest, GatherRowsStaysInItsSource) {
  std::vector<int32_t> rows = {0, 3};
  const GatherRowsArgs args = {F32({3, 8}), I32(rows), F32({2, 8})};
  ExpectRefused(Validate(args), "GatherRows: row_idx[1] must be in [-1, 2], got 3");
}

TEST(ValidateTest, LinearNeedsOneGroupAndMatchingSizes) {
  const FakeWeight weight(1, 16, 8);
  const FakeWeight two(2, 16, 8);
  EXPECT_TRUE(Validate(LinearArgs{F32({3, 8}), &weight, F32({16}), F32({3, 16})}).ok());
  ExpectRefused(Validate(LinearArgs{F32({3, 8}), nullptr, {}, F32({3, 16})}),
                "Linear: weight must be given, got nothing");
  ExpectRefused(Validate(LinearArgs{F32({3, 8}), &two, {}, F32({3, 16})}),
                "Linear: weight groups must be in [1, 1], got 2");
  ExpectRefused(Validate(LinearArgs{F32({3, 9}), &weight, {}, F32({3, 16})}),
                "Linear: x must be f32 [*, 8], got f32 [3, 9]");
  ExpectRefused(Validate(LinearArgs{F32({3, 8}), &weight, {}, F32({2, 16})}),
                "Linear: out must be f32 [3, 16], got f32 [2, 16]");
}

TEST(ValidateTest, HeadLinearNeedsAHeadForEachGroup) {
  const FakeWeight weight(2, 5, 8);
  EXPECT_TRUE(Validate(HeadLinearArgs{F32({3, 2, 8}), &weight, F32({3, 2, 5})}).ok());
  ExpectRefused(Validate(HeadLinearArgs{F32({3, 1, 8}), &weight, F32({3, 2, 5})}),
                "HeadLinear: x must be f32 [*, 2, 8], got f32 [3, 1, 8]");
}

TEST(ValidateTest, GroupedGemmRowsAscendAndPointIntoX) {
  const FakeWeight weight(2, 4, 8);
  std::vector<int32_t> cu = {0, 1, 3};
  std::vector<int32_t> idx = {4, 0, 1};
  const GroupedGemmArgs args = {F32({5, 8}), I32(cu), I32(idx), &weight, F32({3, 4})};
  EXPECT_TRUE(Validate(args).ok());
  idx[2] = 5;
  ExpectRefused(Validate(args), "GroupedGemm: row_idx[2] must be in [0, 4], got 5");
  cu = {0, 1, 2};
  EXPECT_TRUE(Validate(args).ok()) << "rows past the last group are not looked at";
  cu = {0, 3, 2};
  ExpectRefused(Validate(args), "GroupedGemm: cu_rows[2] must be in [3, 3], got 2");
  cu = {1, 1, 2};
  ExpectRefused(Validate(args), "GroupedGemm: cu_rows[0] must be in [0, 0], got 1");
}

TEST(ValidateTest, MlaStoreKvSlotsLieInTheCache) {
  std::vector<int32_t> positions = {0, 1};
  std::vector<int64_t> slots = {0, 11};
  MlaStoreKvArgs args;
  args.kv = F32({2, 10});
  args.norm_weight = F32({6});
  args.eps = 1e-6f;
  args.positions = I32(positions);
  args.cos_sin = F32({4, 4});
  args.slot_mapping = TensorView(slots.data(), DType::kI64, {2});
  args.cache = F32({3, 4, 10});
  EXPECT_TRUE(Validate(args).ok());
  slots[1] = 12;
  ExpectRefused(Validate(args), "MlaStoreKv: slot_mapping[1] must be in [0, 11], got 12");
  slots[1] = -1;
  ExpectRefused(Validate(args), "MlaStoreKv: slot_mapping[1] must be in [0, 11], got -1");
}

TEST(ValidateTest, MlaPrepareNeedsQueriesOfItsTokensAndHeads) {
  const FakeWeight uk(2, 6, 8);
  std::vector<int32_t> positions = {0, 1, 2};
  std::vector<int64_t> slots = {0, 1, 11};
  MlaPrepareArgs args;
  args.store = {F32({3, 10}),   F32({6}),    1e-6f,
                I32(positions), F32({4, 4}), TensorView(slots.data(), DType::kI64, {3}),
                F32({3, 4, 10})};
  args.q = F32({3, 2, 12});
  args.uk = &uk;
  args.out = F32({3, 2, 10});
  EXPECT_TRUE(Validate(args).ok()) << Validate(args);
  args.q = F32({2, 2, 12});
  ExpectRefused(Validate(args), "MlaPrepare: q must be f32 [3, 2, 12], got f32 [2, 2, 12]");
  args.q = F32({3, 2, 11});
  ExpectRefused(Validate(args), "MlaPrepare: q must be f32 [3, 2, 12], got f32 [3, 2, 11]");
  args.q = F32({3, 2, 12});
  args.out = F32({3, 2, 9});
  ExpectRefused(Validate(args), "MlaPrepare: out must be f32 [3, 2, 10], got f32 [3, 2, 9]");
  const FakeWeight narrow(2, 5, 8);
  args.uk = &narrow;
  ExpectRefused(Validate(args), "MlaPrepare: uk rows must be in [6, 6], got 5");
  args.uk = nullptr;
  ExpectRefused(Validate(args), "MlaPrepare: weight must be given, got nothing");
  slots[2] = 12;
  ExpectRefused(Validate(args), "MlaStoreKv: slot_mapping[2] must be in [0, 11], got 12");
}

TEST(ValidateTest, MlaValuesNeedAWeightForEachHeadAndLatent) {
  std::vector<int32_t> ints = {0, 1};
  const FakeWeight uv(2, 5, 6);
  MlaValuesArgs args;
  args.attention = {F32({1, 2, 10}),
                    F32({3, 4, 10}),
                    TensorView(ints.data(), DType::kI32, {1, 1}),
                    I32(ints),
                    TensorView(&ints[1], DType::kI32, {1}),
                    0.5f,
                    F32({1, 2, 6})};
  args.uv = &uv;
  args.out = F32({1, 2, 5});
  EXPECT_TRUE(Validate(args).ok()) << Validate(args);
  args.out = F32({1, 2, 6});
  ExpectRefused(Validate(args), "MlaValues: out must be f32 [1, 2, 5], got f32 [1, 2, 6]");
  args.out = F32({1, 2, 5});
  const FakeWeight one_head(1, 5, 6);
  args.uv = &one_head;
  ExpectRefused(Validate(args), "MlaValues: uv groups must be in [2, 2], got 1");
  const FakeWeight narrow(2, 5, 7);
  args.uv = &narrow;
  ExpectRefused(Validate(args), "MlaValues: uv columns must be in [6, 6], got 7");
  args.uv = nullptr;
  ExpectRefused(Validate(args), "MlaValues: weight must be given, got nothing");
}

TEST(ValidateTest, LinearAndNormNormsWhatItGives) {
  const FakeWeight weight(1, 6, 8);
  LinearAndNormArgs args;
  args.linear = {F32({3, 8}), &weight, {}, F32({3, 6})};
  args.norm = {args.linear.out.Columns(0, 4), {}, F32({4}), 1e-6f, F32({3, 4})};
  EXPECT_TRUE(Validate(args).ok()) << Validate(args);
  const char* const refusal =
      "LinearAndNorm: norm.x must be the first columns of linear.out, without a delta";
  args.norm.x = F32({3, 4});
  ExpectRefused(Validate(args), refusal);
  args.norm.x = args.linear.out.Columns(0, 4);
  args.norm.delta = F32({3, 4});
  ExpectRefused(Validate(args), refusal);
}

TEST(ValidateTest, ACacheOfBytesHasFp8Entries) {
  alignas(16) static uint8_t place[32];
  std::vector<int32_t> ints = {0, 1};
  MlaAttentionArgs args;
  args.q = F32({1, 2, 576});
  args.cache = TensorView(place, DType::kU8, {3, 4, 656});
  args.block_tables = TensorView(ints.data(), DType::kI32, {1, 1});
  args.cu_seqlens_q = I32(ints);
  args.context_lens = TensorView(&ints[1], DType::kI32, {1});
  args.out = F32({1, 2, 512});
  EXPECT_TRUE(Validate(args).ok()) << Validate(args);
  EXPECT_TRUE(Validate(args, {.kv_cache = DType::kBF16}).ok());
  args.cache = TensorView(place, DType::kU8, {3, 4, 576});
  ExpectRefused(Validate(args), "MlaAttention: cache must be u8 [*, *, 656], got u8 [3, 4, 576]");
  args.cache = TensorView(place + 8, DType::kU8, {3, 4, 656});
  ExpectRefused(Validate(args), "MlaAttention: a cache of FP8 entries must be aligned to 16 bytes");
  args.cache = TensorView(place, DType::kBF16, {3, 4, 576});
  ExpectRefused(Validate(args),
                "MlaAttention: cache must be f32 [*, *, 576], got bf16 [3, 4, 576]");
}

TEST(ValidateTest, MlaAttentionChecksEveryIndexThatItWouldRead) {
  std::vector<int32_t> table = {0, 2, 1, 0};
  std::vector<int32_t> cu = {0, 1, 3};
  std::vector<int32_t> contexts = {5, 2};
  MlaAttentionArgs args;
  args.q = F32({3, 2, 10});
  args.cache = F32({3, 4, 10});
  args.block_tables = TensorView(table.data(), DType::kI32, {2, 2});
  args.cu_seqlens_q = I32(cu);
  args.context_lens = I32(contexts);
  args.scale = 1;
  args.out = F32({3, 2, 6});
  EXPECT_TRUE(Validate(args).ok());
  table[1] = 3;
  ExpectRefused(Validate(args), "MlaAttention: block_tables[0] must be in [0, 2], got 3");
  table[1] = 2;
  table[3] = -9;
  EXPECT_TRUE(Validate(args).ok()) << "a block past the context is not read";
  contexts[0] = 9;
  ExpectRefused(Validate(args), "MlaAttention: context_lens[0] must be in [1, 8], got 9");
  contexts = {5, 1};
  ExpectRefused(Validate(args), "MlaAttention: context_lens[1] must be in [2, 8], got 1");
  contexts = {5, 2};
  cu[2] = 2;
  ExpectRefused(Validate(args), "MlaAttention: cu_seqlens_q[2] must be in [3, 3], got 2");
  cu[2] = 3;
  args.out = F32({3, 2, 11});
  ExpectRefused(Validate(args), "MlaAttention: out width must be in [1, 10], got 11");
}

TEST(ValidateTest, WeightPartsMustFitTogether) {
  WeightSpec spec;
  ExpectRefused(Validate(spec), "PackWeight: groups must hold at least one part, got none");
  spec.groups = {{{F32({2, 8}), {}}, {F32({1, 8}), {}}}, {{F32({3, 8}), {}}}};
  EXPECT_TRUE(Validate(spec).ok());
  spec.groups[1][0].data = F32({4, 8});
  ExpectRefused(Validate(spec), "PackWeight: group 1 must have 3 rows as group 0 has, got 4");
  spec.groups[1][0].data = F32({3, 7});
  ExpectRefused(Validate(spec),
                "PackWeight: group 1 part 0: data must be f32 [*, 8], got f32 [3, 7]");
  spec.groups[1][0].data = TensorView(storage, DType::kF8E4M3, {3, 8});
  ExpectRefused(Validate(spec),
                "PackWeight: group 1 part 0: scale must be f32 [1, 1], got nothing");
  spec.groups[1][0].scale = F32({1, 1});
  EXPECT_TRUE(Validate(spec).ok());
  spec.groups[1][0].data = F32({3, 8});
  ExpectRefused(Validate(spec),
                "PackWeight: group 1 part 0: scale must be absent where data is not f8_e4m3");
  spec.groups[1][0] = {TensorView(storage, DType::kI32, {3, 8}), {}};
  ExpectRefused(
      Validate(spec),
      "PackWeight: group 1 part 0: data must be f32, f16, bf16 or f8_e4m3, got i32 [3, 8]");
  spec.groups = {{{TensorView(storage, DType::kF8E4M3, {3, 8}), F32({1, 1})}}};
  spec.input = ActivationPrecision::kFp8;
  EXPECT_TRUE(Validate(spec).ok());
  spec.groups[0].push_back({F32({3, 8}), {}});
  ExpectRefused(Validate(spec),
                "PackWeight: group 0 part 1: data must be f8_e4m3 where the input is fp8");
}

TEST(ValidateTest, GroupsOfOneWeightReadTheSame) {
  const FakeWeight exact(1, 3, 8);
  const FakeWeight rounds(1, 3, 8, WeightUse::kPlain, ActivationPrecision::kFp8);
  const std::vector<PackedGroup> alike = {{&rounds, 0}, {&rounds, 0}};
  EXPECT_TRUE(Validate(std::span<const PackedGroup>(alike)).ok());
  const std::vector<PackedGroup> unlike = {{&exact, 0}, {&rounds, 0}};
  ExpectRefused(Validate(std::span<const PackedGroup>(unlike)),
                "JoinGroups: group 1 must have the input exact as group 0 has, got fp8");
}

}  // namespace
}  // namespace jevons

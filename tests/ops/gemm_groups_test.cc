// Matrix products by group: each row as a product of its own group would have it.
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "tests/ops/gemm_fixture.h"

namespace jevons {
namespace {

// Groups of a grouped product, which share one x.
void FillGroups(const std::vector<int32_t>& sizes, int64_t num_tokens, Random& random,
                std::vector<int32_t>* cu_rows, std::vector<int32_t>* row_idx) {
  *cu_rows = {0};
  for (int32_t size : sizes) cu_rows->push_back(cu_rows->back() + size);
  for (int32_t i = 0; i < cu_rows->back(); ++i) {
    row_idx->push_back(static_cast<int32_t>(random.Below(num_tokens)));
  }
}

TEST_F(GemmTest, GroupedRowsEqualLinearRowsOfTheirGroup) {
  // The last case has more rows than are packed at once.
  const std::vector<std::pair<std::vector<int32_t>, Shape>> cases = {
      {{0, 1, 0, 13, 2, 0}, {33, 257}},
      {{0, 0}, {5, 7}},
      {{40, 0, 12}, {200, 40}},
      {{600, 1, 700, 600}, {3, 10944}}};
  constexpr int64_t kTokens = 20;
  for (const auto& [sizes, shape] : cases) {
    Random random(kSeed + 8);
    std::vector<std::vector<Stored>> groups;
    for (size_t g = 0; g < sizes.size(); ++g) {
      groups.push_back({RandomStored(DType::kBF16, shape.n, shape.k, random)});
    }
    const auto weight = Pack(groups);
    std::vector<float> x = NormalFloats(kTokens * shape.k, random);
    std::vector<int32_t> cu_rows;
    std::vector<int32_t> row_idx;
    FillGroups(sizes, kTokens, random, &cu_rows, &row_idx);
    const int64_t num_rows = cu_rows.back();
    std::vector<float> out((num_rows + 1) * shape.n, -7.0f);

    GroupedGemmArgs args;
    args.x = TensorView(x.data(), DType::kF32, {kTokens, shape.k});
    args.cu_rows = TensorView(cu_rows.data(), DType::kI32, {static_cast<int64_t>(cu_rows.size())});
    row_idx.push_back(-1);
    args.row_idx = TensorView(row_idx.data(), DType::kI32, {num_rows + 1});
    args.weight = weight.get();
    args.out = TensorView(out.data(), DType::kF32, {num_rows + 1, shape.n});
    ASSERT_TRUE(two_threads_->GroupedGemm(args).ok());

    for (size_t g = 0; g < sizes.size(); ++g) {
      const auto own = PackOne(groups[g][0]);
      const std::vector<float> expected = RunLinear(*one_thread_, *own, x.data(), kTokens);
      for (int64_t r = cu_rows[g]; r < cu_rows[g + 1]; ++r) {
        const float* want = &expected[row_idx[r] * shape.n];
        ASSERT_EQ(std::memcmp(&out[r * shape.n], want, shape.n * 4), 0) << "row " << r;
      }
    }
    for (int64_t j = 0; j < shape.n; ++j) ASSERT_EQ(out[num_rows * shape.n + j], -7.0f);
  }
}

TEST_F(GemmTest, JoinedGroupsGiveTheBitsOfTheWeightsThatTheyAreOf) {
  constexpr Shape kShape = {33, 150};
  for (DType dtype : kWeightTypes) {
    SCOPED_TRACE(DTypeName(dtype));
    Random random(kSeed + 10);
    std::vector<std::vector<Stored>> stored;
    for (int g = 0; g < 5; ++g) stored.push_back({RandomStored(dtype, kShape.n, kShape.k, random)});
    std::vector<std::vector<Stored>> of_a(stored.begin(), stored.begin() + 3);
    std::vector<std::vector<Stored>> of_b(stored.begin() + 3, stored.end());
    const auto a = Pack(of_a);
    const auto b = Pack(of_b);
    const std::vector<int> order = {4, 2, 0, 3, 2};
    std::vector<PackedGroup> groups;
    for (int g : order)
      groups.push_back(g < 3 ? PackedGroup{a.get(), g} : PackedGroup{b.get(), g - 3});
    const auto joined = two_threads_->JoinGroups(groups);
    ASSERT_TRUE(joined.ok()) << joined.status();

    const std::vector<float> row = NormalFloats(kShape.k, random);
    std::vector<float> x;
    std::vector<int32_t> cu_rows = {0};
    for (size_t g = 0; g < order.size(); ++g) {
      x.insert(x.end(), row.begin(), row.end());
      cu_rows.push_back(static_cast<int32_t>(g) + 1);
    }
    std::vector<float> out(order.size() * kShape.n, NAN);
    GroupedGemmArgs args;
    args.x = TensorView(x.data(), DType::kF32, {5, kShape.k});
    args.cu_rows = TensorView(cu_rows.data(), DType::kI32, {6});
    args.weight = joined->get();
    args.out = TensorView(out.data(), DType::kF32, {5, kShape.n});
    ASSERT_TRUE(one_thread_->GroupedGemm(args).ok());
    for (size_t g = 0; g < order.size(); ++g) {
      const auto own = PackOne(stored[order[g]][0]);
      const std::vector<float> want = RunLinear(*one_thread_, *own, row.data(), 1);
      ASSERT_EQ(std::memcmp(&out[g * kShape.n], want.data(), kShape.n * 4), 0) << "group " << g;
    }
  }
}

TEST_F(GemmTest, JoinGroupsRefusesWhatDoesNotFitTogether) {
  Random random(kSeed + 11);
  const auto a = PackOne(RandomStored(DType::kBF16, 32, 128, random));
  const auto wider = PackOne(RandomStored(DType::kBF16, 32, 256, random));
  const auto f8 = PackOne(RandomStored(DType::kF8E4M3, 32, 128, random));
  Stored stored = RandomStored(DType::kBF16, 32, 128, random);
  const auto foreign = CreateReferenceBackend()->PackWeight({{{stored.Part()}}});
  const auto code = [&](std::vector<PackedGroup> groups) {
    return one_thread_->JoinGroups(groups).status().code();
  };
  EXPECT_EQ(code({{a.get(), 0}}), absl::StatusCode::kOk);
  EXPECT_EQ(code({}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{a.get(), 1}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{a.get(), 0}, {wider.get(), 0}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{a.get(), 0}, {f8.get(), 0}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{a.get(), 0}, {foreign->get(), 0}}), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace jevons

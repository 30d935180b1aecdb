// Products of many rows of a group, which on sm_90 have a kernel of their own (cuda/gemm_wide.h): there
// a row has the bits that it has alone, where another kernel takes it.
#include <cstring>
#include <string>
#include <vector>

#include "tests/support/test_weight.h"

namespace jevons {
namespace {

// So large that ChooseGemm takes that kernel, on a device and on the emulated one: ChooseGemmTest.
#ifdef JEVONS_TEST_DEVICE
const std::vector<int32_t> kRows(8, 200);
constexpr int64_t kN = 2816;
constexpr int64_t kK = 512;
#else
const std::vector<int32_t> kRows = {70, 0, 130};
constexpr int64_t kN = 384;
constexpr int64_t kK = 296;
#endif
constexpr int64_t kTokens = 100;

class ManyRowsTest : public OpTest {
 protected:
  // Rows of tokens by groups as cu_rows says.
  TestTensor Run(const Weight& weight, const TestTensor& x, std::vector<int32_t> cu_rows,
                 std::vector<int32_t> tokens) {
    const TestTensor cu = IntTensor(std::move(cu_rows));
    const TestTensor idx = IntTensor(std::move(tokens));
    TestTensor out(DType::kF32, {idx.size(), kN});
    EXPECT_TRUE(
        one_thread_->GroupedGemm({x.view(), cu.view(), idx.view(), &weight, out.view()}).ok());
    return out;
  }

  void ExpectRowsAsAlone(const TestWeight& stored) {
    Random random(kOpTestSeed + 1);
    const TestTensor x = NormalTensor(random, {kTokens, kK});
    const auto weight = stored.Pack(*one_thread_);
    std::vector<int32_t> cu = {0};
    for (int32_t rows : kRows) cu.push_back(cu.back() + rows);
    std::vector<int32_t> tokens(cu.back());
    for (int32_t& token : tokens) token = static_cast<int32_t>(random.Below(kTokens));
    const TestTensor all = Run(*weight, x, cu, tokens);
    for (size_t g = 0; g < kRows.size(); ++g) {
      if (kRows[g] == 0) continue;
      for (int32_t r : {cu[g], cu[g] + kRows[g] / 2, cu[g + 1] - 1}) {
        std::vector<int32_t> alone(kRows.size() + 1, 0);
        std::fill(alone.begin() + static_cast<int64_t>(g) + 1, alone.end(), 1);
        const TestTensor row = Run(*weight, x, alone, {tokens[r]});
        for (int64_t i = 0; i < kN; ++i) {
          ASSERT_EQ(all.Value(r * kN + i), row.Value(i)) << "row " << r << " column " << i;
        }
      }
    }
  }
};

TEST_F(ManyRowsTest, ARowHasTheBitsThatItHasAlone) {
  for (DType dtype : {DType::kBF16, DType::kF8E4M3}) {
    SCOPED_TRACE(DTypeName(dtype));
    Random random(kOpTestSeed);
    ExpectRowsAsAlone(TestWeight(random, dtype, static_cast<int64_t>(kRows.size()), {kN}, kK));
  }
}

TEST_F(ManyRowsTest, ARowOfFp8HasTheBitsThatItHasAlone) {
  Random random(kOpTestSeed);
  TestWeight weight(random, DType::kF8E4M3, static_cast<int64_t>(kRows.size()), {kN}, kK);
  ExpectRowsAsAlone(weight.RoundInput(ActivationPrecision::kFp8));
}

}  // namespace
}  // namespace jevons

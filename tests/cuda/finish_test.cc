// FinishExperts in the types of a step, where it may be one kernel: the bits of its ops.
#include <utility>

#include "absl/functional/function_ref.h"
#include "tests/cuda/backend_fixture.h"

namespace jevons {
namespace {

constexpr int64_t kExperts = 5;
constexpr int64_t kTopK = 3;

struct FinishCase {
  int64_t num_tokens;
  int64_t hidden;
  int64_t k;
};

class FinishTest : public CudaBackendTest {
 protected:
  std::unique_ptr<Weight> Groups(const StoredAs& stored, int64_t num_groups, int64_t n, int64_t k) {
    const DType dtype = stored.dtype;
    std::vector<TestTensor> tensors;
    tensors.reserve(2 * num_groups);
    WeightSpec spec;
    spec.input = stored.input;
    for (int64_t e = 0; e < num_groups; ++e) {
      WeightPart part;
      part.data =
          tensors.emplace_back(dtype, std::vector<int64_t>{n, k}).FillNormal(random_).view();
      if (dtype == DType::kF8E4M3) {
        const std::vector<int64_t> blocks = {(n + 127) / 128, (k + 127) / 128};
        part.scale = tensors.emplace_back(DType::kF32, blocks).FillNormal(random_, 0.01).view();
      }
      spec.groups.push_back({part});
    }
    auto weight = backend_->PackWeight(spec);
    EXPECT_TRUE(weight.ok()) << weight.status();
    return *std::move(weight);
  }

  // What stands in x and in norm.out after `ops`, from the same start each time.
  using Ops = absl::FunctionRef<absl::Status(const GroupedGemmArgs&, const CombineAndNormArgs&)>;
  std::pair<std::vector<uint8_t>, std::vector<uint8_t>> Run(const FinishCase& c,
                                                            const StoredAs& stored, Ops ops) {
    random_ = Random(kOpTestSeed);
    const auto weight = Groups(stored, kExperts, c.hidden, c.k);
    const int64_t num_rows = c.num_tokens * kTopK;
    const DeviceTensor act = Normal(DType::kBF16, {num_rows, c.k});
    const DeviceTensor rows = Normal(DType::kBF16, {num_rows, c.hidden});
    const DeviceTensor weights = Normal(DType::kF32, {c.num_tokens, kTopK});
    const DeviceTensor x = Normal(DType::kF32, {c.num_tokens, c.hidden});
    const DeviceTensor sum = Normal(DType::kF32, {c.num_tokens, c.hidden});
    const DeviceTensor norm = Normal(DType::kF32, {c.hidden});
    const DeviceTensor out = Normal(DType::kBF16, {c.num_tokens, c.hidden});
    // Rows of the first, of two others, and of none; one choice has none either.
    const auto n = static_cast<int32_t>(num_rows);
    const DeviceTensor cu = Upload(IntTensor({0, n / 3, n / 3, n - n / 3, n, n}));
    TestTensor token_row(DType::kI32, {c.num_tokens, kTopK});
    for (int32_t i = 0; i < n; ++i) token_row.at<int32_t>(i) = i == 1 ? -1 : n - 1 - i;
    const DeviceTensor token_rows = Upload(token_row);
    const absl::Status status =
        ops({act.view, cu.view, {}, weight.get(), rows.view},
            {.combine = {rows.view, {{}, {}, token_rows.view}, weights.view, {}, sum.view},
             .norm = {x.view, sum.view, norm.view, 1e-6f, out.view}});
    EXPECT_TRUE(status.ok()) << status;
    return {ReadBack(x.view), ReadBack(out.view)};
  }
};

TEST_F(FinishTest, HasTheBitsOfItsOps) {
  // All but the last are one kernel. 4112 columns are more than the norm's threads have a vector
  // of, 72 are fewer than the product's block has threads for.
  const FinishCase cases[] = {
      {1, 64, 16}, {1, 72, 600}, {4, 264, 70}, {1, 4112, 65}, {30, 280, 64}};
  for (const FinishCase& c : cases) {
    for (const StoredAs& stored : kStoredAs) {
      SCOPED_TRACE(testing::Message()
                   << c.num_tokens << " of " << c.hidden << " " << stored.name());
      const auto at_once = Run(c, stored, [&](const auto& down, const auto& end) {
        return backend_->FinishExperts(down, end);
      });
      const auto apart = Run(c, stored, [&](const auto& down, const auto& end) -> absl::Status {
        RETURN_IF_ERROR(backend_->GroupedGemm(down));
        RETURN_IF_ERROR(backend_->ExpertCombine(end.combine));
        return backend_->RmsNorm(end.norm);
      });
      EXPECT_TRUE(at_once.first == apart.first);
      EXPECT_TRUE(at_once.second == apart.second);
    }
  }
}

// V3's low-rank query has some of the columns. The last step is two kernels.
TEST_F(FinishTest, ALinearWithANormHasTheBitsOfItsTwoOps) {
  struct Case {
    int64_t num_tokens, n, k, width;
    StoredAs stored = kStoredAs[0];
  };
  for (const Case& c : {Case{1, 64, 16, 64}, Case{1, 200, 600, 72}, Case{4, 264, 70, 264},
                        Case{5, 90, 64, 33}, Case{40, 280, 64, 280},
                        Case{5, 90, 300, 33, kStoredAs[2]}, Case{40, 280, 64, 280, kStoredAs[2]}}) {
    SCOPED_TRACE(testing::Message() << c.num_tokens << " of " << c.width << " of " << c.n);
    const auto weight = Groups(c.stored, 1, c.n, c.k);
    const DeviceTensor x = Normal(DType::kBF16, {c.num_tokens, c.k});
    const DeviceTensor bias = Normal(DType::kF32, {c.n});
    const DeviceTensor norm = Normal(DType::kF32, {c.width});
    const auto run = [&](bool at_once) {
      const DeviceTensor given = Upload(TestTensor(DType::kBF16, {c.num_tokens, c.n}));
      const DeviceTensor out = Upload(TestTensor(DType::kBF16, {c.num_tokens, c.width}));
      const LinearAndNormArgs args = {
          .linear = {x.view, weight.get(), bias.view, given.view},
          .norm = {given.view.Columns(0, c.width), {}, norm.view, 1e-6f, out.view}};
      const int64_t before = emu::NumCalls(emu::CallKind::kExecution);
      absl::Status status = at_once ? backend_->LinearAndNorm(args) : backend_->Linear(args.linear);
      if (status.ok() && !at_once) status = backend_->RmsNorm(args.norm);
      EXPECT_TRUE(status.ok()) << status;
      auto written = std::pair(ReadBack(given.view), ReadBack(out.view));
      const int64_t kernels = emu::NumCalls(emu::CallKind::kExecution) - before;
      EXPECT_EQ(kernels, (at_once && c.num_tokens <= 8 ? 1 : 2) + c.stored.rounds_input());
      return written;
    };
    EXPECT_TRUE(run(true) == run(false));
  }
}

}  // namespace
}  // namespace jevons

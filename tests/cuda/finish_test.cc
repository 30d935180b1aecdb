// FinishExperts in the types of a step, where it may be one kernel: the bits of its ops.
#include <cmath>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "tests/cuda/backend_fixture.h"

namespace jevons {
namespace {

constexpr int64_t kTopK = 3;

struct FinishCase {
  int64_t num_tokens;
  int64_t hidden;
  int64_t k;
  int num_sms;
  bool at_once;
  bool with_shared = false;
  int64_t num_experts = 5;
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

  void UseDevice(int num_sms) {
    backend_ = nullptr;
    emu::SetDevice({.num_sms = num_sms});
    backend_ = Create({});
  }

  // What stands in x and in norm.out after `ops`, from the same start each time.
  struct Written {
    std::vector<uint8_t> x;
    std::vector<uint8_t> out;
    bool operator==(const Written&) const = default;
  };
  using Ops = absl::FunctionRef<absl::Status(const GroupedGemmArgs&, const CombineAndNormArgs&)>;
  Written Run(const FinishCase& c, const StoredAs& stored, Ops ops, int64_t lost_row = -1) {
    random_ = Random(kOpTestSeed);
    const auto weight = Groups(stored, c.num_experts, c.hidden, c.k);
    const int64_t num_rows = c.num_tokens * kTopK;
    TestTensor in = TestTensor(DType::kBF16, {num_rows, c.k}).FillNormal(random_);
    if (lost_row >= 0) in.at<uint16_t>(lost_row * c.k) = 0x7FC0;  // NaN
    const DeviceTensor act = Upload(in);
    const DeviceTensor rows = Upload(TestTensor(DType::kBF16, {num_rows, c.hidden}));
    const DeviceTensor weights = Normal(DType::kF32, {c.num_tokens, kTopK});
    const DeviceTensor shared = Normal(DType::kBF16, {c.num_tokens, c.hidden});
    const DeviceTensor x = Normal(DType::kF32, {c.num_tokens, c.hidden});
    const DeviceTensor sum = Upload(TestTensor(DType::kF32, {c.num_tokens, c.hidden}));
    const DeviceTensor norm = Normal(DType::kF32, {c.hidden});
    const DeviceTensor out = Upload(TestTensor(DType::kBF16, {c.num_tokens, c.hidden}));
    // Rows of the first, of two others, and of none; some choices have none, nor has the third token.
    const auto n = static_cast<int32_t>(num_rows);
    std::vector<int32_t> cu_rows = {0, n / 3, n / 3, n - n / 3};
    cu_rows.resize(c.num_experts + 1, n);
    const DeviceTensor cu = Upload(IntTensor(cu_rows));
    TestTensor token_row(DType::kI32, {c.num_tokens, kTopK});
    for (int32_t i = 0; i < n; ++i) {
      token_row.at<int32_t>(i) = i % 5 == 1 || i / kTopK == 2 ? -1 : n - 1 - i;
    }
    const DeviceTensor token_rows = Upload(token_row);
    const int64_t before = emu::NumCalls(emu::CallKind::kExecution);
    const absl::Status status = ops({act.view, cu.view, {}, weight.get(), rows.view},
                                    {.combine = {rows.view,
                                                 {{}, {}, token_rows.view},
                                                 weights.view,
                                                 c.with_shared ? shared.view : TensorView(),
                                                 sum.view},
                                     .norm = {x.view, sum.view, norm.view, 1e-6f, out.view}});
    EXPECT_TRUE(status.ok()) << status;
    const Written written = {ReadBack(x.view), ReadBack(out.view)};
    num_kernels_ = emu::NumCalls(emu::CallKind::kExecution) - before;
    return written;
  }
  Written AtOnce(const FinishCase& c, const StoredAs& stored, int64_t lost_row = -1) {
    return Run(
        c, stored,
        [&](const auto& down, const auto& end) { return backend_->FinishExperts(down, end); },
        lost_row);
  }

  int64_t num_kernels_ = 0;
};

// One block has all tokens, or several have one each, or some have up to three. 4112 columns are more
// than the norm's threads have a vector of, 2056 than the block's, which has threads for more than 72;
// 77 are no whole vectors.
const FinishCase kCases[] = {{1, 64, 16, 4, true},
                             {1, 72, 600, 4, true},
                             {2, 264, 70, 4, true},
                             {4, 264, 70, 4, true, true},
                             {1, 4112, 65, 4, true},
                             {2, 2056, 16, 4, true},
                             {6, 77, 64, 4, true},
                             {7, 72, 16, 4, false},
                             {13, 77, 30, 26, true, true},
                             {40, 136, 16, 32, true},
                             {64, 72, 16, 44, true, true, 12},
                             {64, 72, 16, 32, false, false, 12},
                             {65, 72, 16, 44, false, false, 12}};

TEST_F(FinishTest, HasTheBitsOfItsOps) {
  for (const FinishCase& c : kCases) {
    UseDevice(c.num_sms);
    for (const StoredAs& stored : kStoredAs) {
      SCOPED_TRACE(testing::Message()
                   << c.num_tokens << " of " << c.hidden << " " << stored.name());
      const Written at_once = AtOnce(c, stored);
      EXPECT_EQ(num_kernels_, (c.at_once ? 1 : 2) + stored.rounds_input());
      const Written apart = Run(c, stored, [&](const auto& down, const auto& end) -> absl::Status {
        RETURN_IF_ERROR(backend_->GroupedGemm(down));
        RETURN_IF_ERROR(backend_->ExpertCombine(end.combine));
        return backend_->RmsNorm(end.norm);
      });
      EXPECT_TRUE(at_once == apart);
    }
  }
}

TEST_F(FinishTest, ARowThatIsNotANumberLosesItsTokenAlone) {
  const FinishCase c = {20, 136, 64, 24, true};
  UseDevice(c.num_sms);
  constexpr int64_t kLostToken = 13;
  const int64_t lost_row = c.num_tokens * kTopK - 1 - kLostToken * kTopK;
  for (const StoredAs& stored : kStoredAs) {
    SCOPED_TRACE(stored.name());
    const Written whole = AtOnce(c, stored);
    const Written with_loss = AtOnce(c, stored, lost_row);
    EXPECT_EQ(num_kernels_, 1 + stored.rounds_input());
    for (int64_t i = 0; i < c.num_tokens * c.hidden; ++i) {
      const auto at = [i](const std::vector<uint8_t>& bytes) {
        return Bf16ToFloat(reinterpret_cast<const uint16_t*>(bytes.data())[i]);
      };
      const bool lost = i / c.hidden == kLostToken;
      ASSERT_EQ(std::isnan(at(with_loss.out)), lost) << i;
      ASSERT_TRUE(lost || at(with_loss.out) == at(whole.out)) << i;
    }
  }
}

// V3's low-rank query has some of the columns.
TEST_F(FinishTest, ALinearWithANormHasTheBitsOfItsTwoOps) {
  struct Case {
    int64_t num_tokens, n, k, width;
    int num_sms;
    bool at_once;
    StoredAs stored = kStoredAs[0];
  };
  for (const Case& c :
       {Case{1, 64, 16, 64, 4, true}, Case{1, 200, 600, 72, 4, true},
        Case{4, 264, 70, 264, 4, true}, Case{5, 90, 64, 33, 4, true},
        Case{40, 280, 64, 280, 4, false}, Case{9, 280, 64, 150, 16, true},
        Case{24, 800, 64, 90, 32, true, kStoredAs[1]}, Case{40, 1400, 16, 90, 32, true},
        Case{64, 1400, 16, 90, 44, true}, Case{65, 280, 16, 90, 44, false},
        Case{5, 90, 300, 33, 4, true, kStoredAs[2]}, Case{40, 280, 64, 280, 4, false, kStoredAs[2]},
        Case{20, 800, 150, 33, 44, true, kStoredAs[2]}}) {
    SCOPED_TRACE(testing::Message() << c.num_tokens << " of " << c.width << " of " << c.n);
    UseDevice(c.num_sms);
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
      EXPECT_EQ(kernels, (at_once && c.at_once ? 1 : 2) + c.stored.rounds_input());
      return written;
    };
    EXPECT_TRUE(run(true) == run(false));
  }
}

// One kernel after the other, each of which finds the meeting of its blocks as it was before.
TEST_F(FinishTest, ARecordedStepHasTheSameBitsAtEachReplay) {
  UseDevice(24);
  constexpr int64_t kTokens = 20;
  constexpr int64_t kColumns = 520;
  const auto weight = Groups(kStoredAs[0], 1, kColumns, 64);
  const DeviceTensor x = Normal(DType::kBF16, {kTokens, 64});
  const DeviceTensor norm = Normal(DType::kF32, {kColumns});
  const TestTensor nothing(DType::kBF16, {kTokens, kColumns});
  const DeviceTensor given = Upload(nothing);
  const DeviceTensor outs[] = {Upload(nothing), Upload(nothing), Upload(nothing)};
  std::vector<uint8_t> first;
  emu::ResetCalls();
  for (int i = 0; i < 4; ++i) {
    const auto step = [&] {
      for (const DeviceTensor& out : outs) {
        RETURN_IF_ERROR(
            backend_->LinearAndNorm({.linear = {x.view, weight.get(), {}, given.view},
                                     .norm = {given.view, {}, norm.view, 1e-6f, out.view}}));
      }
      return absl::OkStatus();
    };
    for (const DeviceTensor& out : outs) {
      ASSERT_TRUE(backend_->Write(out.view, nothing.view()).ok());
    }
    const absl::Status status = backend_->RunStep(1, step);
    ASSERT_TRUE(status.ok()) << status;
    if (i == 0) first = ReadBack(outs[0].view);
    for (const DeviceTensor& out : outs) EXPECT_TRUE(ReadBack(out.view) == first);
  }
  EXPECT_EQ(emu::NumCalls(emu::CallKind::kExecution), 4 * 3);
}

}  // namespace
}  // namespace jevons

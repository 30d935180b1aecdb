// LinearAndRoute in the types of a step, where it may be one kernel: how many kernels it is, and the
// bits of its two ops, with a block for each 16 experts of eight tokens and with blocks that have more
// of them, once and in a recorded step.
#include <vector>

#include "tests/cuda/backend_fixture.h"

namespace jevons {
namespace {

constexpr int64_t kTopK = 4;

struct Size {
  int64_t num_tokens;
  int64_t k;
  int64_t hidden;
  int64_t num_experts;
  DType dtype;  // of the product's weight
  int num_sms;
  bool at_once;
};

class LinearRouteKernelTest : public CudaBackendTest {
 protected:
  std::unique_ptr<Weight> PackOne(DType dtype, int64_t n, int64_t k) {
    const TestTensor data = TestTensor(dtype, {n, k}).FillNormal(random_, 0.1);
    const TestTensor scale =
        TestTensor(DType::kF32, {(n + 127) / 128, (k + 127) / 128}).FillNormal(random_, 0.1);
    WeightPart part = {.data = data.view(), .scale = {}};
    if (dtype == DType::kF8E4M3) part.scale = scale.view();
    WeightSpec spec;
    spec.groups.push_back({part});
    auto weight = backend_->PackWeight(spec);
    EXPECT_TRUE(weight.ok()) << weight.status();
    return *std::move(weight);
  }

  // All that three steps write, the second of which is recorded and the third replayed: from the same
  // start each time, nothing but NaN and -1 where it has not been given a row. A norm in front makes
  // the product's rows.
  std::vector<std::vector<uint8_t>> Run(const Size& size, bool at_once) {
    random_ = Random(kOpTestSeed);
    const int64_t t = size.num_tokens;
    const auto weight = PackOne(size.dtype, size.hidden, size.k);
    const auto router = PackOne(DType::kBF16, size.num_experts, size.hidden);
    const DeviceTensor raw = Normal(DType::kF32, {t, size.k});
    const DeviceTensor first_norm = Normal(DType::kF32, {size.k});
    const DeviceTensor in = Normal(DType::kBF16, {t, size.k});
    const DeviceTensor bias = Normal(DType::kF32, {size.hidden});
    const DeviceTensor x = Normal(DType::kF32, {t, size.hidden});
    const DeviceTensor norm = Normal(DType::kF32, {size.hidden});
    const auto empty = [&](DType type, std::vector<int64_t> shape) {
      return Upload(TestTensor(type, std::move(shape)));
    };
    const DeviceTensor delta = empty(DType::kF32, {t, size.hidden});
    const DeviceTensor out = empty(DType::kBF16, {t, size.hidden});
    const DeviceTensor logits = empty(DType::kF32, {t, size.num_experts});
    const DeviceTensor ids = empty(DType::kI32, {t, kTopK});
    const DeviceTensor weights = empty(DType::kF32, {t, kTopK});
    const DeviceTensor cu_rows = empty(DType::kI32, {size.num_experts + 1});
    const DeviceTensor row_token = empty(DType::kI32, {t * kTopK});
    const DeviceTensor token_row = empty(DType::kI32, {t, kTopK});
    LinearAndRouteArgs args;
    args.linear = {in.view, weight.get(), bias.view, delta.view};
    args.route.norm = {x.view, delta.view, norm.view, 1e-6f, out.view};
    args.route.router = router.get();
    args.route.route.logits = logits.view;
    args.route.route.topk_idx = ids.view;
    args.route.route.topk_weights = weights.view;
    args.route.plan = {cu_rows.view, row_token.view, token_row.view};
    const auto ops = [&]() -> absl::Status {
      RETURN_IF_ERROR(backend_->RmsNorm({raw.view, {}, first_norm.view, 1e-6f, in.view}));
      if (at_once) return backend_->LinearAndRoute(args);
      RETURN_IF_ERROR(backend_->Linear(args.linear));
      return backend_->NormAndRoute(args.route);
    };
    std::vector<std::vector<uint8_t>> written;
    backend_->ForgetSteps();
    for (int i = 0; i < 3; ++i) {
      const int64_t before = emu::NumCalls(emu::CallKind::kExecution);
      const absl::Status status = backend_->RunStep(1, ops);
      EXPECT_TRUE(status.ok()) << status;
      for (const DeviceTensor* tensor :
           {&delta, &x, &out, &logits, &ids, &weights, &cu_rows, &row_token, &token_row}) {
        written.push_back(ReadBack(tensor->view));
      }
      num_kernels_ = emu::NumCalls(emu::CallKind::kExecution) - before;
    }
    return written;
  }

  int64_t num_kernels_ = 0;
};

TEST_F(LinearRouteKernelTest, HasTheBitsOfItsTwoOps) {
  constexpr DType kBf16 = DType::kBF16;
  constexpr DType kE4m3 = DType::kF8E4M3;
  // Half of the device shares the router's work, two blocks or eight: one kernel where it has a block for
  // each eight tokens and there are up to 256 experts.
  const Size sizes[] = {{1, 300, 520, 120, kE4m3, 4, true}, {1, 16, 64, 256, kBf16, 16, true},
                        {8, 64, 264, 64, kBf16, 4, true},   {8, 64, 264, 64, kBf16, 16, true},
                        {2, 72, 2120, 40, kE4m3, 4, true},  {9, 72, 264, 64, kE4m3, 4, true},
                        {2, 64, 72, 257, kBf16, 4, false},  {16, 40, 520, 72, kBf16, 4, true},
                        {17, 64, 264, 64, kBf16, 4, false}, {17, 64, 264, 64, kBf16, 16, true},
                        {33, 72, 264, 64, kE4m3, 16, true}, {64, 16, 520, 16, kBf16, 16, true},
                        {65, 16, 72, 16, kE4m3, 16, false}};
  for (const Size& size : sizes) {
    SCOPED_TRACE(testing::Message()
                 << size.num_tokens << " of " << size.hidden << ", " << size.num_experts
                 << " experts, " << size.num_sms << " multiprocessors");
    backend_ = nullptr;
    emu::SetDevice({.num_sms = size.num_sms});
    backend_ = Create({});
    const auto at_once = Run(size, true);
    EXPECT_EQ(num_kernels_ == 2, size.at_once) << num_kernels_;
    EXPECT_TRUE(at_once == Run(size, false));
  }
}

}  // namespace
}  // namespace jevons

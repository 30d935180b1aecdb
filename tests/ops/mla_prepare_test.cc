// Entries and queries of a step's tokens at once, against the three ops that they are.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ops/mla.h"
#include "tests/support/op_test.h"

namespace jevons {
namespace {

struct PrepareCase {
  int64_t num_tokens;
  int64_t num_heads;
  int64_t nope;
  int64_t r;
  int64_t p;
  DType weight = DType::kBF16;
  int64_t gap = 3;
};

// DeepSeek-V2-Lite's widths, then such that divide nothing, and an FP8 weight, which has no kernel
// of its own for all.
std::vector<PrepareCase> Cases() {
  std::vector<PrepareCase> out = {{1, 16, 128, 512, 64, DType::kBF16, 0},
                                  {9, 2, 128, 512, 64, DType::kBF16, 0}};
  for (int64_t num_tokens : {0, 1, 5, 8, 9, 33, 65}) {
    out.insert(out.end(), {{num_tokens, 3, 7, 33, 2}, {num_tokens, 2, 16, 24, 8}});
  }
  // More than further blocks should do, on a device of few multiprocessors.
  out.push_back({200, 2, 16, 24, 8});
  out.push_back({5, 2, 130, 24, 8, DType::kF8E4M3});
  return out;
}

std::string NameOf(const PrepareCase& c) {
  return std::to_string(c.num_tokens) + " tokens, " + std::to_string(c.num_heads) + " heads, " +
         std::to_string(c.nope) + " -> " + std::to_string(c.r) + " + " + std::to_string(c.p) +
         ", weight " + std::string(DTypeName(c.weight));
}

// The inputs of a step, always the same.
class PrepareStep {
 public:
  static constexpr int64_t kBlockSize = 4;
  static constexpr int32_t kPositions = 50;

  // `lost`: the last tokens have no slot or no position, which a host would see and refuse.
  PrepareStep(const PrepareCase& c, DType cache_type, bool lost)
      : c_(c), cache_type_(cache_type), gap_(c.gap) {
    Random random(kOpTestSeed);
    const int64_t t = c.num_tokens;
    q_ = NormalTensor(random, {t, c.num_heads, c.nope + c.p}, gap_);
    kv_ = NormalTensor(random, {t, c.r + c.p}, gap_);
    norm_weight_ = NormalTensor(random, {c.r});
    table_ = NormalTensor(random, {kPositions, c.p});
    positions_ = TestTensor(DType::kI32, {t});
    slots_ = TestTensor(DType::kI64, {t});
    for (int64_t i = 0; i < t; ++i) {
      positions_.at<int32_t>(i) = static_cast<int32_t>(random.Below(kPositions));
      // One slot in each block but the first and last, so that the rest must stay NaN.
      slots_.at<int64_t>(i) = (t - i) * kBlockSize + random.Below(kBlockSize);
    }
    if (lost && t > 2) {
      slots_.at<int64_t>(t - 1) = -1;
      slots_.at<int64_t>(t - 2) = (t + 2) * kBlockSize;
      positions_.at<int32_t>(t - 2) = -1;
      positions_.at<int32_t>(t - 3) = kPositions;
    }
    for (int64_t h = 0; h < c.num_heads; ++h) {
      WeightPart part;
      part.data = weights_.emplace_back(c.weight, std::vector<int64_t>{c.r, c.nope})
                      .FillNormal(random)
                      .view();
      if (c.weight == DType::kF8E4M3) {
        const std::vector<int64_t> blocks = {(c.r + 127) / 128, (c.nope + 127) / 128};
        part.scale = weights_.emplace_back(DType::kF32, blocks).FillNormal(random).view();
      }
      spec_.groups.push_back({part});
    }
  }

  // The cache and the queries.
  std::pair<TestTensor, TestTensor> Run(Backend& backend, bool at_once) const {
    const Fp8Entry fp8 = {static_cast<int32_t>(c_.r), static_cast<int32_t>(c_.p)};
    const int64_t entry = cache_type_ == DType::kU8 ? fp8.bytes() : c_.r + c_.p;
    TestTensor cache(cache_type_, {c_.num_tokens + 2, kBlockSize, entry});
    TestTensor out(DType::kF32, {c_.num_tokens, c_.num_heads, c_.r + c_.p}, gap_);
    const std::unique_ptr<Weight> uk = *backend.PackWeight(spec_);
    const MlaPrepareArgs args = {
        .store = {kv_.view(), norm_weight_.view(), 1e-6f, positions_.view(), table_.view(),
                  slots_.view(), cache.view()},
        .q = q_.view(),
        .uk = uk.get(),
        .out = out.view()};
    if (at_once) {
      Check(backend.MlaPrepare(args));
    } else {
      Check(backend.MlaStoreKv(args.store));
      Check(backend.HeadLinear(args.product()));
      Check(backend.Rope(args.rotation()));
    }
    return {std::move(cache), std::move(out)};
  }

 private:
  static void Check(const absl::Status& status) { EXPECT_TRUE(status.ok()) << status; }

  PrepareCase c_;
  DType cache_type_;
  int64_t gap_;
  TestTensor q_, kv_, norm_weight_, table_, positions_, slots_;
  std::vector<TestTensor> weights_;
  WeightSpec spec_;
};

class MlaPrepareTest : public OpTest {
 protected:
  // Whose activations have the type that a model gives them.
  Backend& backend() { return bf16_out_ != nullptr ? *bf16_out_ : *one_thread_; }
};

TEST_F(MlaPrepareTest, HasTheBitsOfItsThreeStepsAndTouchesNothingElse) {
  for (DType cache_type : {DType::kF32, DType::kU8}) {
    for (const PrepareCase& c : Cases()) {
      SCOPED_TRACE(NameOf(c) + ", cache " + std::string(DTypeName(cache_type)));
      const PrepareStep step(c, cache_type, kTestsCuda);
      const auto [cache, out] = step.Run(backend(), true);
      const auto [want_cache, want_out] = step.Run(backend(), false);
      ExpectSameBits(cache, want_cache);
      ExpectSameBits(out, want_out);
      EXPECT_TRUE(cache.GuardsIntact());
      EXPECT_TRUE(out.GuardsIntact());
    }
  }
}

TEST_F(MlaPrepareTest, AgreesWithTwin) {
  for (const PrepareCase& c : Cases()) {
    SCOPED_TRACE(NameOf(c));
    const auto entry_bound = [c](int64_t i, double want) {
      const bool latent = i % (c.r + c.p) < c.r;
      const double relative =
          latent ? Tolerance(kRmsNormTolerance, kBf16Step) : Tolerance(0, kBf16Step);
      return relative * std::abs(want) + (latent ? 0 : 4e-6);
    };
    // Sums of nope products, of which each is below 25 in these tests.
    const double sum = static_cast<double>(c.nope) * (c.weight == DType::kF8E4M3 ? 4000 : 25);
    const auto query_bound = [c, sum](int64_t i, double want) {
      const bool rotated = i % (c.r + c.p) >= c.r;
      return Tolerance(0, kBf16Step) * std::abs(want) +
             (rotated ? 4e-6 : Tolerance(kLinearTolerance, kLinearBf16Tolerance) * sum);
    };
    const PrepareStep step(c, DType::kF32, false);
    const auto [want_cache, want_out] = step.Run(*reference_, true);
    for (Backend* fast : {one_thread_.get(), two_threads_.get(), &backend()}) {
      const auto [cache, out] = step.Run(*fast, true);
      ExpectWithin(cache, want_cache, entry_bound);
      ExpectWithin(out, want_out, query_bound);
    }
  }
}

}  // namespace
}  // namespace jevons

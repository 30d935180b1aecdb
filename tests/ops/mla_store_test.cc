// New entries of the latent cache, as floats and as FP8.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "ops/mla.h"
#include "tests/support/op_test.h"

namespace jevons {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class MlaStoreTest : public OpTest {};

struct StoreCase {
  int64_t num_tokens;
  int64_t r;
  int64_t p;
  int64_t block_size;
  Fp8Entry fp8() const { return {static_cast<int32_t>(r), static_cast<int32_t>(p)}; }
};

// The inputs of a step of MlaStoreKv, always the same, and where its tokens go.
class StoreStep {
 public:
  explicit StoreStep(const StoreCase& c) : c_(c) {
    Random random(kOpTestSeed);
    kv_ = NormalTensor(random, {c.num_tokens, c.r + c.p}, 3);
    weight_ = NormalTensor(random, {c.r});
    table_ = NormalTensor(random, {50, c.p});
    positions_ = TestTensor(DType::kI32, {c.num_tokens});
    slots_ = TestTensor(DType::kI64, {c.num_tokens});
    for (int64_t t = 0; t < c.num_tokens; ++t) {
      positions_.at<int32_t>(t) = static_cast<int32_t>(random.Below(50));
      // One slot in each block but the first and last, so that the rest must stay NaN.
      slots_.at<int64_t>(t) = (c.num_tokens - t) * c.block_size + random.Below(c.block_size);
    }
  }

  TestTensor Run(Backend& backend, DType type) const {
    const int64_t entry = type == DType::kU8 ? c_.fp8().bytes() : c_.r + c_.p;
    TestTensor cache(type, {c_.num_tokens + 2, c_.block_size, entry});
    const absl::Status status =
        backend.MlaStoreKv({kv_.view(), weight_.view(), 1e-6f, positions_.view(), table_.view(),
                            slots_.view(), cache.view()});
    EXPECT_TRUE(status.ok()) << status;
    return cache;
  }
  int64_t slot(int64_t token) const { return slots_.at<int64_t>(token); }
  TestTensor& kv() { return kv_; }

 private:
  StoreCase c_;
  TestTensor kv_, weight_, table_, positions_, slots_;
};

std::vector<StoreCase> StoreCases() {
  std::vector<StoreCase> out;
  for (int64_t num_tokens : {0, 1, 5, 40}) {
    out.insert(out.end(), {{num_tokens, 7, 8, 4},
                           {num_tokens, 512, 64, 64},
                           {num_tokens, 33, 2, 1},
                           {num_tokens, 16, 34, 3},
                           {num_tokens, 200, 24, 2}});
  }
  return out;
}

TEST_F(MlaStoreTest, AgreesWithTwinAndTouchesOnlyItsSlots) {
  for (const StoreCase& c : StoreCases()) {
    SCOPED_TRACE(std::to_string(c.num_tokens) + " tokens, r " + std::to_string(c.r));
    const auto bound = [c](int64_t i, double want) {
      const bool latent = i % (c.r + c.p) < c.r;
      const double relative =
          latent ? Tolerance(kRmsNormTolerance, kBf16Step) : Tolerance(0, kBf16Step);
      return relative * std::abs(want) + (latent ? 0 : 4e-6);
    };
    CheckAgainstTwin([&](Backend& b) -> Outputs {
      return {{StoreStep(c).Run(b, DType::kF32)}, {bound}};
    });
  }
}

// Of two scales that a group with these values may have; two where its largest lies at the bound.
bool IsScaleOf(float scale, const float* values, int64_t n) {
  float largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(values[i]));
  return scale == Fp8Scale(Fp8Magnitude(largest * 1.0001f)) ||
         scale == Fp8Scale(Fp8Magnitude(largest * 0.9999f));
}

TEST_F(MlaStoreTest, WritesFp8EntriesAndTouchesNothingElse) {
  for (const StoreCase& c : StoreCases()) {
    SCOPED_TRACE(std::to_string(c.num_tokens) + " tokens, r " + std::to_string(c.r));
    const StoreStep step(c);
    const Fp8Entry layout = c.fp8();
    const TestTensor exact = step.Run(*reference_, DType::kF32);
    const TestTensor got = step.Run(*one_thread_, DType::kU8);
    ExpectSameBits(got, step.Run(*two_threads_, DType::kU8));
    EXPECT_TRUE(got.GuardsIntact());
    // All bits where nothing was stored, and zeros where an entry is filled up.
    TestTensor want(DType::kU8, {c.num_tokens + 2, c.block_size, layout.bytes()});
    for (int64_t t = 0; t < c.num_tokens; ++t) {
      const uint8_t* entry = &got.at<uint8_t>(step.slot(t) * layout.bytes());
      const float* values = &exact.at<float>(step.slot(t) * (c.r + c.p));
      std::vector<float> read(c.r + c.p);
      ReadFp8Entry(entry, layout, read.data());
      for (int64_t i = 0; i < c.r; ++i) {
        float scale = 0;
        std::memcpy(&scale, entry + layout.scales() + i / kFp8Group * 4, sizeof(scale));
        const int64_t begin = i / kFp8Group * kFp8Group;
        ASSERT_TRUE(IsScaleOf(scale, values + begin, std::min<int64_t>(kFp8Group, c.r - begin)));
        // Half a step, and what the value itself may be off.
        ASSERT_NEAR(read[i], values[i], std::abs(values[i]) * (0x1p-4 + 1e-5) + 0x1p-10 * scale);
      }
      for (int64_t i = c.r; i < c.r + c.p; ++i) {
        ASSERT_NEAR(read[i], values[i], std::abs(values[i]) * kBf16Step + 4e-6);
      }
      uint8_t* kept = &want.at<uint8_t>(step.slot(t) * layout.bytes());
      std::memset(kept, 0, static_cast<size_t>(layout.bytes()));
      std::copy_n(entry, c.r, kept);
      std::copy_n(entry + layout.scales(), 4 * layout.num_groups(), kept + layout.scales());
      std::copy_n(entry + layout.keys(), 2 * c.p, kept + layout.keys());
    }
    ExpectSameBits(got, want);
  }
}

TEST_F(MlaStoreTest, KeepsWhatIsNotFiniteInItsTokensFp8Entry) {
  const StoreCase c = {3, 200, 8, 4};
  const Fp8Entry layout = c.fp8();
  const TestTensor want = StoreStep(c).Run(*one_thread_, DType::kU8);
  for (float value : {kNan, std::numeric_limits<float>::infinity()}) {
    StoreStep step(c);
    step.kv().at<float>(1 * (c.r + c.p) + 150) = value;
    const TestTensor got = step.Run(*one_thread_, DType::kU8);
    for (int64_t t = 0; t < c.num_tokens; ++t) {
      std::vector<float> read(c.r + c.p);
      ReadFp8Entry(&got.at<uint8_t>(step.slot(t) * layout.bytes()), layout, read.data());
      for (int64_t i = 0; i < layout.bytes() && t != 1; ++i) {
        const int64_t at = step.slot(t) * layout.bytes() + i;
        ASSERT_EQ(got.Value(at), want.Value(at)) << "token " << t << " byte " << i;
      }
      EXPECT_EQ(std::isnan(read[150]), t == 1);
      for (int64_t i = c.r; i < c.r + c.p; ++i) EXPECT_FALSE(std::isnan(read[i]));
    }
  }
}

}  // namespace
}  // namespace jevons

// Attention with its values, against the two ops that it is.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/ops/mla_step.h"

namespace jevons {
namespace {

struct ValuesCase {
  MlaShape shape;
  int64_t v;
  std::vector<MlaSequence> sequences;
};

// DeepSeek-V2-Lite's widths, cut in pieces and whole; the same with as many heads as Kimi K2 has;
// no token; then widths that divide nothing: a token alone, whole and cut, as many as take one
// kernel, some of them cut, and more.
std::vector<ValuesCase> Cases() {
  constexpr DType kF32 = DType::kF32;
  constexpr DType kU8 = DType::kU8;
  std::vector<ValuesCase> out = {{{16, 512, 64, 64, kF32}, 128, {{300, 1}}},
                                 {{16, 512, 64, 64, kU8}, 128, {{40, 2}}},
                                 {{64, 512, 64, 16, kF32}, 24, {{600, 1}}},
                                 {{64, 512, 64, 16, kU8}, 5, {{5, 1}, {0, 0}, {90, 2}, {600, 1}}},
                                 {{3, 33, 2, 8, kF32}, 5, {}}};
  for (const auto& [shape, v] :
       {std::pair(MlaShape{3, 33, 2, 8, kF32}, 5), std::pair(MlaShape{2, 300, 6, 16, kF32}, 70),
        std::pair(MlaShape{16, 64, 8, 4, kU8}, 24)}) {
    out.push_back({shape, v, {{9, 1}}});
    out.push_back({shape, v, {{300, 1}}});
    out.push_back({shape, v, {{50, 1}, {0, 0}, {3, 1}, {400, 1}, {70, 5}}});
    out.push_back({shape, v, {{150, 1}, {20, 7}, {3, 1}}});
  }
  return out;
}

std::string NameOf(const ValuesCase& c) {
  int32_t num_tokens = 0;
  for (const MlaSequence& s : c.sequences) num_tokens += s.num_queries;
  return std::to_string(num_tokens) + " tokens, " + std::to_string(c.shape.num_heads) + " heads, " +
         std::to_string(c.shape.r) + " -> " + std::to_string(c.v) + ", cache " +
         std::string(DTypeName(c.shape.cache));
}

class MlaValuesTest : public OpTest {
 protected:
  static std::unique_ptr<Weight> Pack(Backend& backend, const ValuesCase& c) {
    Random random(kOpTestSeed);
    std::vector<TestTensor> heads;
    heads.reserve(c.shape.num_heads);
    WeightSpec spec;
    for (int64_t h = 0; h < c.shape.num_heads; ++h) {
      heads.push_back(TestTensor(DType::kBF16, {c.v, c.shape.r}).FillNormal(random));
      spec.groups.push_back({{heads.back().view(), {}}});
    }
    return *backend.PackWeight(spec);
  }

  static TestTensor Run(Backend& backend, const ValuesCase& c) {
    const MlaStep step(c.shape, c.sequences);
    const std::unique_ptr<Weight> uv = Pack(backend, c);
    const TestTensor attended = step.MakeOut();
    TestTensor out(DType::kF32, {step.q.view().dim(0), c.shape.num_heads, c.v}, 3);
    const absl::Status status =
        backend.MlaValues({.attention = step.Args(attended), .uv = uv.get(), .out = out.view()});
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(attended.GuardsIntact());
    return out;
  }
};

TEST_F(MlaValuesTest, AgreesWithTwin) {
  for (const ValuesCase& c : Cases()) {
    SCOPED_TRACE(NameOf(c));
    // Latents and weights are below 5 in these tests. What attention leaves is rounded before the
    // sum.
    const double sum = 25 * std::sqrt(static_cast<double>(c.shape.r));
    const double bound =
        sum * Tolerance(kMlaAttentionTolerance + kLinearTolerance * std::sqrt(c.shape.r),
                        kMlaAttentionBf16Tolerance);
    CheckAgainstTwin([&](Backend& backend) -> Outputs {
      return {{Run(backend, c)}, {[bound](int64_t, double) { return bound; }}};
    });
  }
}

// A backend that writes bf16 may do all at once; f32 is what its two ops give.
TEST_F(MlaValuesTest, HasTheBitsOfItsTwoSteps) {
  for (const ValuesCase& c : Cases()) {
    SCOPED_TRACE(NameOf(c));
    const TestTensor want = Run(*one_thread_, c);
    if (bf16_out_ == nullptr) continue;
    const TestTensor got = Run(*bf16_out_, c);
    for (int64_t i = 0; i < got.size(); ++i) {
      const float rounded = Bf16ToFloat(FloatToBf16(static_cast<float>(want.Value(i))));
      ASSERT_EQ(got.Value(i), rounded) << i;
    }
  }
}

TEST_F(MlaValuesTest, OfASequenceAreTheSameAloneAndInABatch) {
  Backend& backend = bf16_out_ != nullptr ? *bf16_out_ : *two_threads_;
  const MlaShape shape = {16, 64, 8, 16};
  std::vector<MlaSequence> sequences = {{500, 1}};
  // The same cache and queries first: the others come behind.
  for (int32_t num_others : {3, 7, 8, 20}) {
    SCOPED_TRACE(num_others);
    sequences.resize(1);
    for (int32_t i = 0; i < num_others; ++i) sequences.push_back({1 + 40 * i % 300, 1});
    const MlaStep batch(shape, sequences);
    MlaStep first = batch;
    first.cu_seqlens_q = IntTensor({0, 1});
    first.context_lens = IntTensor({500});
    const std::unique_ptr<Weight> uv = Pack(backend, {shape, 24, sequences});
    const auto values = [&](const MlaAttentionArgs& attention) {
      TestTensor out(DType::kF32, {attention.q.dim(0), shape.num_heads, 24});
      EXPECT_TRUE(backend.MlaValues({attention, uv.get(), out.view()}).ok());
      return out;
    };
    const TestTensor attended = batch.MakeOut();
    const TestTensor all = values(batch.Args(attended));
    TestTensor one(DType::kF32, {1, shape.num_heads, shape.r}, 2);
    MlaAttentionArgs args = first.Args(one);
    args.q = first.q.view().Slice(0, 1);
    args.block_tables = first.block_tables.view().Slice(0, 1);
    const TestTensor single = values(args);
    for (int64_t i = 0; i < single.size(); ++i) ASSERT_EQ(single.Value(i), all.Value(i)) << i;
  }
}

}  // namespace
}  // namespace jevons

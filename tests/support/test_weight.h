// Weights for tests of the products, and how exact a product must be.
#pragma once

#include <memory>
#include <vector>

#include "tests/support/op_test.h"

namespace jevons {

// A weight of several groups, the rows of each split into `parts`. Owns what the spec points to.
class TestWeight {
 public:
  TestWeight(Random& random, DType dtype, int64_t groups, std::vector<int64_t> parts, int64_t k,
             double sigma = 1) {
    spec_.groups.resize(groups);
    tensors_.reserve(2 * groups * parts.size());
    for (auto& group : spec_.groups) {
      for (int64_t rows : parts) {
        TestTensor& data = tensors_.emplace_back(dtype, std::vector<int64_t>{rows, k});
        data.FillNormal(random, sigma);
        WeightPart part = {data.view(), {}};
        if (dtype == DType::kF8E4M3) {
          TestTensor& scale = tensors_.emplace_back(
              DType::kF32, std::vector<int64_t>{(rows + 127) / 128, (k + 127) / 128});
          for (int64_t i = 0; i < scale.size(); ++i) {
            scale.at<float>(i) = static_cast<float>(0.001 + random.Uniform() * 0.01);
          }
          part.scale = scale.view();
        }
        group.push_back(part);
      }
    }
  }
  // Of the first part of the first group.
  const TestTensor& first() const { return tensors_[0]; }
  // The absolute values, for error bounds; only for types whose highest bit is the sign.
  void DropSigns() {
    for (TestTensor& tensor : tensors_) {
      const int64_t width = DTypeBytes(tensor.view().dtype);
      for (int64_t i = 0; i < tensor.size(); ++i) {
        tensor.view().ptr<uint8_t>()[i * width + width - 1] &= 0x7F;
      }
    }
  }
  TestWeight& ForGatedUp() {
    spec_.use = WeightUse::kGateUp;
    return *this;
  }
  TestWeight& RoundInput(ActivationPrecision input) {
    spec_.input = input;
    return *this;
  }
  std::unique_ptr<Weight> Pack(Backend& backend) const {
    auto weight = backend.PackWeight(spec_);
    EXPECT_TRUE(weight.ok()) << weight.status();
    return *std::move(weight);
  }

 private:
  WeightSpec spec_;
  std::vector<TestTensor> tensors_;
};

inline TestTensor Absolute(TestTensor tensor) {
  for (int64_t i = 0; i < tensor.size(); ++i) tensor.at<float>(i) = std::abs(tensor.at<float>(i));
  return tensor;
}

// sum_k |w x| of each output by the twin.
inline ErrorBound SumBound(const TestTensor& sums, double tolerance) {
  return [sums, tolerance](int64_t i, double want) {
    return tolerance * (sums.Value(i) + std::abs(want)) + 1e-30;
  };
}

// What SumBound wants of Linear [num_tokens, n]. Leaves the weight without signs.
inline TestTensor LinearSums(TestWeight& weight, const TestTensor& x, int64_t num_tokens) {
  const auto reference = CreateReferenceBackend();
  weight.DropSigns();
  const auto absolute = weight.Pack(*reference);
  TestTensor x_abs = Absolute(x);
  TestTensor sums(DType::kF32, {num_tokens, absolute->n()});
  EXPECT_TRUE(reference->Linear({x_abs.view(), absolute.get(), {}, sums.view()}).ok());
  return sums;
}

}  // namespace jevons

// Stored matrices with known values, and the backends that multiply them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "gtest/gtest.h"
#include "ops/backend.h"
#include "tests/support/cpu_target.h"

namespace jevons {

inline constexpr uint64_t kSeed = 90210;
inline constexpr DType kWeightTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kF8E4M3};

// A stored matrix with the values that it stands for.
struct Stored {
  DType dtype;
  int64_t rows;
  int64_t k;
  std::vector<uint8_t> bytes;
  std::vector<float> scale;
  std::vector<float> values;

  WeightPart Part() {
    WeightPart part;
    part.data = TensorView(bytes.data(), dtype, {rows, k});
    if (dtype == DType::kF8E4M3) {
      part.scale = TensorView(scale.data(), DType::kF32, {(rows + 127) / 128, (k + 127) / 128});
    }
    return part;
  }
  // Sets an element from its bits, low bytes first.
  void Set(int64_t i, uint32_t bits) {
    std::memcpy(bytes.data() + i * DTypeBytes(dtype), &bits, DTypeBytes(dtype));
    switch (dtype) {
      case DType::kF16:
        values[i] = F16ToFloat(static_cast<uint16_t>(bits));
        break;
      case DType::kBF16:
        values[i] = Bf16ToFloat(static_cast<uint16_t>(bits));
        break;
      case DType::kF8E4M3:
        values[i] = F8E4M3ToFloat(static_cast<uint8_t>(bits)) *
                    scale[i / k / 128 * ((k + 127) / 128) + i % k / 128];
        break;
      default:
        std::memcpy(&values[i], &bits, sizeof(bits));
    }
  }
};

inline Stored Empty(DType dtype, int64_t rows, int64_t k) {
  Stored out{dtype, rows, k, {}, {}, {}};
  out.bytes.resize(rows * k * DTypeBytes(dtype));
  out.scale.assign((rows + 127) / 128 * ((k + 127) / 128), 1.0f);
  out.values.resize(rows * k);
  return out;
}

inline uint32_t RandomBitsOf(DType dtype, Random& random) {
  const auto normal = static_cast<float>(random.Normal());
  const auto bits = static_cast<uint32_t>(random.Bits());
  switch (dtype) {
    case DType::kF16:  // any finite value below 4
      return bits % 0x4400 | (bits >> 16 & 0x8000);
    case DType::kBF16:
      return FloatToBf16(normal);
    case DType::kF8E4M3:
      return (bits & 0x7F) == 0x7F ? 0x11 : bits & 0xFF;
    default:
      uint32_t out;
      std::memcpy(&out, &normal, sizeof(out));
      return out;
  }
}

inline Stored RandomStored(DType dtype, int64_t rows, int64_t k, Random& random) {
  Stored out = Empty(dtype, rows, k);
  for (float& s : out.scale) s = static_cast<float>(0.001 + 0.01 * random.Uniform());
  for (int64_t i = 0; i < rows * k; ++i) out.Set(i, RandomBitsOf(dtype, random));
  return out;
}

inline std::vector<float> NormalFloats(int64_t count, Random& random) {
  std::vector<float> out(count);
  for (float& value : out) value = static_cast<float>(random.Normal());
  return out;
}

class GemmTest : public ::testing::Test {
 protected:
  void SetUp() override {
    SKIP_WITHOUT_CPU_TARGET();
    target_ = *ParseCpuTarget(TestCpuTarget());
    one_thread_ = *CreateCpuBackend({.num_threads = 1, .target = target_});
    two_threads_ = *CreateCpuBackend({.num_threads = 2, .target = target_});
    fused_ = one_thread_->Description().find("baseline") == std::string::npos;
    RecordProperty("seed", std::to_string(kSeed));
  }

  std::unique_ptr<Weight> Pack(std::vector<std::vector<Stored>>& groups) {
    WeightSpec spec;
    for (std::vector<Stored>& group : groups) {
      std::vector<WeightPart> parts;
      for (Stored& stored : group) parts.push_back(stored.Part());
      spec.groups.push_back(std::move(parts));
    }
    auto weight = two_threads_->PackWeight(spec);
    EXPECT_TRUE(weight.ok()) << weight.status();
    return *std::move(weight);
  }
  std::unique_ptr<Weight> PackOne(const Stored& stored) {
    std::vector<std::vector<Stored>> groups = {{stored}};
    return Pack(groups);
  }

  static std::vector<float> RunLinear(Backend& backend, const Weight& weight, const float* x,
                                      int64_t num_rows, std::vector<float> bias = {}) {
    std::vector<float> out(num_rows * weight.n(), NAN);
    LinearArgs args;
    args.x = TensorView(const_cast<float*>(x), DType::kF32, {num_rows, weight.k()});
    args.weight = &weight;
    if (!bias.empty()) args.bias = TensorView(bias.data(), DType::kF32, {weight.n()});
    args.out = TensorView(out.data(), DType::kF32, {num_rows, weight.n()});
    const absl::Status status = backend.Linear(args);
    EXPECT_TRUE(status.ok()) << status;
    return out;
  }

  // The weight of one group as the kernels see it: its product with the unit rows.
  void ExpectExactValues(const Weight& weight, const std::vector<float>& values) {
    const int64_t k = weight.k();
    std::vector<float> unit(k * k, 0.0f);
    for (int64_t i = 0; i < k; ++i) unit[i * k + i] = 1;
    const std::vector<float> out = RunLinear(*one_thread_, weight, unit.data(), k);
    for (int64_t i = 0; i < k; ++i) {
      const std::vector<float> row = RunLinear(*one_thread_, weight, &unit[i * k], 1);
      for (int64_t j = 0; j < weight.n(); ++j) {
        ASSERT_EQ(out[i * weight.n() + j], values[j * k + i]) << "output " << j << " input " << i;
        ASSERT_EQ(row[j], values[j * k + i]) << "output " << j << " input " << i;
      }
    }
  }

  CpuTarget target_ = CpuTarget::kBest;
  bool fused_ = true;
  std::unique_ptr<Backend> one_thread_;
  std::unique_ptr<Backend> two_threads_;
};

struct Shape {
  int64_t n;
  int64_t k;
};

}  // namespace jevons

// For tests of single ops: tensors between guard zones, and the comparison of a backend with the
// plain twin. The same cases run for the CPU backend and, compiled with JEVONS_TEST_CUDA, for the
// CUDA backend on a device or under the emulator.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "gtest/gtest.h"
#include "ops/backend.h"
#include "tests/support/test_backend.h"
#ifdef JEVONS_TEST_CUDA
#include "tests/support/staged_backend.h"
#endif

namespace jevons {

// A float that a backend which computes with bf16 gets as the twin gets it.
inline float TestValue(double value) {
  const float exact = static_cast<float>(value);
  return kTestsCuda ? Bf16ToFloat(FloatToBf16(exact)) : exact;
}

// The tolerance of an op for the backend under test.
inline double Tolerance(double f32_activations, double bf16_activations) {
  return kTestsCuda ? bf16_activations : f32_activations;
}

// Owns a tensor. Its elements, the gaps between its rows and a guard zone on both sides start as
// bytes 0xFF, which are NaN in every float type and -1 as an integer. So what is read without
// having been written shows, and so does a write outside the elements.
class TestTensor {
 public:
  TestTensor() = default;  // absent
  // `gap` elements lie between the end of a row of the last two dimensions and the next.
  TestTensor(DType dtype, std::vector<int64_t> shape, int64_t gap = 0) {
    TensorView& v = view_;
    v.dtype = dtype;
    v.rank = static_cast<int32_t>(shape.size());
    int64_t next = 1;
    for (int i = v.rank - 1; i >= 0; --i) {
      v.shape[i] = shape[i];
      v.stride[i] = next;
      next = next * shape[i] + (i > 0 ? gap : 0);
    }
    const int64_t room = v.rank == 0 ? 0 : v.stride[0] * v.shape[0];
    bytes_.assign(2 * kGuardBytes + room * DTypeBytes(dtype), 0xFF);
  }

  bool present() const { return !bytes_.empty(); }
  int64_t size() const { return present() ? view_.num_elements() : 0; }
  TensorView view() const {
    TensorView v = view_;
    if (present()) v.data = const_cast<uint8_t*>(bytes_.data()) + kGuardBytes;
    return v;
  }

  // Element by its index in row-major order, gaps not counted.
  template <typename T>
  T& at(int64_t index) {
    return *reinterpret_cast<T*>(bytes_.data() + kGuardBytes + Offset(index) * sizeof(T));
  }
  template <typename T>
  const T& at(int64_t index) const {
    return const_cast<TestTensor*>(this)->at<T>(index);
  }
  // Any float type as double; integers as they are.
  double Value(int64_t index) const;

  TestTensor& FillNormal(Random& random, double sigma = 1);
  template <typename T>
  TestTensor& Fill(const std::vector<T>& values) {
    EXPECT_EQ(static_cast<int64_t>(values.size()), size());
    for (int64_t i = 0; i < size(); ++i) at<T>(i) = values[i];
    return *this;
  }

  // Every byte that is no element's is still 0xFF.
  bool GuardsIntact() const;
  // The elements, one after the other.
  std::vector<uint8_t> ElementBytes() const;

 private:
  static constexpr int64_t kGuardBytes = 64;

  int64_t Offset(int64_t index) const {
    int64_t offset = 0;
    for (int i = view_.rank - 1; i >= 0; --i) {
      offset += index % view_.shape[i] * view_.stride[i];
      index /= view_.shape[i];
    }
    return offset;
  }

  TensorView view_;
  std::vector<uint8_t> bytes_;
};

inline TestTensor NormalTensor(Random& random, std::vector<int64_t> shape, int64_t gap = 0,
                               double sigma = 1) {
  TestTensor out(DType::kF32, std::move(shape), gap);
  out.FillNormal(random, sigma);
  return out;
}

inline TestTensor IntTensor(const std::vector<int32_t>& values) {
  TestTensor out(DType::kI32, {static_cast<int64_t>(values.size())});
  out.Fill(values);
  return out;
}

inline double TestTensor::Value(int64_t index) const {
  switch (view_.dtype) {
    case DType::kF32:
      return at<float>(index);
    case DType::kF16:
      return F16ToFloat(at<uint16_t>(index));
    case DType::kBF16:
      return Bf16ToFloat(at<uint16_t>(index));
    case DType::kF8E4M3:
      return F8E4M3ToFloat(at<uint8_t>(index));
    case DType::kI32:
      return at<int32_t>(index);
    case DType::kI64:
      return static_cast<double>(at<int64_t>(index));
    case DType::kU8:
      return at<uint8_t>(index);
  }
  return NAN;
}

inline TestTensor& TestTensor::FillNormal(Random& random, double sigma) {
  for (int64_t i = 0; i < size(); ++i) {
    const double value = random.Normal() * sigma;
    if (view_.dtype == DType::kF32) {
      at<float>(i) = TestValue(value);
    } else if (view_.dtype == DType::kBF16) {
      at<uint16_t>(i) = FloatToBf16(static_cast<float>(value));
    } else if (view_.dtype == DType::kF16) {
      // Sign, an exponent around 1 and any mantissa.
      const uint64_t bits = random.Bits();
      const uint64_t mask = kTestsCuda ? 0x83F8 : 0x83FF;
      at<uint16_t>(i) = static_cast<uint16_t>((bits & mask) | ((11 + bits / 65536 % 5) << 10));
    } else {
      // Any f8 but NaN.
      const uint8_t bits = static_cast<uint8_t>(random.Bits());
      at<uint8_t>(i) = (bits & 0x7F) == 0x7F ? static_cast<uint8_t>(bits - 1) : bits;
    }
  }
  return *this;
}

inline bool TestTensor::GuardsIntact() const {
  std::vector<uint8_t> rest = bytes_;
  const int64_t width = DTypeBytes(view_.dtype);
  for (int64_t i = 0; i < size(); ++i) {
    std::memset(rest.data() + kGuardBytes + Offset(i) * width, 0xFF, static_cast<size_t>(width));
  }
  for (uint8_t byte : rest) {
    if (byte != 0xFF) return false;
  }
  return true;
}

inline std::vector<uint8_t> TestTensor::ElementBytes() const {
  const int64_t width = DTypeBytes(view_.dtype);
  std::vector<uint8_t> out(static_cast<size_t>(size() * width));
  for (int64_t i = 0; i < size(); ++i) {
    std::memcpy(out.data() + i * width, bytes_.data() + kGuardBytes + Offset(i) * width,
                static_cast<size_t>(width));
  }
  return out;
}

// The largest error that element i of an output may have against fp64.
using ErrorBound = std::function<double(int64_t i, double want)>;

inline ErrorBound Exact() {
  return [](int64_t, double) { return 0.0; };
}
inline ErrorBound Relative(double tolerance, double absolute = 0) {
  return [=](int64_t, double want) { return tolerance * std::abs(want) + absolute; };
}

// The same places of NaN and infinity, and elsewhere an error within the bound, and within `step`
// of the value: a step of the type that the result was rounded to.
inline void ExpectWithin(const TestTensor& got, const TestTensor& want, const ErrorBound& bound,
                         double step = 6e-8) {
  ASSERT_EQ(got.size(), want.size());
  int num_wrong = 0;
  for (int64_t i = 0; i < got.size() && num_wrong < 3; ++i) {
    const double g = got.Value(i);
    const double w = want.Value(i);
    if (std::isnan(w) && std::isnan(g)) continue;
    if (std::isinf(w) && g == w) continue;
    const double limit = bound(i, w) + (bound(i, w) == 0 ? 0 : step * std::abs(w));
    if (std::abs(g - w) <= limit) continue;
    ++num_wrong;
    ADD_FAILURE() << "element " << i << " of " << want.view().ToString() << ": got " << g
                  << ", want " << w << ", error " << g - w << " against " << limit;
  }
}

inline void ExpectSameBits(const TestTensor& a, const TestTensor& b) {
  EXPECT_EQ(a.size(), b.size());
  EXPECT_TRUE(a.ElementBytes() == b.ElementBytes()) << a.view().ToString();
}

// Largest relative error of rounding to bf16.
inline constexpr double kBf16Step = 0x1p-8;

// Of every random tensor in the op tests.
inline constexpr uint64_t kOpTestSeed = 20240611;

// What an op wrote, with how exact each must be.
struct Outputs {
  std::vector<TestTensor> tensors;
  std::vector<ErrorBound> bounds;
};

// The plain twin and the backend under test: with one and with two threads on the CPU, with results
// in f32 and in bf16 on CUDA.
class OpTest : public ::testing::Test {
 protected:
  void SetUp() override {
    SKIP_WITHOUT_TEST_BACKEND();
    std::printf("seed %llu\n", static_cast<unsigned long long>(kOpTestSeed));
    reference_ = CreateReferenceBackend();
#ifdef JEVONS_TEST_CUDA
    const auto staged = [](DType out) {
      return std::make_unique<StagedBackend>(MakeTestBackend(), out);
    };
    one_thread_ = staged(DType::kF32);
    two_threads_ = staged(DType::kF32);
    bf16_out_ = staged(DType::kBF16);
#else
    const CpuTarget target = *ParseCpuTarget(TestCpuTarget());
    one_thread_ = *CreateCpuBackend({.num_threads = 1, .target = target});
    two_threads_ = *CreateCpuBackend({.num_threads = 2, .target = target});
#endif
  }

  // `run` makes the inputs, always the same, runs the op on the backend and returns what it wrote.
  // Checks the fast backend against the twin, a second run and a run with two threads for equal
  // bits, and the guard zones.
  void CheckAgainstTwin(const std::function<Outputs(Backend&)>& run) {
    const Outputs want = run(*reference_);
    const Outputs got = run(*one_thread_);
    const Outputs again = run(*one_thread_);
    const Outputs threads = run(*two_threads_);
    for (size_t i = 0; i < want.tensors.size(); ++i) {
      SCOPED_TRACE("output " + std::to_string(i));
      ExpectWithin(got.tensors[i], want.tensors[i], want.bounds[i]);
      ExpectSameBits(got.tensors[i], again.tensors[i]);
      ExpectSameBits(got.tensors[i], threads.tensors[i]);
      EXPECT_TRUE(want.tensors[i].GuardsIntact());
      EXPECT_TRUE(got.tensors[i].GuardsIntact());
      EXPECT_TRUE(threads.tensors[i].GuardsIntact());
    }
    if (bf16_out_ == nullptr) return;
    const Outputs rounded = run(*bf16_out_);
    for (size_t i = 0; i < want.tensors.size(); ++i) {
      SCOPED_TRACE("output " + std::to_string(i) + " in bf16");
      ExpectWithin(rounded.tensors[i], want.tensors[i], want.bounds[i], kBf16Step);
      EXPECT_TRUE(rounded.tensors[i].GuardsIntact());
    }
  }

  std::unique_ptr<Backend> reference_;
  std::unique_ptr<Backend> one_thread_;
  std::unique_ptr<Backend> two_threads_;
  std::unique_ptr<Backend> bf16_out_;  // null on the CPU
};

}  // namespace jevons

// A CUDA backend on the emulated device, and what tests of it share.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cuda/cuda_backend.h"
#include "tests/cuda_emu/tests/emu_test.h"
#include "tests/support/op_test.h"
#include "tests/support/status_matchers.h"

namespace jevons {

inline TensorView Bytes(void* data, int64_t size) { return TensorView(data, DType::kU8, {size}); }
inline TensorView Bytes(std::vector<uint8_t>& host) {
  return Bytes(host.data(), static_cast<int64_t>(host.size()));
}

// Every test ends with nothing of the runtime left, which EmuTest checks.
// How a weight is stored and what its products read.
struct StoredAs {
  DType dtype = DType::kBF16;
  ActivationPrecision input = ActivationPrecision::kExact;

  bool rounds_input() const { return input == ActivationPrecision::kFp8; }
  std::string name() const {
    return std::string(DTypeName(dtype)) + (rounds_input() ? " of rounded rows" : "");
  }
};
inline constexpr StoredAs kStoredAs[] = {{DType::kBF16, ActivationPrecision::kExact},
                                         {DType::kF8E4M3, ActivationPrecision::kExact},
                                         {DType::kF8E4M3, ActivationPrecision::kFp8}};

class CudaBackendTest : public emu::EmuTest {
 protected:
  CudaBackendTest() { backend_ = Create({}); }

  static std::unique_ptr<Backend> Create(const CudaBackendOptions& options) {
    auto backend = CreateCudaBackend(options);
    EXPECT_TRUE(backend.ok()) << backend.status();
    return *std::move(backend);
  }

  std::unique_ptr<Buffer> Allocate(int64_t bytes) {
    auto buffer = backend_->Allocate(bytes);
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    return *std::move(buffer);
  }
  DeviceTensor Upload(const TestTensor& host) {
    auto out = backend_->Upload(host.view());
    EXPECT_TRUE(out.ok()) << out.status();
    return *std::move(out);
  }
  DeviceTensor Normal(DType dtype, std::vector<int64_t> shape) {
    return Upload(TestTensor(dtype, std::move(shape)).FillNormal(random_));
  }
  std::unique_ptr<Weight> Pack(Backend& backend, std::vector<std::vector<int64_t>> parts, int64_t k,
                               WeightUse use = WeightUse::kPlain) {
    std::vector<TestTensor> tensors;
    WeightSpec spec;
    spec.use = use;
    for (const std::vector<int64_t>& rows : parts) {
      auto& group = spec.groups.emplace_back();
      for (int64_t n : rows) {
        tensors.push_back(TestTensor(DType::kBF16, {n, k}).FillNormal(random_));
        group.push_back({tensors.back().view(), {}});
      }
    }
    auto weight = backend.PackWeight(spec);
    EXPECT_TRUE(weight.ok()) << weight.status();
    return *std::move(weight);
  }
  std::vector<uint8_t> ReadBack(const TensorView& device) {
    const int64_t size = device.num_elements() * DTypeBytes(device.dtype);
    std::vector<uint8_t> out(static_cast<size_t>(size), 0xCC);
    const absl::Status status = backend_->Read(Bytes(out), Bytes(device.data, size));
    EXPECT_TRUE(status.ok()) << status;
    return out;
  }

  std::unique_ptr<Backend> backend_;
  Random random_{kOpTestSeed};
};

}  // namespace jevons

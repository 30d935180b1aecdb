// Which backend a test is for. The same sources run for the CPU and, compiled with JEVONS_TEST_CUDA,
// for CUDA on a device or under the emulator.
#pragma once

#include <memory>

#include "cpu/cpu_backend.h"
#include "gtest/gtest.h"
#include "tests/support/cpu_target.h"
#ifdef JEVONS_TEST_CUDA
#include "cuda/cuda_backend.h"
#endif

namespace jevons {

#ifdef JEVONS_TEST_CUDA
inline constexpr bool kTestsCuda = true;
inline bool HasTestBackend() { return NumCudaDevices() > 0; }
inline std::unique_ptr<Backend> MakeTestBackend(int32_t device = 0) {
  auto backend = CreateCudaBackend({.device = device});
  EXPECT_TRUE(backend.ok()) << backend.status();
  return *std::move(backend);
}
#define SKIP_WITHOUT_TEST_BACKEND() \
  if (!::jevons::HasTestBackend()) GTEST_SKIP() << "needs a CUDA device"
#else
inline constexpr bool kTestsCuda = false;
inline std::unique_ptr<Backend> MakeTestBackend(int32_t /*device*/ = 0) {
  const auto target = ParseCpuTarget(TestCpuTarget());
  EXPECT_TRUE(target.ok()) << target.status();
  auto backend = CreateCpuBackend({.num_threads = 2, .target = *target});
  EXPECT_TRUE(backend.ok()) << backend.status();
  return *std::move(backend);
}
#define SKIP_WITHOUT_TEST_BACKEND() SKIP_WITHOUT_CPU_TARGET()
#endif

}  // namespace jevons

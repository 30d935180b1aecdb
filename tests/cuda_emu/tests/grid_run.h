// Runs a function as the kernel of a grid.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "tests/cuda_emu/emulator.h"

namespace jevons::emu {

// Where ThreadSanitizer would report what a test does wrong on purpose.
#if defined(__SANITIZE_THREAD__)
inline constexpr bool kTsan = true;
#elif defined(__has_feature)
inline constexpr bool kTsan = __has_feature(thread_sanitizer);
#else
inline constexpr bool kTsan = false;
#endif

struct Shape {
  int block = 32;
  int smem_bytes = 0;
  dim3 grid = dim3(1);
};

// The misuse that the run reported, or "".
inline std::string Misused(const Shape& shape, const std::function<void()>& kernel) {
  TakeMisuses(true);
  LastMisuse();
  const GridSpec spec{.kernel = "TestKernel",
                      .grid = shape.grid,
                      .block = shape.block,
                      .smem_bytes = shape.smem_bytes};
  const cudaError_t error = RunGrid(spec, kernel);
  const std::string misuse = LastMisuse();
  TakeMisuses(false);
  EXPECT_EQ(error == cudaSuccess, misuse.empty()) << misuse;
  return misuse;
}

inline void RunKernel(const Shape& shape, const std::function<void()>& kernel) {
  EXPECT_EQ(Misused(shape, kernel), "");
}

// Runs `test` with so many seeds.
inline void ForSeeds(int num, const std::function<void()>& test) {
  const uint64_t before = Seed();
  for (int i = 0; i < num; ++i) {
    SCOPED_TRACE("seed " + std::to_string(100 + i));
    SetSeed(static_cast<uint64_t>(100 + i));
    test();
  }
  SetSeed(before);
}

}  // namespace jevons::emu

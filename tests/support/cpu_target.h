// The CPU target that a test run is for: tests are registered once for each, through
// JEVONS_CPU_TARGET.
#pragma once

#include <cstdlib>
#include <string>

#include "cpu/cpu_backend.h"
#include "gtest/gtest.h"

namespace jevons {

// Empty: the best of this machine.
inline std::string TestCpuTarget() {
  const char* target = std::getenv("JEVONS_CPU_TARGET");
  return target == nullptr ? "" : target;
}

inline bool HasTestCpuTarget() {
  const auto target = ParseCpuTarget(TestCpuTarget());
  return target.ok() && CreateCpuBackend({.num_threads = 1, .target = *target}).ok();
}

// A target that the machine lacks is a skip, not a pass.
#define SKIP_WITHOUT_CPU_TARGET()    \
  if (!::jevons::HasTestCpuTarget()) \
  GTEST_SKIP() << "needs a CPU with " << ::jevons::TestCpuTarget()

}  // namespace jevons

#include "cpu/cpu_target.h"

#include <string>

#include "cpu/usable_cpus.h"
#include "gtest/gtest.h"

namespace jevons {
namespace {

TEST(CpuTargetTest, NamesAreParsedAndOthersRefused) {
  EXPECT_EQ(*ParseCpuTarget(""), CpuTarget::kBest);
  EXPECT_EQ(*ParseCpuTarget("baseline"), CpuTarget::kBaseline);
  EXPECT_EQ(*ParseCpuTarget("avx2"), CpuTarget::kAvx2);
  EXPECT_EQ(*ParseCpuTarget("avx512"), CpuTarget::kAvx512);
  const auto wrong = ParseCpuTarget("avx9");
  EXPECT_EQ(wrong.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(wrong.status().message()).find("avx9"), std::string::npos);
}

TEST(CpuTargetTest, BackendSaysWhichTargetItUses) {
  auto baseline = CreateCpuBackend({.num_threads = 2, .target = CpuTarget::kBaseline});
  ASSERT_TRUE(baseline.ok());
  EXPECT_EQ((*baseline)->Description(), "cpu (baseline, 2 threads)");
  auto best = CreateCpuBackend({.num_threads = 1});
  ASSERT_TRUE(best.ok());
  EXPECT_NE((*best)->Description().find("1 thread)"), std::string::npos);
}

TEST(CpuTargetTest, RefusedTargetChangesNothing) {
  ASSERT_TRUE(UseCpuTarget(CpuTarget::kBaseline).ok());
  if (UseCpuTarget(CpuTarget::kAvx512).ok()) GTEST_SKIP() << "needs a CPU without avx512";
  EXPECT_EQ(CpuTargetName(), "baseline");
}

TEST(CpuTargetTest, ThreadCountOutOfRangeIsRefused) {
  for (int32_t num_threads : {-1, 1025}) {
    const auto backend = CreateCpuBackend({.num_threads = num_threads});
    EXPECT_EQ(backend.status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(UsableCpusTest, AtLeastOne) { EXPECT_GE(UsableCpus(), 1); }

}  // namespace
}  // namespace jevons

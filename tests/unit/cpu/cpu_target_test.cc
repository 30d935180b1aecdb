#include "cpu/cpu_target.h"

#include <filesystem>
#include <fstream>
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

// A folder like /proc/self with a mounted hierarchy beside it.
class CgroupTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = ::testing::TempDir() + "/cgroup_test_" +
            ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(root_);
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) {
    const std::filesystem::path full = root_ + "/" + path;
    std::filesystem::create_directories(full.parent_path());
    std::ofstream(full) << text;
  }
  std::string V2Mount(const std::string& root) {
    return "30 20 0:26 " + root + " " + root_ + "/v2 rw shared:9 - cgroup2 cgroup2 rw\n";
  }
  std::string V1Mount(const std::string& root) {
    return "31 20 0:27 " + root + " " + root_ + "/v1 rw - cgroup cgroup rw,cpu,cpuacct\n";
  }
  int32_t Limit() { return CgroupCpuLimit(root_ + "/self"); }

  std::string root_;
};

TEST_F(CgroupTest, NoFilesMeanNoLimit) { EXPECT_EQ(Limit(), 0); }

TEST_F(CgroupTest, SmallestV2QuotaOnThePathIsRoundedUp) {
  Write("self/mountinfo", V2Mount("/"));
  Write("self/cgroup", "0::/a/b\n");
  Write("v2/a/b/cpu.max", "max 100000\n");
  EXPECT_EQ(Limit(), 0);
  Write("v2/a/cpu.max", "250000 100000\n");
  EXPECT_EQ(Limit(), 3);
  Write("v2/a/b/cpu.max", "400000 100000\n");
  EXPECT_EQ(Limit(), 3);
  Write("v2/a/b/cpu.max", "1000 100000\n");
  EXPECT_EQ(Limit(), 1);
}

TEST_F(CgroupTest, V1QuotaCountsOnlyWhereItIsSet) {
  Write("self/mountinfo", "28 20 0:2 / /x rw - cgroup cgroup rw,memory\n" + V1Mount("/"));
  Write("self/cgroup", "5:memory:/m\n4:cpu,cpuacct:/c\n");
  Write("v1/c/cpu.cfs_quota_us", "-1\n");
  Write("v1/c/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(Limit(), 0);
  Write("v1/c/cpu.cfs_quota_us", "600000\n");
  EXPECT_EQ(Limit(), 6);
}

TEST_F(CgroupTest, MountedPartOfAHierarchyIsCutFromThePath) {
  Write("self/mountinfo", V2Mount("/docker/x"));
  Write("self/cgroup", "0::/docker/x/inner\n");
  Write("v2/cpu.max", "500000 100000\n");
  Write("v2/inner/cpu.max", "200000 100000\n");
  EXPECT_EQ(Limit(), 2);
  Write("self/cgroup", "0::/elsewhere\n");
  EXPECT_EQ(Limit(), 5);
}

TEST_F(CgroupTest, GarbageIsNoLimit) {
  Write("self/mountinfo", "nonsense\n1 2 3\n - - - -\n" + V2Mount("/"));
  Write("self/cgroup", "x\n:\n0::\n");
  Write("v2/cpu.max", "-5 abc\n");
  EXPECT_EQ(Limit(), 0);
}

TEST(UsableCpusTest, AtLeastOne) { EXPECT_GE(UsableCpus(), 1); }

}  // namespace
}  // namespace jevons

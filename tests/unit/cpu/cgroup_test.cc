#include "cpu/cgroup.h"

#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

#include "cpu/available_memory.h"
#include "cpu/usable_cpus.h"
#include "gtest/gtest.h"

namespace jevons {
namespace {

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
  std::string V1MemoryMount() {
    return "32 20 0:28 / " + root_ + "/m1 rw - cgroup cgroup rw,memory\n";
  }
  int64_t MemoryLeft() { return CgroupMemoryLeft(root_ + "/self"); }
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

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

TEST_F(CgroupTest, NoFilesMeanNoLimitOfMemory) { EXPECT_EQ(MemoryLeft(), kNoLimit); }

TEST_F(CgroupTest, SmallestV2MemoryOnThePathIsLeftAndTheCacheCountsAsLeft) {
  Write("self/mountinfo", V2Mount("/"));
  Write("self/cgroup", "0::/a/b\n");
  Write("v2/a/b/memory.max", "max\n");
  Write("v2/a/b/memory.current", "700\n");
  EXPECT_EQ(MemoryLeft(), kNoLimit);
  // A limit of the parent alone.
  Write("v2/a/memory.max", "1000\n");
  Write("v2/a/memory.current", "900\n");
  EXPECT_EQ(MemoryLeft(), 100);
  Write("v2/a/memory.stat", "anon 400\nfile 500\ninactive_file 300\nactive_file 150\n");
  EXPECT_EQ(MemoryLeft(), 550);
  Write("v2/a/b/memory.max", "701\n");
  EXPECT_EQ(MemoryLeft(), 1);
  Write("v2/a/b/memory.max", "600\n");
  EXPECT_EQ(MemoryLeft(), 0);
}

TEST_F(CgroupTest, V1MemoryCountsWhatIsBelowItToo) {
  Write("self/mountinfo", V1Mount("/") + V1MemoryMount());
  Write("self/cgroup", "5:memory:/m\n4:cpu,cpuacct:/c\n");
  Write("m1/memory.limit_in_bytes", "9223372036854771712\n");
  Write("m1/m/memory.limit_in_bytes", "5000\n");
  Write("m1/m/memory.usage_in_bytes", "4000\n");
  Write("m1/m/memory.stat", "inactive_file 1\ntotal_inactive_file 20\ntotal_active_file 3\n");
  EXPECT_EQ(MemoryLeft(), 1023);
}

TEST_F(CgroupTest, GarbageIsNoLimitOfMemory) {
  Write("self/mountinfo", V2Mount("/"));
  Write("self/cgroup", "0::/\n");
  Write("v2/memory.max", "a lot\n");
  EXPECT_EQ(MemoryLeft(), kNoLimit);
  Write("v2/memory.max", "-3\n");
  EXPECT_EQ(MemoryLeft(), kNoLimit);
}

TEST(AvailableMemoryTest, IsAboveZero) { EXPECT_GT(AvailableMemory(), 0); }

}  // namespace
}  // namespace jevons

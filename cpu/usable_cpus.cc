#include "cpu/usable_cpus.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <thread>

#include "cpu/cgroup.h"
#include "cpu/cpu_backend.h"

namespace jevons {
namespace {

// Above this a quota limits nothing.
constexpr double kMaxCpus = 1 << 20;

bool ReadNumber(const std::string& path, double* out) {
  std::ifstream in(path);
  return static_cast<bool>(in >> *out);
}

// CPUs that one folder allows; 0 for no limit.
double FolderQuota(const CgroupFolder& folder) {
  double quota = 0;
  double period = 0;
  if (folder.v2) {
    std::ifstream in(folder.path + "/cpu.max");
    if (!(in >> quota >> period)) return 0;
  } else if (!ReadNumber(folder.path + "/cpu.cfs_quota_us", &quota) ||
             !ReadNumber(folder.path + "/cpu.cfs_period_us", &period)) {
    return 0;
  }
  return quota > 0 && period > 0 ? std::min(quota / period, kMaxCpus) : 0;
}

}  // namespace

int32_t CgroupCpuLimit(const std::string& proc_self) {
  double smallest = 0;
  for (const CgroupFolder& folder : CgroupFolders(proc_self, "cpu")) {
    const double quota = FolderQuota(folder);
    if (quota > 0 && (smallest == 0 || quota < smallest)) smallest = quota;
  }
  return static_cast<int32_t>(std::ceil(smallest));
}

int32_t UsableCpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int32_t count = static_cast<int32_t>(std::thread::hardware_concurrency());
  if (sched_getaffinity(0, sizeof(set), &set) == 0) count = CPU_COUNT(&set);
  count = std::max(count, 1);
  const int32_t limit = CgroupCpuLimit("/proc/self");
  return limit > 0 ? std::min(count, limit) : count;
}

}  // namespace jevons

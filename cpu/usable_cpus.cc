#include "cpu/usable_cpus.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <string_view>
#include <thread>
#include <vector>

#include "cpu/cpu_backend.h"

namespace jevons {
namespace {

// Above this a quota limits nothing.
constexpr double kMaxCpus = 1 << 20;

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> out;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, separator);) out.push_back(part);
  return out;
}

bool Contains(const std::vector<std::string>& list, std::string_view wanted) {
  return std::find(list.begin(), list.end(), wanted) != list.end();
}

bool ReadNumber(const std::string& path, double* out) {
  std::ifstream in(path);
  return static_cast<bool>(in >> *out);
}

// CPUs that one folder of a hierarchy allows; 0 for no limit.
double FolderQuota(const std::string& folder, bool v2) {
  double quota = 0;
  double period = 0;
  if (v2) {
    std::ifstream in(folder + "/cpu.max");
    if (!(in >> quota >> period)) return 0;
  } else if (!ReadNumber(folder + "/cpu.cfs_quota_us", &quota) ||
             !ReadNumber(folder + "/cpu.cfs_period_us", &period)) {
    return 0;
  }
  return quota > 0 && period > 0 ? std::min(quota / period, kMaxCpus) : 0;
}

struct CgroupMount {
  bool v2 = false;
  std::string root;   // the part of the hierarchy that is mounted
  std::string point;  // where
};

// A line of mountinfo: id parent device root point options [more] - type source super_options
bool ParseMount(const std::string& line, CgroupMount* out) {
  const std::vector<std::string> fields = Split(line, ' ');
  const auto dash = std::find(fields.begin(), fields.end(), "-");
  if (fields.size() < 6 || fields.end() - dash < 4) return false;
  out->root = fields[3];
  out->point = fields[4];
  out->v2 = dash[1] == "cgroup2";
  return out->v2 || (dash[1] == "cgroup" && Contains(Split(dash[3], ','), "cpu"));
}

// The process's folder below the mount; empty for the mount itself. A path outside of the mounted
// part belongs to another namespace: then the mount is all that can be seen.
std::string PathBelow(const CgroupMount& mount, const std::string& path) {
  if (mount.root == "/") return path == "/" ? "" : path;
  const size_t length = mount.root.size();
  const bool inside =
      path.compare(0, length, mount.root) == 0 && (path.size() == length || path[length] == '/');
  return inside ? path.substr(length) : "";
}

// A line of cgroup: id:controllers:path, the controllers of v2 being empty.
bool ParsePath(const std::string& line, bool v2, std::string* path) {
  const size_t first = line.find(':');
  const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
  if (second == std::string::npos) return false;
  const std::string controllers = line.substr(first + 1, second - first - 1);
  *path = line.substr(second + 1);
  return v2 ? controllers.empty() : Contains(Split(controllers, ','), "cpu");
}

std::string ProcessPath(const std::string& proc_self, bool v2) {
  std::ifstream in(proc_self + "/cgroup");
  for (std::string line, path; std::getline(in, line);) {
    if (ParsePath(line, v2, &path)) return path;
  }
  return "/";
}

// The smallest quota from the process's folder up to the mount.
double SmallestQuota(const CgroupMount& mount, std::string below) {
  double smallest = 0;
  while (true) {
    const double quota = FolderQuota(mount.point + below, mount.v2);
    if (quota > 0 && (smallest == 0 || quota < smallest)) smallest = quota;
    if (below.empty()) return smallest;
    below.resize(std::min(below.rfind('/'), below.size() - 1));
  }
}

}  // namespace

int32_t CgroupCpuLimit(const std::string& proc_self) {
  double smallest = 0;
  std::ifstream in(proc_self + "/mountinfo");
  for (std::string line; std::getline(in, line);) {
    CgroupMount mount;
    if (!ParseMount(line, &mount)) continue;
    const double quota = SmallestQuota(mount, PathBelow(mount, ProcessPath(proc_self, mount.v2)));
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

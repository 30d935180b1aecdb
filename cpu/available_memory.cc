#include "cpu/available_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>

#include "cpu/cgroup.h"

namespace jevons {
namespace {

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

int64_t ReadNumber(const std::string& path, int64_t otherwise) {
  std::ifstream in(path);
  int64_t value = 0;
  return in >> value ? value : otherwise;
}

int64_t MemAvailable() {
  std::ifstream in("/proc/meminfo");
  std::string key;
  int64_t kib = 0;
  std::string unit;
  while (in >> key >> kib) {
    if (key == "MemAvailable:") return kib * 1024;
    std::getline(in, unit);
  }
  return 0;
}

// Bytes of file pages that a folder's group and those below it hold in the cache.
int64_t CachedBytes(const CgroupFolder& folder) {
  const std::string prefix = folder.v2 ? "" : "total_";
  std::ifstream in(folder.path + "/memory.stat");
  int64_t bytes = 0;
  std::string key;
  for (int64_t value = 0; in >> key >> value;) {
    if (key == prefix + "active_file" || key == prefix + "inactive_file") bytes += value;
  }
  return bytes;
}

int64_t FolderLeft(const CgroupFolder& folder) {
  const bool v2 = folder.v2;
  // In v2 no limit is the word max, in v1 the largest number of whole pages.
  const int64_t limit =
      ReadNumber(folder.path + (v2 ? "/memory.max" : "/memory.limit_in_bytes"), kNoLimit);
  if (limit < 0 || limit > kNoLimit / 2) return kNoLimit;
  const int64_t used =
      ReadNumber(folder.path + (v2 ? "/memory.current" : "/memory.usage_in_bytes"), 0);
  return std::clamp<int64_t>(limit - used + CachedBytes(folder), 0, limit);
}

}  // namespace

int64_t CgroupMemoryLeft(const std::string& proc_self) {
  int64_t left = kNoLimit;
  for (const CgroupFolder& folder : CgroupFolders(proc_self, "memory")) {
    left = std::min(left, FolderLeft(folder));
  }
  return left;
}

int64_t AvailableMemory() {
  return std::min(MemAvailable(), std::max<int64_t>(CgroupMemoryLeft("/proc/self"), 1));
}

}  // namespace jevons

// What this process uses, from /proc/self.
#pragma once

#include <fstream>
#include <string>

namespace jevons {

// The number after `key`, e.g. "VmRSS:" in KiB or "Threads:"; -1 if it is not there.
inline long ProcSelf(const std::string& key) {
  std::ifstream in("/proc/self/status");
  std::string word;
  while (in >> word) {
    if (word != key) continue;
    long value = -1;
    in >> value;
    return value;
  }
  return -1;
}

}  // namespace jevons

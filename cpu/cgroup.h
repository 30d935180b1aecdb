// The control groups that a process is in.
#pragma once

#include <string>
#include <vector>

namespace jevons {

struct CgroupFolder {
  std::string path;
  bool v2 = false;
};

// Those whose limits hold for the process, in v2 and for a controller of v1 ("cpu", "memory"): from its
// own up to the top of what is mounted. `proc_self` is /proc/self, or a folder with files of the same
// form.
std::vector<CgroupFolder> CgroupFolders(const std::string& proc_self,
                                        const std::string& controller);

}  // namespace jevons

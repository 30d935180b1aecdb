// How many CPUs the control groups leave to a process.
#pragma once

#include <cstdint>
#include <string>

namespace jevons {

// The smallest CPU quota on the process's path through cgroup v2 and v1, in CPUs, rounded up; 0
// where there is none. `proc_self` is /proc/self, or a folder with files of the same form.
int32_t CgroupCpuLimit(const std::string& proc_self);

}  // namespace jevons

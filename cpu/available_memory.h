// How much memory is left to a process.
#pragma once

#include <cstdint>
#include <string>

namespace jevons {

// Bytes that can still be used, by what the system says is available to new programs and by the limits
// of the process's control groups; 0 where the system does not say.
int64_t AvailableMemory();

// The smallest that the control groups on the process's path leave, v1 and v2; at least 0, and INT64_MAX
// where none has a limit. Cached pages of files count as left: they give way. `proc_self` is /proc/self,
// or a folder with files of the same form.
int64_t CgroupMemoryLeft(const std::string& proc_self);

}  // namespace jevons

// The instruction set that the vector code of this process uses.
#pragma once

#include <string_view>

#include "base/status.h"
#include "cpu/cpu_backend.h"

namespace jevons {

// All vector code of the process uses `target` from the next op on; no op may be running.
// FAILED_PRECONDITION if the machine lacks it, and nothing changes.
absl::Status UseCpuTarget(CpuTarget target);

// "baseline", "avx2" or "avx512": what ops use now.
std::string_view CpuTargetName();

}  // namespace jevons

// What the card does at best: measured before everything else, in the same run.
#pragma once

#include <functional>
#include <string>

#include "base/status.h"
#include "bench/cuda_report.h"

namespace jevons {

// Name, compute capability, memory, clocks, versions of driver and runtime: rows of the report.
absl::Status ReportDevice(CudaReport& report);

// `tiny`: sizes for an emulator; the numbers mean nothing then. A ceiling that cannot be measured
// is said so in the report and stays 0.
absl::Status MeasureCeilings(bool tiny, CudaReport& report);

}  // namespace jevons

// Errors of the CUDA runtime as a Status.
#pragma once

#include <cuda_runtime_api.h>

#include <string_view>

#include "base/status.h"

namespace jevons::cuda {

// OK, or RESOURCE_EXHAUSTED for a lack of memory, else INTERNAL: "what: the runtime's text".
absl::Status ToStatus(cudaError_t error, std::string_view what);

}  // namespace jevons::cuda

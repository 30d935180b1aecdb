// What a model would take of a device's memory, known before anything is loaded.
#pragma once

#include <string>

#include "base/status.h"
#include "engine/engine.h"

namespace jevons {

struct MemoryPlan {
  std::string device;
  int64_t device_bytes = 0;
  int64_t weight_bytes = 0;     // packed matrices, embedding, norms
  int64_t workspace_bytes = 0;  // of a step of max_num_batched_tokens, with all scratch
  int64_t moving_bytes = 0;     // in a group: for a layer's experts beside those that they replace
  int64_t reserve_bytes = 0;    // for the driver and recorded steps
  int64_t kv_bytes_per_token = 0;
  int64_t kv_cache_tokens = 0;  // that the rest holds; below 0: so many bytes are missing

  int64_t free_bytes() const {
    return device_bytes - weight_bytes - workspace_bytes - moving_bytes - reserve_bytes;
  }
};

// For the model folder of the options (config.json is enough; weights need not be there) and a
// device that FindCudaDeviceSpec knows. INVALID_ARGUMENT for an unknown device or options out of
// range; UNIMPLEMENTED in a build without CUDA.
absl::StatusOr<MemoryPlan> PlanMemory(const EngineOptions& options, std::string_view device);

// OK, or RESOURCE_EXHAUSTED: what is needed, what is there, and which flags would make it less.
absl::Status CheckFits(const MemoryPlan& plan, const EngineOptions& options);

}  // namespace jevons

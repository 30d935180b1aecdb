// What the scheduler is told of the engine's options and requests.
#pragma once

#include <cstdint>

#include "engine/engine.h"
#include "engine/generation.h"
#include "scheduler/scheduler.h"

namespace jevons {

SchedulerConfig MakeSchedulerConfig(const EngineOptions& options);

// Of a request that has passed ValidateGeneration; what it may give is cut to what fits.
Request MakeSchedulerRequest(uint64_t id, const GenerationRequest& request,
                             const GenerationLimits& limits);

}  // namespace jevons

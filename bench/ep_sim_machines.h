// Published and predicted figures for the simulator, each with its source beside it in the .cc and in
// docs/expert-parallel.md.
#pragma once

#include "bench/ep_sim_model.h"
#include "bench/model_shapes.h"

namespace jevons::ep_sim {

Gpu H100();
Gpu H200();
Gpu H800();  // an H100 with less NVLink

// Measured by others on such a GPU.
Kernels PublishedKernels(const Gpu& gpu);
// What docs/kernels/ predicts of this project's; none has run.
Kernels PredictedKernels();

// DeepEP's low-latency and normal kernels, and NCCL as parallel/ would use it.
Transport LowLatency();
Transport Forwarding();
Transport Nccl();

// e4m3 with a scale for 128 values.
inline constexpr double kFp8RowBytes = 1 + 4.0 / 128;

// Experts a rank, so that `redundancy` of them, or more, are replicas.
int32_t SlotsPerRank(const ModelConfig& config, int32_t num_ranks, double redundancy);

// Published kernels on num_ranks GPUs, DeepEP's low-latency exchange of bf16 rows, one for each
// choice, exact, two batches, an eighth of the experts twice, the busiest rank 15 % above the mean.
Deployment Baseline(const Gpu& gpu, int32_t num_ranks);

}  // namespace jevons::ep_sim

#include "bench/ep_sim_machines.h"

#include <cmath>

namespace jevons::ep_sim {
namespace {

constexpr double kTera = 1e12;
constexpr double kMicro = 1e-6;

}  // namespace

// read: what the best published kernels reach (3.05 and 4.26 TB/s in TensorRT-LLM's V3 experts),
// rounded down. Links: NVIDIA's data sheets, one direction; a 400 Gb/s adapter a GPU.
Gpu H100() {
  return {.name = "H100", .memory_bytes = 80e9, .read = 3.0 * kTera, .nvlink = 450e9, .rdma = 50e9};
}

Gpu H200() {
  return {
      .name = "H200", .memory_bytes = 141e9, .read = 4.3 * kTera, .nvlink = 450e9, .rdma = 50e9};
}

Gpu H800() {
  Gpu gpu = H100();
  gpu.name = "H800";
  gpu.nvlink = 200e9;
  return gpu;
}

Kernels PublishedKernels(const Gpu& gpu) {
  return {.name = "published",
          .linear = 1300 * kTera,  // block FP8, DeepGEMM in SGLang, 4,096 rows: 976 to 1,376
          .head = 800 * kTera,     // cuBLAS bf16: 734 to 813
          .grouped = (gpu.name == "H200" ? 754 : 648) * kTera,  // SGLang, V3, 16,384 tokens
          .mla_decode = 627 * kTera,   // TensorRT-LLM, 128 heads, 256 x 16k
          .mla_prefill = 544 * kTera,  // TensorRT-LLM, keys and values of each head, 1 x 4k
          .mla_floor = 17.1 * kMicro,  // its 1 x 1k, 17.6, less the work
          .boundary = 1.3 * kMicro,
          .num_launches = 10};  // vLLM, V3.2
}

Kernels PredictedKernels() {
  return {.name = "predicted",
          .read_share = 0.93,     // moe.md, V3, 256 tokens: floor 3,789 us, model 4,076
          .linear = 621 * kTera,  // moe.md: what L2 allows a tile of 192 x 128
          .head = 621 * kTera,
          .grouped = 777 * kTera,     // moe.md, V3, 16k tokens: 11.5 TFLOP in 14.9 ms
          .mla_decode = 560 * kTera,  // mla.md, 128 heads, 64 x 4k
          .mla_prefill = 590 * kTera,
          .absorbed_prefill = true,
          .mla_floor = 22 * kMicro,  // mla.md, 1 x 1k
          .boundary = 1.3 * kMicro,
          .num_launches = 16};
}

// efficiency: 39 of 50 GB/s with 128 and 256 ranks in DeepEP's own table; of NVLink 153 to 158 of
// 200 GB/s in its normal kernels.
Transport LowLatency() { return {.name = "low-latency", .efficiency = 0.78, .base = 10 * kMicro}; }

// 24 SMs: the example of its documentation. The host waits for the sizes.
Transport Forwarding() {
  return {.name = "forwarding",
          .efficiency = 0.78,
          .base = 10 * kMicro,
          .count = 40 * kMicro,
          .num_sms = 24};
}

// Not published for this use: all but the efficiency are assumptions.
Transport Nccl() {
  return {.name = "nccl",
          .efficiency = 0.78,
          .base = 20 * kMicro,
          .per_message = 0.5 * kMicro,
          .count = 40 * kMicro,
          .num_sms = 16};
}

int32_t SlotsPerRank(const ModelConfig& config, int32_t num_ranks, double redundancy) {
  return static_cast<int32_t>(
      std::ceil(config.n_routed_experts * (1 + redundancy) / num_ranks - 1e-9));
}

Deployment Baseline(const Gpu& gpu, int32_t num_ranks) {
  Deployment d;
  d.gpu = gpu;
  d.kernels = PublishedKernels(gpu);
  d.transport = LowLatency();
  d.num_ranks = num_ranks;
  d.slots_per_rank = SlotsPerRank(V3Shape(), num_ranks, 0.125);
  d.overlap = Overlap::kTwoBatches;
  d.shared_fills_gaps = true;
  d.imbalance = 1.15;
  return d;
}

}  // namespace jevons::ep_sim

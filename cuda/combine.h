// The end of the routed experts: what came back for a token is summed. Contracts: ops/moe.h.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/device_facts.h"
#include "cuda/element.h"
#include "cuda/rows.h"

namespace jevons::cuda {

// What    out[t] = sum_j weights[t, j] * expert_out[token_row[t, j]], then + shared[t]
// Shapes  expert_out [num_rows, hidden] f32 or bf16; weights f32, token_row i32 [num_tokens, top_k],
//         contiguous; shared [num_tokens, hidden] f32 or bf16, or null; out [num_tokens, hidden]
//         f32 or bf16
// Edge    choices whose row lies outside [0, num_rows) add nothing
// Order   the choices in order of j by fused multiply-adds from 0, shared last
struct ExpertCombineParams {
  const void* expert_out = nullptr;
  const float* weights = nullptr;
  const int32_t* token_row = nullptr;
  const void* shared = nullptr;
  void* out = nullptr;
  Element expert_type = Element::kBF16;
  Element shared_type = Element::kBF16;
  Element out_type = Element::kF32;
  int32_t num_tokens = 0;
  int32_t num_rows = 0;
  int32_t top_k = 0;
  int32_t hidden = 0;
  int64_t expert_stride = 0;
  int64_t shared_stride = 0;
  int64_t out_stride = 0;
};

struct CombinePlan {
  int32_t threads = 0;
  int32_t blocks_per_token = 0;
  bool whole = false;  // rows may be moved in units of 16 bytes
};

CombinePlan ChooseCombine(const ExpertCombineParams& params);
CombinePlan ChooseCombineAndNorm(const ExpertCombineParams& combine, const RmsNormParams& norm);

// Queues one kernel; no tokens is a success, f16 is cudaErrorInvalidValue.
cudaError_t LaunchExpertCombine(const ExpertCombineParams& params, const DeviceFacts& device,
                                cudaStream_t stream);

// RmsNorm with what ExpertCombine gives as its delta, bit for bit, in one kernel: combine.out and
// norm.delta are neither written nor read. For f32 sums and an f32 residual: CanCombineAndNorm.
bool CanCombineAndNorm(const ExpertCombineParams& combine, const RmsNormParams& norm);
cudaError_t LaunchCombineAndNorm(const ExpertCombineParams& combine, const RmsNormParams& norm,
                                 const DeviceFacts& device, cudaStream_t stream);

}  // namespace jevons::cuda

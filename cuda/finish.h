// The end of the experts of a very small step in one kernel: their last product, the sum of what
// they give, the residual and the next norm. Contract: FinishExperts in ops/moe.h.
#pragma once

#include <cuda_runtime.h>

#include "cuda/combine.h"
#include "cuda/device_facts.h"
#include "cuda/gemm.h"
#include "cuda/rows.h"

namespace jevons::cuda {

// What    the product `down`, then CombineAndNorm of its rows
// Shapes  down as GemmParams, out bf16, which combine.expert_out is; norm.out bf16; the others as
//         CanCombineAndNorm
// Order   the bits are those of the two kernels after each other
struct FinishParams {
  GemmParams down;
  ExpertCombineParams combine;
  RmsNormParams norm;
  int32_t* num_done = nullptr;  // i32 [1], 0 before the launch and after it
};

struct FinishPlan {
  GemmPlan gemm;       // num_blocks 0: no kernel takes this step
  bool whole = false;  // rows may be moved in units of 16 bytes
};

FinishPlan ChooseFinish(const FinishParams& params, const DeviceFacts& device);

// Queues one kernel; cudaErrorInvalidValue where ChooseFinish has none.
cudaError_t LaunchFinish(const FinishParams& params, const DeviceFacts& device,
                         cudaStream_t stream);

}  // namespace jevons::cuda

// A product and a norm of a small step in one kernel: the experts' last one, the sum of what they
// give, the residual and the next norm (FinishExperts in ops/backend.h); or any, and the norm of what
// it gives (LinearAndNorm in ops/linear.h).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/combine.h"
#include "cuda/device_facts.h"
#include "cuda/gemm.h"
#include "cuda/rows.h"

namespace jevons::cuda {

// What    the product, then CombineAndNorm of its rows, or RmsNorm of their first columns
// Shapes  product as GemmParams, out bf16; norm.out bf16. With a combine its expert_out is
//         product.out, and the others are as CanCombineAndNorm; without, norm.x is product.out, bf16
//         and without a delta
// Order   the bits are those of the two kernels after each other
struct FinishParams {
  GemmParams product;
  ExpertCombineParams combine;  // no expert_out: none
  RmsNormParams norm;
  int32_t* meeting = nullptr;  // i32 [2], 0 before the launch and after it
};

struct FinishPlan {
  GemmPlan gemm;         // num_blocks 0: no kernel takes this step
  int32_t num_last = 0;  // of the product's blocks, the last ones, which share the tokens
  int32_t smem_bytes = 0;
  bool whole = false;  // rows may be moved in units of 16 bytes
};

FinishPlan ChooseFinish(const FinishParams& params, const DeviceFacts& device);

// Queues one kernel; cudaErrorInvalidValue where ChooseFinish has none.
cudaError_t LaunchFinish(const FinishParams& params, const DeviceFacts& device,
                         cudaStream_t stream);

}  // namespace jevons::cuda

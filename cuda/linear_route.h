// A product, and what the router makes of the residual that it is added to, in one kernel: from the
// attended values of a small step to its experts. Contract: LinearAndRoute in ops/moe.h; here stands
// what the CUDA version adds.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/device_facts.h"
#include "cuda/gemm.h"
#include "cuda/router.h"

namespace jevons::cuda {

// What    the product, then what LaunchRouter does
// Shapes  product as GemmParams, one group, out f32; router.norm.delta is product.out; router.num_done
//         is not used; router as RouterParams
// Order   the bits are those of the two kernels after each other
struct LinearRouteParams {
  GemmParams product;
  RouterParams router;
  int32_t* meeting = nullptr;  // i32 [2], 0 before the launch and after it
};

struct LinearRoutePlan {
  GemmPlan gemm;  // num_blocks 0: no kernel takes this step
  RouterPlan router;
  int32_t num_last = 0;  // of the product's blocks, the last ones, which share the router's strips
  int32_t smem_bytes = 0;
};

LinearRoutePlan ChooseLinearRoute(const LinearRouteParams& params, const DeviceFacts& device);

// Queues one kernel; cudaErrorInvalidValue where ChooseLinearRoute has none.
cudaError_t LaunchLinearRoute(const LinearRouteParams& params, const DeviceFacts& device,
                              cudaStream_t stream);

}  // namespace jevons::cuda

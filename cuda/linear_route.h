// A product, and what the router makes of the residual that it is added to, in one kernel: from the
// attended values of a step to its experts. Contract: LinearAndRoute in ops/moe.h; here stands
// what the CUDA version adds.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/device_facts.h"
#include "cuda/gemm.h"
#include "cuda/router.h"

namespace jevons::cuda {

// What    the product, then what LaunchRouter does
// Shapes  product as GemmParams, one group, out f32; router as RouterParams, router.norm.delta is
//         product.out
// Order   the bits are those of the two kernels after each other
struct LinearRouteParams {
  GemmParams product;
  RouterParams router;
};

struct LinearRoutePlan {
  GemmPlan gemm;      // num_blocks 0: no kernel takes this step
  RouterPlan router;  // by the last of the product's blocks
  int32_t smem_bytes = 0;
};

LinearRoutePlan ChooseLinearRoute(const LinearRouteParams& params, const DeviceFacts& device);

// Queues one kernel; cudaErrorInvalidValue where ChooseLinearRoute has none.
cudaError_t LaunchLinearRoute(const LinearRouteParams& params, const DeviceFacts& device,
                              cudaStream_t stream);

}  // namespace jevons::cuda

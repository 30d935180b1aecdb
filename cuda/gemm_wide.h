// Products of many rows on sm_90: warps with roles, 192 outputs of 128 tokens at a time.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/gemm.h"

namespace jevons::cuda {

struct GemmLaunch;  // gemm_walker.h

int32_t GemmWideSmemBytes(WeightFormat format, GemmAtom atom);

// LaunchGemm by a plan that IsWide. Rows of x are 16-byte aligned.
cudaError_t LaunchGemmWide(const GemmLaunch& launch, const GemmPlan& plan,
                           const DeviceFacts& device, cudaStream_t stream);

}  // namespace jevons::cuda

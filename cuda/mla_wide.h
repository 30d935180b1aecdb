// Attention of models with many heads, by the products of warpgroups: 64 heads of a token at once.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/mla.h"
#include "cuda/mla_args.h"

namespace jevons::cuda {

// Slots that hold the totals of one block while a split is under way.
constexpr int32_t kMlaTotalSlots = kMlaWideRows / kMlaGroupRows;

int32_t MlaWideSmemBytes(MlaEntry entry);

// MlaAttention where MlaIsWide (mla.h). The blocks' totals are in the workspace's last slots.
cudaError_t LaunchMlaWide(const mla::AttentionParams& args, const DeviceFacts& device,
                          cudaStream_t stream);

}  // namespace jevons::cuda

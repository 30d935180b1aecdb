// All that attention wants of a step's tokens: their cache entries and their queries.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/device_facts.h"
#include "cuda/gemm.h"
#include "cuda/mla_store.h"
#include "cuda/rows.h"

namespace jevons::cuda {

// What    MlaStoreKv, HeadLinear and Rope of the same tokens. Each reads what the products before
//         have left, none what another one of the three writes
// Order, Error as the three
struct MlaPrepareParams {
  MlaStoreKvParams store;
  GemmParams product;
  RopeParams rope;
};

struct MlaPreparePlan {
  bool at_once = false;    // else the three have a kernel and a plan each
  int32_t row_blocks = 0;  // before those of the product, without a part in it
  MlaStorePlan store;
  RowsPlan rope;
  GemmPlan product;
};

// At once in decoding steps: where the product has small tiles and its warps have few entries and
// heads each.
MlaPreparePlan ChooseMlaPrepare(const MlaPrepareParams& params, const DeviceFacts& device);
cudaError_t LaunchMlaPrepare(const MlaPrepareParams& params, const DeviceFacts& device,
                             cudaStream_t stream);

}  // namespace jevons::cuda

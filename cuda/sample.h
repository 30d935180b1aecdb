// From rows of logits to tokens. Contract: SampleTokens in ops/sample.h; all arrays lie in device
// memory, strides are in elements.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/device_facts.h"
#include "ops/sample_row.h"

namespace jevons::cuda {

// Entries [cu[r], cu[r + 1]) of row r; what of them lies outside [0, num_entries) is skipped.
// `before` is scratch for the logits that the entries change.
template <typename Value>
struct SampleEntries {
  const int32_t* ids = nullptr;
  const Value* values = nullptr;
  const int32_t* cu = nullptr;  // null: there are none
  float* before = nullptr;      // [num_entries]
  int32_t num_entries = 0;
};

// Shapes  logits f32 [num_rows, >= num_valid], num_valid at most 2^18; masks [num_masks, mask_words]
//         with mask_words at least ceil(num_valid / 32); top_ids, top_logprobs [num_rows, max_top],
//         max_top at most 128
// Order   sums of floats by num_valid alone, masses for top_p in whole numbers
struct SampleTokensParams {
  float* logits = nullptr;  // as before when the kernel has ended
  const SampleRow* rows = nullptr;
  SampleEntries<float> bias;
  SampleEntries<int32_t> counts;
  const uint32_t* masks = nullptr;
  int32_t* token = nullptr;
  float* logprob = nullptr;
  int32_t* top_ids = nullptr;
  float* top_logprobs = nullptr;
  int32_t num_rows = 0;
  int32_t num_valid = 0;
  int32_t num_masks = 0;
  int32_t max_top = 0;
  int64_t logits_stride = 0;
  int64_t mask_words = 0;
};

struct SamplePlan {
  int32_t threads = 0;
  int32_t blocks = 0;
  int32_t smem_bytes = 0;
  bool whole = false;  // logits may be read 16 bytes at a time
};

SamplePlan ChooseSampleTokens(const SampleTokensParams& params);

// Queues one kernel; no rows is a success. Sizes outside the contract are cudaErrorInvalidValue.
cudaError_t LaunchSampleTokens(const SampleTokensParams& params, const DeviceFacts& device,
                               cudaStream_t stream);

}  // namespace jevons::cuda

// Which rows go to which rank, and in which order results go back. The contracts are those of
// ops/exchange.h; here stands what the CUDA versions add. Index arrays lie in device memory and are
// contiguous.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/device_facts.h"

namespace jevons::cuda {

// Edge    a topk_idx outside [0, num_experts), or a slot outside the ranks, is no choice
struct RankDispatchParams {
  const int32_t* topk_idx = nullptr;    // [num_tokens, top_k]
  const int32_t* slot_table = nullptr;  // [num_experts, table_width]
  int32_t* counts = nullptr;            // [num_ranks, 2]
  int32_t* send_token = nullptr;
  int32_t* send_slots = nullptr;
  int32_t* return_row = nullptr;
  uint64_t* choice_counts = nullptr;  // [num_counted]
  int32_t num_counted = 0;
  int32_t num_tokens = 0;
  int32_t top_k = 0;
  int32_t num_experts = 0;
  int32_t table_width = 1;
  int32_t num_ranks = 1;
  int32_t slots_per_rank = 1;
  int32_t capacity = 0;  // 0: contiguous
};

struct ReturnRowsParams {
  const int32_t* token_row = nullptr;  // [num_rows, top_k]
  int32_t* row_idx = nullptr;
  int32_t num_rows = 0;
  int32_t top_k = 0;
  int32_t masked_width = 0;  // entries of a row; 0: contiguous
};

struct ExchangePlanShape {
  int32_t threads = 0;
  int32_t blocks = 0;
};
ExchangePlanShape ChooseRankDispatch(const RankDispatchParams& params);
ExchangePlanShape ChooseReturnRows(const ReturnRowsParams& params);

// Each queues one kernel. Sizes outside the contract are cudaErrorInvalidValue.
cudaError_t LaunchRankDispatch(const RankDispatchParams& params, const DeviceFacts& device,
                               cudaStream_t stream);
cudaError_t LaunchReturnRows(const ReturnRowsParams& params, const DeviceFacts& device,
                             cudaStream_t stream);

}  // namespace jevons::cuda

// From router logits to experts, and from experts to grouped rows. The contracts are those of
// ops/moe.h; here stands what the CUDA versions add. Index arrays lie in device memory and are
// contiguous.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/device_facts.h"

namespace jevons::cuda {

enum class Scoring : int32_t { kSoftmax, kSigmoid };
enum class GroupRating : int32_t { kMax, kTop2Sum };

inline constexpr int32_t kMaxExperts = 1024;
inline constexpr int32_t kMaxTopK = 32;
// The largest step for LaunchRouteAndDispatch.
inline constexpr int32_t kMaxFusedTokens = 256;

// What    scores, group limits, choice and weights of each token, as RouteTopK
//         Behind the choices stand num_fixed experts that every token has, with weight 1
// Shapes  logits f32 [num_tokens, num_experts], num_experts at most kMaxExperts and a multiple of
//         n_group; logits_low the same, or null: is added to logits in place first, where a row
//         chooses; bias f32 [num_experts] or null; topk_idx i32, topk_weights f32
//         [num_tokens, top_k + num_fixed], at most kMaxTopK, top_k at most num_experts;
//         row_limit i32 [1] or null
// Edge    a row with NaN among its choices gets topk_idx 0 .. top_k - 1 and NaN weights; rows from
//         *row_limit on get -1 and weight 0
// Order   fixed by num_experts and top_k. Scores are f32: choices that are equal in f32 go by index,
//         and a score below 1e-38, where f32 ends, has few digits or is 0
struct RouteTopKParams {
  float* logits = nullptr;
  const float* logits_low = nullptr;
  const float* bias = nullptr;
  const int32_t* row_limit = nullptr;
  int32_t* topk_idx = nullptr;
  float* topk_weights = nullptr;
  Scoring scoring = Scoring::kSoftmax;
  GroupRating group_rating = GroupRating::kMax;
  int32_t num_tokens = 0;
  int32_t num_experts = 0;
  int32_t top_k = 0;
  int32_t num_fixed = 0;  // experts num_experts, num_experts + 1, ...
  int32_t n_group = 1;
  int32_t topk_group = 1;
  bool normalize = false;
  float scale = 1;
  int64_t logits_stride = 0;
};

// What    groups (token, choice) pairs by expert, within an expert by token, then by choice
// Shapes  topk_idx, token_row i32 [num_tokens, top_k]; cu_rows i32 [num_experts + 1];
//         row_token i32 [num_tokens * top_k]
// Edge    a topk_idx outside [0, num_experts) is none: its token_row is -1. row_token past
//         cu_rows[num_experts] is not written. Without tokens cu_rows is zeroed
// Order   exact: a pure function of topk_idx
struct ExpertDispatchParams {
  const int32_t* topk_idx = nullptr;
  int32_t* cu_rows = nullptr;
  int32_t* row_token = nullptr;
  int32_t* token_row = nullptr;
  int32_t num_tokens = 0;
  int32_t top_k = 0;
  int32_t num_experts = 0;
};

// RouteTopK and ExpertDispatch of the same tokens in one kernel.
struct RouteAndDispatchParams {
  RouteTopKParams route;
  int32_t* cu_rows = nullptr;
  int32_t* row_token = nullptr;
  int32_t* token_row = nullptr;
  int32_t* num_done = nullptr;  // i32 [1], 0 before the launch and after it
};

struct RoutePlan {
  int32_t threads = 0;
  int32_t blocks = 0;
  int32_t smem_bytes = 0;
};

RoutePlan ChooseRouteTopK(const RouteTopKParams& params);
RoutePlan ChooseExpertDispatch(const ExpertDispatchParams& params);
RoutePlan ChooseRouteAndDispatch(const RouteAndDispatchParams& params);

// Each queues one kernel. Sizes outside the contract are cudaErrorInvalidValue.
cudaError_t LaunchRouteTopK(const RouteTopKParams& params, const DeviceFacts& device,
                            cudaStream_t stream);
cudaError_t LaunchExpertDispatch(const ExpertDispatchParams& params, const DeviceFacts& device,
                                 cudaStream_t stream);
// num_tokens in [1, kMaxFusedTokens].
cudaError_t LaunchRouteAndDispatch(const RouteAndDispatchParams& params, const DeviceFacts& device,
                                   cudaStream_t stream);

}  // namespace jevons::cuda

// From the residual to the experts of a step in one kernel. Contract: NormAndRoute in ops/moe.h;
// here stands what the CUDA version adds.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/device_facts.h"
#include "cuda/gemm_layout.h"
#include "cuda/route.h"
#include "cuda/rows.h"

namespace jevons::cuda {

// Tokens of a set, at most: the columns of the tensor core's operand b.
inline constexpr int32_t kMostSetTokens = 8;
// What blocks of the kernel count of each other: a BlockMeeting, and of each set the blocks that have
// its logits. A set has a token at least.
inline constexpr int32_t kMeetingCounters = 2;
inline constexpr int32_t kRouterCounters = kMeetingCounters + kMaxFusedTokens;

// What    RmsNorm with a delta, whose row is split in out and low; logits = W out + W low, each sum
//         in the order of gemm.h with GemmAtom::kMmaSync; then RouteTopK of the logits and, where
//         cu_rows is there, ExpertDispatch of the choices
// Shapes  norm: x and delta f32, out bf16; norm.low is not used, low rows stay in the kernel.
//         weight: one group as gemm_layout.h says, bf16, RowOrder::kPlain, n = route.num_experts,
//         k = norm.hidden, 16-byte aligned; route.logits are written, route.logits_low is not used
// Order   the bits are those of RmsNorm, Gemm, RouteTopK and ExpertDispatch after each other
struct RouterParams {
  RmsNormParams norm;
  const void* weight = nullptr;
  PackedLayout layout;
  RouteTopKParams route;
  int32_t* cu_rows = nullptr;  // and the other two; null: no dispatch
  int32_t* row_token = nullptr;
  int32_t* token_row = nullptr;
  int32_t* counters = nullptr;  // i32 [kRouterCounters], 0 before the launch and after it
};

// The tokens are cut into sets; set_blocks blocks share the experts of a set.
struct RouterPlan {
  int32_t threads = 0;  // 0: no kernel takes this step
  int32_t blocks = 0;
  int32_t set_tokens = 0;
  int32_t set_blocks = 0;
  int32_t smem_bytes = 0;
  bool whole = false;  // rows may be moved in units of 16 bytes
  int64_t clocks = 0;  // that it takes, roughly, without what every plan has
};

// What the blocks may have of the device.
struct RouterRoom {
  int32_t blocks = 0;      // at once
  int32_t smem_bytes = 0;  // of each
};

// Scratch of a step that takes several kernels: low rows bf16, then low logits f32, which lie as the
// rows of norm.out and route.logits do.
constexpr int64_t RouterLowBytes(int64_t num_tokens, int64_t out_stride) {
  return (num_tokens * out_stride * 2 + 15) / 16 * 16;
}
constexpr int64_t RouterScratchBytes(int64_t num_tokens, int64_t out_stride,
                                     int64_t logits_stride) {
  return RouterLowBytes(num_tokens, out_stride) + num_tokens * logits_stride * 4;
}

// The quickest plan within the room.
RouterPlan PlanRouter(const RouterParams& params, const RouterRoom& room);

// That of the whole device; none where norm, product and choice in a kernel each would be quicker.
RouterPlan ChooseRouter(const RouterParams& params, const DeviceFacts& device);

// The same in kernels of its own, with the boundary in front: that of ChooseRouter, or three.
int64_t RouterClocks(const RouterParams& params, const DeviceFacts& device);

// Queues one kernel; cudaErrorInvalidValue where ChooseRouter has none.
cudaError_t LaunchRouter(const RouterParams& params, const DeviceFacts& device,
                         cudaStream_t stream);

}  // namespace jevons::cuda

// Norm, router, choice and dispatch of a small step. Formulas in ops/moe.h.
//
// A block (router_block.h) has a strip of 16 experts and all tokens. It asks for its weights (while
// the kernel before still runs), norms every row by itself and keeps x + delta of each in shared
// memory; its warps multiply slices of 256 columns in turn, with the row's bf16 and what that leaves
// as two operands of the tensor core; the slices are added in order. The block that finishes last
// writes x, which until then the others may still read, chooses with a warp a token, and groups the
// choices. Where a grid has fewer blocks than strips, a block takes several (linear_route.cu).
//
// One token of V2-Lite: four blocks read 64 KB of weights each and 24 KB of x, delta and norm
// weight. The latencies of three loads and of one meeting of the blocks decide, some 4 us.
// V3: 16 blocks of 229 KB, 4 us at what one multiprocessor gets from memory.
//
// Barriers. (1) The rows, their warps' sums and the norm's weight are there. (2) The sums of the
// strip before are read. (3) The slices' sums are there. (4, 5) Those of IsLastBlock, where the
// logits are written. (6) The rows are written to x, and their place is the choice's. (7) The choices
// are there, and their place is the dispatch's.
#include "cuda/router.h"

#include "cuda/device/launch.h"
#include "cuda/last_block.h"
#include "cuda/router_block.h"

namespace jevons::cuda {
namespace {

using router::RouterLaunch;
using router::RouterSmem;

constexpr int kReads = 4;

template <int kPerLane>
__global__ void __launch_bounds__(router::kThreads, 1)
    RouterKernel(const __grid_constant__ RouterLaunch launch) {
  const router::RouterBlock<kReads> block(launch);
  block.Multiply(device::BlockIdxX(), device::GridDimX(), [] { device::FollowKernelBefore(); });
  if (!IsLastBlock(launch.p.num_done, block.Flag())) return;
  block.Choose<kPerLane>();
  ResetBlocks(launch.p.num_done);
}

RouterSmem SmemOf(const RouterParams& p) {
  const int32_t columns = PaddedColumns(p.layout);
  const int32_t tokens = p.norm.num_tokens;
  RouterSmem smem;
  smem.row = columns + router::kRowPadding;
  smem.weight = tokens * smem.row;
  smem.partial = smem.weight + columns;
  smem.sums = smem.partial + 2 * CeilDiv(columns, router::kSliceColumns) * tokens * kStripRows;
  smem.flag = smem.sums + tokens * kNormWarps;
  smem.floats = smem.flag + 1;
  return smem;
}

bool HasKernel(const RouterParams& p) {
  const RmsNormParams& norm = p.norm;
  return norm.num_tokens >= 1 && norm.num_tokens <= kMaxRouterTokens &&
         norm.num_tokens == p.route.num_tokens && norm.x_type == Element::kF32 &&
         norm.delta != nullptr && norm.delta_type == Element::kF32 &&
         norm.out_type == Element::kBF16 && p.layout.format == WeightFormat::kBf16 &&
         p.layout.order == RowOrder::kPlain && p.layout.n == p.route.num_experts &&
         p.layout.k == norm.hidden && InContract(p.route);
}

}  // namespace

RouterPlan ChooseRouter(const RouterParams& p, const DeviceFacts& device) {
  RouterPlan plan;
  if (!HasKernel(p)) return plan;
  plan.smem_bytes = SmemOf(p).floats * static_cast<int32_t>(sizeof(float));
  // The choice and the dispatch have the place of the rows.
  plan.smem_bytes = Max(plan.smem_bytes, RouteBytes(p.route, router::kWarps));
  plan.smem_bytes = Max(plan.smem_bytes, DispatchBytes(AllExperts(p.route)));
  if (plan.smem_bytes > device.max_smem_bytes) return plan;
  plan.threads = router::kThreads;
  plan.blocks = CeilDiv(p.layout.n, kStripRows);
  plan.whole = ChooseRmsNorm(p.norm).whole;
  return plan;
}

RouterLaunch router::MakeRouterLaunch(const RouterParams& p, const RouterPlan& plan) {
  RouterLaunch launch;
  launch.p = p;
  launch.smem = SmemOf(p);
  launch.num_strips = CeilDiv(p.layout.n, kStripRows);
  launch.num_steps = PaddedColumns(p.layout) / kStepColumns;
  launch.num_slices = CeilDiv(PaddedColumns(p.layout), kSliceColumns);
  launch.whole = plan.whole;
  return launch;
}

cudaError_t LaunchRouter(const RouterParams& p, const DeviceFacts& device, cudaStream_t stream) {
  const RouterPlan plan = ChooseRouter(p, device);
  if (plan.threads == 0) return cudaErrorInvalidValue;
  const RouterLaunch launch = router::MakeRouterLaunch(p, plan);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(plan.blocks));
  shape.block = plan.threads;
  shape.smem_bytes = plan.smem_bytes;
  shape.early = device.early;
  return WithPerLane(p.route.num_experts, [&](auto per_lane) {
    return Launch(&RouterKernel<per_lane>, shape, stream, launch);
  });
}

}  // namespace jevons::cuda

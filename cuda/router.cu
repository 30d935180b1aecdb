// Norm, router, choice and dispatch of a step. Formulas in ops/moe.h.
//
// The tokens are cut into sets of up to eight. A block (router_block.h) has a set and strips of 16
// experts. It asks for its weights (while the kernel before still runs), norms every row of the set by
// itself and keeps x + delta of each in shared memory; its warps multiply slices of 256 columns in
// turn, with the row's bf16 and what that leaves as two operands of the tensor core; the slices are
// added in order. The block that finishes a set last writes its x, which until then the others may
// still read, and chooses with a warp a token. The one that finishes the last set groups the choices
// of all.
//
// A block moves, of h columns: 8 h bytes of x and delta for each token, 4 h of the norm's weight, 32 h
// of weights for each strip, at 35 bytes a clock from the L2 cache. PlanRouter cuts the tokens so that
// the busiest block has the least of it; more than one set are one more meeting of blocks, 1 us.
//   V2-Lite, 4 strips, H100   1 token: 4 blocks of 90 KB, 1.5 us     64: 32 sets of 2, 106 KB, 2.7 us
//                             8 tokens: 8 sets, 90 KB each, 2.5 us   256: 32 sets of 8, 205 KB, 4.3 us
//   V3, 16 strips, H100       1 token: 16 blocks of 315 KB, 5.1 us   8: 8 sets, 315 KB each, 6.1 us
//                             64: 16 sets of 4, their 8 blocks have 2 strips each, 717 KB, 12.7 us
// and on top the latencies of three loads and of the meeting of a set's blocks, some 3 us, the choice
// and the dispatch.
//
// Norm, product and choice apart are two boundaries more, 1.3 us each, and a tile of the product has 32
// rows: 96 h bytes. Where that is quicker by this count (ClocksApart) the step has three kernels: V3
// from 97 tokens on (a tie near 195 apart), on an A100 from 53; V2-Lite never.
//
// Barriers. (1) The set's rows, their warps' sums and the norm's weight are there. (2) The sums of the
// strip before are read. (3) The slices' sums are there. (4, 5) Those of IsLastOf: the logits are
// written; whether they are the last. (6) The rows are written to x, and their place is the choice's.
// (7) The choices are there, and their place is the dispatch's: the two of IsLastToGo, or one.
#include "cuda/router.h"

#include "cuda/device/launch.h"
#include "cuda/router_block.h"

namespace jevons::cuda {
namespace {

using router::RouterLaunch;
using router::RouterSmem;

constexpr int kReads = 4;
constexpr int kAhead = router::kSliceSteps;

// Rough rates, alike from sm_80 to sm_100: bytes a clock that a multiprocessor gets from L2, clocks of
// a boundary between kernels and of a meeting of blocks.
constexpr int64_t kCacheBytes = 35;
constexpr int64_t kBoundaryClocks = 2275;
constexpr int64_t kMeetingClocks = 1750;
// Rows of a tile of the router's product where that is a kernel of its own.
constexpr int32_t kProductRows = 32;

template <int kPerLane>
__global__ void __launch_bounds__(router::kThreads, 1)
    RouterKernel(const __grid_constant__ RouterLaunch launch) {
  const router::RouterBlock<kReads, kAhead> block(launch, device::BlockIdxX());
  block.template Run<kPerLane>([] { device::FollowKernelBefore(); });
}

int32_t NumStrips(const RouterParams& p) { return CeilDiv(p.layout.n, kStripRows); }

RouterSmem SmemOf(const RouterParams& p, int32_t set_tokens) {
  const int32_t columns = PaddedColumns(p.layout);
  const int32_t choice_bytes =
      Max(RouteBytes(p.route, set_tokens), DispatchBytes(AllExperts(p.route)));
  RouterSmem smem;
  smem.row = columns + router::kRowPadding;
  // The choice and the dispatch have the place of the rows, and no other: the flag outlives them.
  smem.weight = RoundUp(Max(set_tokens * smem.row, CeilDiv(choice_bytes, 4)), 4);
  smem.partial = smem.weight + columns;
  smem.sums = smem.partial + 2 * CeilDiv(columns, router::kSliceColumns) * set_tokens * kStripRows;
  smem.flag = smem.sums + set_tokens * kNormWarps;
  smem.floats = smem.flag + 1;
  return smem;
}

bool HasKernel(const RouterParams& p) {
  const RmsNormParams& norm = p.norm;
  return norm.num_tokens >= 1 && norm.num_tokens <= kMaxFusedTokens &&
         norm.num_tokens == p.route.num_tokens && norm.x_type == Element::kF32 &&
         norm.delta != nullptr && norm.delta_type == Element::kF32 &&
         norm.out_type == Element::kBF16 && p.layout.format == WeightFormat::kBf16 &&
         p.layout.order == RowOrder::kPlain && p.layout.n == p.route.num_experts &&
         p.layout.k == norm.hidden && InContract(p.route);
}

// With sets of so many tokens.
RouterPlan PlanSets(const RouterParams& p, const RouterRoom& room, int32_t set_tokens) {
  const int32_t num_sets = CeilDiv(p.norm.num_tokens, set_tokens);
  const int64_t columns = PaddedColumns(p.layout);
  RouterPlan plan;
  plan.threads = router::kThreads;
  plan.set_tokens = set_tokens;
  plan.set_blocks = Min(NumStrips(p), Max(room.blocks / num_sets, 1));
  plan.blocks = num_sets * plan.set_blocks;
  plan.smem_bytes = SmemOf(p, set_tokens).floats * static_cast<int32_t>(sizeof(float));
  plan.whole = ChooseRmsNorm(p.norm).whole;
  const int64_t set_bytes =
      8 * columns * set_tokens + 2 * columns * kStripRows * CeilDiv(NumStrips(p), plan.set_blocks);
  plan.clocks = CeilDiv(plan.blocks, room.blocks) * (set_bytes + 4 * columns) / kCacheBytes +
                (num_sets > 1 ? kMeetingClocks : 0);
  return plan;
}

// The same of norm, product and choice in a kernel each.
int64_t ClocksApart(const RouterParams& p, const DeviceFacts& device) {
  const int64_t columns = PaddedColumns(p.layout);
  const int32_t tokens = p.norm.num_tokens;
  const int32_t tiles = 2 * NumStrips(p) * CeilDiv(tokens, kProductRows);
  const int64_t row_bytes = 12 * columns;
  const int64_t tile_bytes = 2 * columns * (kStripRows + Min(tokens, kProductRows));
  const int64_t bytes =
      row_bytes * Max(tokens, device.num_sms) + tile_bytes * Max(tiles, device.num_sms);
  return bytes / (kCacheBytes * device.num_sms) + 2 * kBoundaryClocks;
}

}  // namespace

RouterPlan PlanRouter(const RouterParams& p, const RouterRoom& room) {
  RouterPlan best;
  if (!HasKernel(p) || room.blocks < 1) return best;
  for (int32_t tokens = Min(p.norm.num_tokens, kMostSetTokens); tokens >= 1; --tokens) {
    const RouterPlan plan = PlanSets(p, room, tokens);
    if (plan.smem_bytes > room.smem_bytes) continue;
    if (best.threads == 0 || plan.clocks < best.clocks) best = plan;
  }
  return best;
}

RouterPlan ChooseRouter(const RouterParams& p, const DeviceFacts& device) {
  const RouterPlan plan = PlanRouter(p, {device.num_sms, device.max_smem_bytes});
  const bool quick = plan.threads > 0 && plan.clocks <= ClocksApart(p, device);
  return quick ? plan : RouterPlan();
}

int64_t RouterClocks(const RouterParams& p, const DeviceFacts& device) {
  const RouterPlan plan = ChooseRouter(p, device);
  return kBoundaryClocks + (plan.threads > 0 ? plan.clocks : ClocksApart(p, device));
}

RouterLaunch router::MakeRouterLaunch(const RouterParams& p, const RouterPlan& plan) {
  RouterLaunch launch;
  launch.p = p;
  launch.smem = SmemOf(p, plan.set_tokens);
  launch.num_strips = NumStrips(p);
  launch.num_steps = PaddedColumns(p.layout) / kStepColumns;
  launch.num_slices = CeilDiv(PaddedColumns(p.layout), kSliceColumns);
  launch.set_tokens = plan.set_tokens;
  launch.num_sets = CeilDiv(p.norm.num_tokens, plan.set_tokens);
  launch.set_blocks = plan.set_blocks;
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

// A product whose last blocks are the router's. Formulas in ops/linear.h and ops/moe.h.
//
// The product is that of gemm.cu, tile by tile. Of its blocks the last ones to end go on: each asks
// for the weights of its first 16 experts, waits for the rows of all blocks, and does what a block of
// router.cu does. They are at most half of the device, which therefore holds them at once, so none
// waits for ever (last_block.h). The router's rows have the place of the product's stages.
//
// One token of V2-Lite: o reads 8.4 MB, 2.8 us; four blocks go on. They see the rows about 1.5 us
// after the last of them is stored, with their weights in registers. A launch falls away, 1.3 us, and
// that the router's first loads come after it. 64 tokens: 64 blocks go on, four for each four tokens.
// V3: o 117 MB, 39 us; of 224 blocks 16 go on, with a quarter of 229 KB of weights each before the
// rows are there.
//
// Shared memory is the larger of the two parts. It must let the product's blocks be there at once as
// they would be alone: half of the bytes in flight cost more than a launch. So in the steps where two of
// these share a multiprocessor, up to 8 tokens, a set of V3 has two of them at most (on an A100 one).
// Half of the device has fewer blocks for a set than all of it: where that costs more than a boundary,
// the router has its own kernel. V3: from 13 tokens on, on an A100 from 4.
//
// Barriers: those of gemm_kernel.h; those of NumberAmongLast, after which the place of the product's
// tokens is the router's; that of WaitForAllBlocks; those of router.cu.
#include "cuda/linear_route.h"

#include "cuda/device/launch.h"
#include "cuda/gemm_kernel.h"
#include "cuda/gemm_small.h"
#include "cuda/last_block.h"
#include "cuda/router_block.h"

namespace jevons::cuda {
namespace {

using router::RouterLaunch;

static_assert(kGemmThreads == router::kThreads);
// Experts of one lane in the choice, one instance for all: those beyond have two kernels.
constexpr int kPerLane = 8;

// What is under way at a time: less where registers are short.
template <typename Traits>
struct RouterRegisters {
  static constexpr bool kFew = Traits::kMinBlocks > 1;
  static constexpr int kReads = kFew ? 2 : 4;
  static constexpr int kAhead = !kFew || Traits::kTileTokens == 8 ? router::kSliceSteps
                                : Traits::kBf16                   ? router::kSliceSteps / 2
                                                                  : router::kSliceSteps / 4;
};

struct LinearRouteLaunch {
  GemmLaunch product;
  RouterLaunch router;
  int32_t num_last = 0;
};

template <typename Traits>
__global__ void __launch_bounds__(kGemmThreads, Traits::kMinBlocks)
    LinearRouteKernel(const __grid_constant__ LinearRouteLaunch launch) {
  // Never launched elsewhere: ChooseGemm.
  if constexpr (device::kHasWgmma || !Traits::kTogether) {
    GemmBlock<Traits> product(launch.product, &device::SharedMemory<unsigned char>());
    product.Run();
    using Registers = RouterRegisters<Traits>;
    BlockMeeting* const meeting = router::Meeting(launch.router);
    const int number = NumberAmongLast(meeting, launch.num_last, router::Flag(launch.router));
    if (number < 0) return;
    const router::RouterBlock<Registers::kReads, Registers::kAhead> block(launch.router, number);
    block.template Run<kPerLane>([&] { WaitForAllBlocks(meeting); });
  }
}

// The product's rows are what the norm adds to x.
bool HasKernel(const LinearRouteParams& p) {
  const GemmParams& product = p.product;
  const RmsNormParams& norm = p.router.norm;
  return product.atom != GemmAtom::kWgmmaFp8 && product.num_groups == 1 &&
         product.cu_rows == nullptr && product.row_idx == nullptr &&
         product.epilogue == GemmEpilogue::kStore && product.out_type == Element::kF32 &&
         product.num_rows == norm.num_tokens && product.layout.n == norm.hidden &&
         product.out == norm.delta && product.out_row_stride == norm.delta_stride &&
         p.router.route.num_experts <= 32 * kPerLane;
}

bool HasInstance(const LinearRouteParams& p, const GemmPlan& gemm) {
  bool has = false;
  WithSmallTile(p.product.layout.format, gemm.atom, gemm.tile_tokens, [&](auto) { has = true; });
  return has;
}

// For the last blocks of the product: half of the device, with as much shared memory as leaves all of
// the product's blocks their places at once.
RouterRoom RoomBehind(const GemmPlan& gemm, const DeviceFacts& device) {
  constexpr int32_t kReserved = 1024;  // of each block, by the system
  RouterRoom room;
  room.blocks = Min(gemm.num_blocks, device.num_sms / 2);
  room.smem_bytes =
      (device.max_smem_bytes + kReserved) / CeilDiv(gemm.num_blocks, device.num_sms) - kReserved;
  return room;
}

}  // namespace

LinearRoutePlan ChooseLinearRoute(const LinearRouteParams& p, const DeviceFacts& device) {
  LinearRoutePlan plan;
  if (!HasKernel(p)) return plan;
  const GemmPlan gemm = ChooseGemm(p.product, device);
  if (!HasInstance(p, gemm)) return plan;
  const RouterRoom room = RoomBehind(gemm, device);
  const RouterPlan router = PlanRouter(p.router, room);
  if (router.threads == 0 || router.blocks > room.blocks ||
      router.clocks > RouterClocks(p.router, device)) {
    return plan;
  }
  plan.gemm = gemm;
  plan.router = router;
  plan.smem_bytes = Max(gemm.smem_bytes, router.smem_bytes);
  return plan;
}

cudaError_t LaunchLinearRoute(const LinearRouteParams& p, const DeviceFacts& device,
                              cudaStream_t stream) {
  const LinearRoutePlan plan = ChooseLinearRoute(p, device);
  if (plan.gemm.num_blocks == 0) return cudaErrorInvalidValue;
  const LinearRouteLaunch launch = {MakeGemmLaunch(p.product, plan.gemm),
                                    router::MakeRouterLaunch(p.router, plan.router),
                                    plan.router.blocks};
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(plan.gemm.num_blocks));
  shape.block = kGemmThreads;
  shape.smem_bytes = plan.smem_bytes;
  shape.early = device.early;
  cudaError_t error = cudaErrorInvalidValue;
  const auto start = [&](auto traits) {
    error = Launch(LinearRouteKernel<decltype(traits)>, shape, stream, launch);
  };
  WithSmallTile(p.product.layout.format, plan.gemm.atom, plan.gemm.tile_tokens, start);
  return error;
}

}  // namespace jevons::cuda

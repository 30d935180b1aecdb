// A product whose last blocks are the router's. Formulas in ops/linear.h and ops/moe.h.
//
// The product is that of gemm.cu, tile by tile. Of its blocks the last ones to end go on: each asks
// for the weights of its first 16 experts, waits for the rows of all blocks, and does what a block of
// router.cu does. They are at most half of the device, which therefore holds them at once, so none
// waits for ever (last_block.h). The router's rows have the place of the product's stages.
//
// One token of V2-Lite: o reads 8.4 MB, 2.8 us; four blocks go on. They see the rows about 1.5 us
// after the last of them is stored, with their weights in registers. A launch falls away, 1.3 us, and
// that the router's first loads come after it. V3: o 117 MB, 39 us; of 224 blocks 16 go on,
// with a quarter of 229 KB of weights each before the rows are there.
//
// Shared memory is the larger of the two parts. It must let the product's blocks be there at once as
// they would be alone: half of the bytes in flight cost more than a launch. That ends at 8 tokens of
// V2-Lite and at 2 of V3 (on an A100 at 1).
//
// Barriers: those of gemm_kernel.h; those of NumberAmongLast, after which the place of the product's
// tokens is the router's; that of WaitForAllBlocks; those of router.cu, where (4, 5) are of
// IsLastToGo.
#include "cuda/linear_route.h"

#include "cuda/device/launch.h"
#include "cuda/gemm_kernel.h"
#include "cuda/gemm_octet.h"
#include "cuda/last_block.h"
#include "cuda/router_block.h"

namespace jevons::cuda {
namespace {

using router::RouterLaunch;

static_assert(kOctetTokens == kMaxRouterTokens && kGemmThreads == router::kThreads);
// Experts of one lane in the choice, one instance for all: those beyond have two kernels.
constexpr int kPerLane = 8;
// A norm's warps that a warp stands for at a time: registers are short.
constexpr int kReads = 2;

struct LinearRouteLaunch {
  GemmLaunch product;
  RouterLaunch router;
  BlockMeeting* meeting = nullptr;
  int32_t num_last = 0;
};

template <typename Traits>
__global__ void __launch_bounds__(kGemmThreads, Traits::kMinBlocks)
    LinearRouteKernel(const __grid_constant__ LinearRouteLaunch launch) {
  // Never launched elsewhere: ChooseGemm.
  if constexpr (device::kHasWgmma || !Traits::kTogether) {
    GemmBlock<Traits> product(launch.product, &device::SharedMemory<unsigned char>());
    product.Run();
    const router::RouterBlock<kReads> block(launch.router);
    const int number = NumberAmongLast(launch.meeting, launch.num_last, block.Flag());
    if (number < 0) return;
    block.Multiply(number, launch.num_last, [&] { WaitForAllBlocks(launch.meeting); });
    if (IsLastToGo(launch.meeting, launch.num_last, block.Flag())) block.Choose<kPerLane>();
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

// Blocks of this shared memory that the device holds at once.
int32_t BlocksAtOnce(int32_t smem_bytes, const DeviceFacts& device) {
  constexpr int32_t kReserved = 1024;  // of each block, by the system
  return (device.max_smem_bytes + kReserved) / (smem_bytes + kReserved) * device.num_sms;
}

}  // namespace

LinearRoutePlan ChooseLinearRoute(const LinearRouteParams& p, const DeviceFacts& device) {
  LinearRoutePlan plan;
  if (!HasKernel(p)) return plan;
  plan.router = ChooseRouter(p.router, device);
  if (plan.router.threads == 0) return plan;
  const GemmPlan gemm = ChooseGemm(p.product, device);
  plan.smem_bytes = Max(gemm.smem_bytes, plan.router.smem_bytes);
  if (gemm.tile_tokens != kOctetTokens || gemm.num_blocks > BlocksAtOnce(plan.smem_bytes, device)) {
    return plan;
  }
  plan.gemm = gemm;
  plan.num_last = Min(Min(plan.router.blocks, gemm.num_blocks), device.num_sms / 2);
  return plan;
}

cudaError_t LaunchLinearRoute(const LinearRouteParams& p, const DeviceFacts& device,
                              cudaStream_t stream) {
  const LinearRoutePlan plan = ChooseLinearRoute(p, device);
  if (plan.gemm.num_blocks == 0) return cudaErrorInvalidValue;
  const LinearRouteLaunch launch = {MakeGemmLaunch(p.product, plan.gemm),
                                    router::MakeRouterLaunch(p.router, plan.router),
                                    reinterpret_cast<BlockMeeting*>(p.meeting), plan.num_last};
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(plan.gemm.num_blocks));
  shape.block = kGemmThreads;
  shape.smem_bytes = plan.smem_bytes;
  shape.early = device.early;
  cudaError_t error = cudaErrorInvalidValue;
  const auto start = [&](auto traits) {
    error = Launch(LinearRouteKernel<decltype(traits)>, shape, stream, launch);
  };
  WithOctet(p.product.layout.format, plan.gemm.atom, start);
  return error;
}

}  // namespace jevons::cuda

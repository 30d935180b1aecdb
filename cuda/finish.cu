// A product whose last blocks sum and norm the tokens. Formulas in ops/linear.h and ops/moe.h.
//
// The product is that of gemm.cu, tile by tile; its registers are free when the last tile is stored.
// Of its blocks the last ones to end go on: each takes one token after the other, as CombineAndNorm
// or RmsNorm does. One alone need not wait; several wait for the rows of all blocks. They are at most
// half of the device, which therefore holds them at once, so none waits for ever (last_block.h).
//
// What is faster is guessed, from figures that are all to be measured. A block has 2048 columns of a
// token under way at a time, of eight bf16 rows 32 KB from L2: 0.7 us. A last block alone knows 0.8
// us after its rows are stored that it is the last; where several wait it is 1.5. A kernel of its own
// costs a boundary of 1.3 us, 2.1 for its start and end, and for its token half of the time, as its
// blocks have up to twice the threads:
//   V2-Lite  3.8; here 1.5 for one token, 2.2 for 2, and 2.2 for up to 64 in as many blocks
//   V3       4.8; here 3.6 for one token, and 4.3 for up to 64 (on an A100 54) in as many blocks;
//            its query as V2-Lite
// Larger steps have kernels of their own: there bytes begin to count, which want the whole device.
//
// Barriers: those of gemm_kernel.h; those of NumberAmongLast, after which the place of the tokens of
// the product is that of the norm's sums; that of WaitForBlocks, where several blocks go on; that of
// each norm (norm_row.h).
#include "cuda/finish.h"

#include "cuda/combine_row.h"
#include "cuda/device/launch.h"
#include "cuda/gemm_kernel.h"
#include "cuda/gemm_small.h"
#include "cuda/last_block.h"
#include "cuda/norm_row.h"

namespace jevons::cuda {
namespace {

// In ns, as above.
constexpr int64_t kTurnTime = 700;
constexpr int64_t kTimeOfOne = 800;
constexpr int64_t kTimeOfSeveral = 1500;
constexpr int64_t kTimeApart = 3400;
constexpr int32_t kTurnColumns = kGemmThreads * kRowVector;

struct FinishLaunch {
  GemmLaunch gemm;
  CombineAndNormArgs end;
  BlockMeeting* meeting = nullptr;
  int32_t num_last = 0;
};

// In the place of the product's tokens. A token's row follows, f32.
struct alignas(16) FinishShared {
  NormShared norm[2];  // of a block's even and odd tokens
  int32_t number;      // this block's among the last
};

int FinishBytes(int hidden) {
  return static_cast<int>(sizeof(FinishShared) + NumVectors(hidden) * kRowVector * sizeof(float));
}

__device__ __forceinline__ void NormToken(const CombineAndNormArgs& end, int t, float* kept,
                                          NormShared& shared) {
  const auto norm = [&](const auto& row) {
    NormInAnyBlock(row, end.norm.hidden, end.norm.eps, kept, shared);
  };
  if (end.combine.expert_out != nullptr) {
    using Delta = CombinedDelta<device::Bf16>;
    const Delta delta = {end.combine, t, end.whole};
    norm(NormRow<float, Delta, device::Bf16>(end.norm, t, delta, end.whole));
  } else {
    norm(NormRow<device::Bf16, NoDelta, device::Bf16>(end.norm, t, NoDelta(), end.whole));
  }
}

template <typename Traits>
__global__ void __launch_bounds__(kGemmThreads, Traits::kMinBlocks)
    FinishKernel(const __grid_constant__ FinishLaunch launch) {
  // Never launched elsewhere: ChooseFinish.
  if constexpr (device::kHasWgmma || !Traits::kTogether) {
    GemmBlock<Traits> block(launch.gemm, &device::SharedMemory<unsigned char>());
    block.Run();
    FinishShared& shared = device::SharedMemory<FinishShared>();
    const int num_last = launch.num_last;
    const int number = NumberAmongLast(launch.meeting, num_last, shared.number);
    if (number < 0) return;
    if (num_last > 1) {
      WaitForBlocks(launch.meeting, num_last);
    } else {
      ResetBlocks(&launch.meeting->num_come);
    }
    float* const kept = reinterpret_cast<float*>(&shared + 1);
    int odd = 0;
#pragma unroll 1
    for (int t = number; t < launch.end.norm.num_tokens; t += num_last, odd ^= 1) {
      NormToken(launch.end, t, kept, shared.norm[odd]);
    }
  }
}

bool Combines(const FinishParams& p) { return p.combine.expert_out != nullptr; }

bool HasEnd(const FinishParams& p) {
  if (Combines(p)) {
    return p.combine.expert_type == Element::kBF16 && CanCombineAndNorm(p.combine, p.norm);
  }
  return p.norm.x_type == Element::kBF16 && p.norm.delta == nullptr && p.norm.low == nullptr;
}

// The last of `num_blocks` that should share the tokens; 0: a kernel of its own should have them.
int32_t NumLast(const RmsNormParams& norm, int32_t num_blocks, const DeviceFacts& device) {
  const int64_t token = kTurnTime * CeilDiv(norm.hidden, kTurnColumns);
  const int32_t most = Min(Min(norm.num_tokens, num_blocks), Max(device.num_sms / 2, 1));
  const int64_t alone = kTimeOfOne + norm.num_tokens * token;
  const int64_t shared = kTimeOfSeveral + CeilDiv(norm.num_tokens, most) * token;
  if ((alone < shared ? alone : shared) > kTimeApart + token / 2) return 0;
  return alone <= shared ? 1 : most;
}

// Calls `use` with the traits of the plan's tile.
template <typename Use>
void WithTraits(const GemmPlan& plan, WeightFormat format, const Use& use) {
  if (plan.atom == GemmAtom::kWgmmaFp8) return WithSmallFp8Tile(plan.tile_tokens, use);
  WithSmallTile(format, plan.atom, plan.tile_tokens, use);
}

}  // namespace

FinishPlan ChooseFinish(const FinishParams& p, const DeviceFacts& device) {
  FinishPlan plan;
  if (p.norm.num_tokens < 1 || p.norm.num_tokens > kMostSmallTokens ||
      p.product.out_type != Element::kBF16 || p.norm.out_type != Element::kBF16 ||
      p.product.epilogue != GemmEpilogue::kStore || !HasEnd(p)) {
    return plan;
  }
  const GemmPlan gemm = ChooseGemm(p.product, device);
  if (gemm.num_blocks == 0 || gemm.tile_tokens > kMostSmallTokens) return plan;
  plan.num_last = NumLast(p.norm, gemm.num_blocks, device);
  if (plan.num_last == 0) return plan;
  plan.gemm = gemm;
  plan.smem_bytes = Max(gemm.smem_bytes, FinishBytes(p.norm.hidden));
  plan.whole =
      Combines(p) ? ChooseCombineAndNorm(p.combine, p.norm).whole : ChooseRmsNorm(p.norm).whole;
  return plan;
}

cudaError_t LaunchFinish(const FinishParams& p, const DeviceFacts& device, cudaStream_t stream) {
  const FinishPlan plan = ChooseFinish(p, device);
  if (plan.gemm.num_blocks == 0) return cudaErrorInvalidValue;
  const FinishLaunch launch = {MakeGemmLaunch(p.product, plan.gemm),
                               {p.combine, p.norm, plan.whole},
                               reinterpret_cast<BlockMeeting*>(p.meeting),
                               plan.num_last};
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(plan.gemm.num_blocks));
  shape.block = kGemmThreads;
  shape.smem_bytes = plan.smem_bytes;
  shape.early = device.early;
  cudaError_t error = cudaErrorInvalidValue;
  WithTraits(plan.gemm, p.product.layout.format, [&](auto traits) {
    error = Launch(FinishKernel<decltype(traits)>, shape, stream, launch);
  });
  return error;
}

}  // namespace jevons::cuda

// A product whose last block sums and norms the tokens. Formulas in ops/linear.h and ops/moe.h.
//
// The product is that of gemm.cu, tile by tile; its registers are free when the last tile is stored.
// The block that finishes last then takes one token after the other, as CombineAndNorm or RmsNorm
// does: eight bf16 rows of 2048 are 32 KB from L2, so a token takes it 0.7 us or so, where a kernel
// of its own costs a boundary of 1.3 us and the latency of its start. That ends at a few tokens.
//
// Barriers: those of gemm_kernel.h; those of IsLastBlock, after which the place of the tokens of the
// product is that of the norm's sums; that of each norm (norm_row.h).
#include "cuda/finish.h"

#include "cuda/combine_row.h"
#include "cuda/device/launch.h"
#include "cuda/gemm_kernel.h"
#include "cuda/gemm_octet.h"
#include "cuda/last_block.h"
#include "cuda/norm_row.h"

namespace jevons::cuda {
namespace {

// Of all tokens together: more than that takes the last block longer than a launch costs.
constexpr int64_t kMostValues = 8192;

struct FinishLaunch {
  GemmLaunch gemm;
  CombineAndNormArgs end;
  int32_t* num_done = nullptr;
};

// In the place of the product's tokens. A token's row follows, f32.
struct alignas(16) FinishShared {
  NormShared norm[2];  // of even and of odd tokens
  int32_t is_last;
};

int FinishBytes(int hidden) {
  return static_cast<int>(sizeof(FinishShared) + NumVectors(hidden) * kRowVector * sizeof(float));
}

template <typename Traits>
__global__ void __launch_bounds__(kGemmThreads, Traits::kMinBlocks)
    FinishKernel(const __grid_constant__ FinishLaunch launch) {
  // Never launched elsewhere: ChooseFinish.
  if constexpr (device::kHasWgmma || !Traits::kTogether) {
    GemmBlock<Traits> block(launch.gemm, &device::SharedMemory<unsigned char>());
    block.Run();
    FinishShared& shared = device::SharedMemory<FinishShared>();
    if (!IsLastBlock(launch.num_done, shared.is_last)) return;
    using Delta = CombinedDelta<device::Bf16>;
    const CombineAndNormArgs& end = launch.end;
    float* const kept = reinterpret_cast<float*>(&shared + 1);
#pragma unroll 1
    for (int t = 0; t < end.norm.num_tokens; ++t) {
      const auto norm = [&](const auto& row) {
        NormInAnyBlock(row, end.norm.hidden, end.norm.eps, kept, shared.norm[t % 2]);
      };
      if (end.combine.expert_out != nullptr) {
        const Delta delta = {end.combine, t, end.whole};
        norm(NormRow<float, Delta, device::Bf16>(end.norm, t, delta, end.whole));
      } else {
        norm(NormRow<device::Bf16, NoDelta, device::Bf16>(end.norm, t, NoDelta(), end.whole));
      }
    }
    ResetBlocks(launch.num_done);
  }
}

bool Combines(const FinishParams& p) { return p.combine.expert_out != nullptr; }

bool HasEnd(const FinishParams& p) {
  if (Combines(p)) {
    return p.combine.expert_type == Element::kBF16 && CanCombineAndNorm(p.combine, p.norm);
  }
  return p.norm.x_type == Element::kBF16 && p.norm.delta == nullptr && p.norm.low == nullptr;
}

}  // namespace

FinishPlan ChooseFinish(const FinishParams& p, const DeviceFacts& device) {
  FinishPlan plan;
  const bool small =
      p.norm.num_tokens >= 1 && int64_t{p.norm.num_tokens} * p.norm.hidden <= kMostValues;
  if (!small || p.product.out_type != Element::kBF16 || p.norm.out_type != Element::kBF16 ||
      p.product.epilogue != GemmEpilogue::kStore || !HasEnd(p)) {
    return plan;
  }
  const GemmPlan gemm = ChooseGemm(p.product, device);
  if (gemm.tile_tokens != kOctetTokens) return plan;
  plan.gemm = gemm;
  plan.whole =
      Combines(p) ? ChooseCombineAndNorm(p.combine, p.norm).whole : ChooseRmsNorm(p.norm).whole;
  return plan;
}

cudaError_t LaunchFinish(const FinishParams& p, const DeviceFacts& device, cudaStream_t stream) {
  const FinishPlan plan = ChooseFinish(p, device);
  if (plan.gemm.num_blocks == 0) return cudaErrorInvalidValue;
  const FinishLaunch launch = {
      MakeGemmLaunch(p.product, plan.gemm), {p.combine, p.norm, plan.whole}, p.num_done};
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(plan.gemm.num_blocks));
  shape.block = kGemmThreads;
  shape.smem_bytes = Max(plan.gemm.smem_bytes, FinishBytes(p.norm.hidden));
  shape.early = device.early;
  cudaError_t error = cudaErrorInvalidValue;
  const auto start = [&](auto traits) {
    error = Launch(FinishKernel<decltype(traits)>, shape, stream, launch);
  };
  if (plan.gemm.atom == GemmAtom::kWgmmaFp8) {
    start(GemmTraits<WeightFormat::kE4m3, kOctetTokens, GemmAtom::kWgmmaFp8>());
  } else {
    WithOctet(p.product.layout.format, plan.gemm.atom, start);
  }
  return error;
}

}  // namespace jevons::cuda

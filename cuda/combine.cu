// ExpertCombine and CombineAndNorm: out[t] = sum_j weights[t, j] * expert_out[token_row[t, j]] +
// shared[t]; the second adds that to the residual and norms.
//
// A thread owns eight neighbouring columns of one token and walks its choices in order; the loads of
// several choices are under way at once. 64 tokens of 7168 with 8 bf16 rows each and f32 out read
// and write 64 * 7168 * (8 * 2 + 2 + 4) = 10 MB, 3.4 us at 3 TB/s. With the norm a block has the
// whole token and its sum never leaves the registers: 64 * 7168 * (8 * 2 + 4 + 4 + 2) = 12 MB, where
// two kernels move 15.
//
// Barriers: that of the norm (norm_row.h).
#include "cuda/combine.h"

#include "cuda/combine_row.h"
#include "cuda/device/launch.h"
#include "cuda/norm_row.h"

namespace jevons::cuda {
namespace {

using device::Bf16;

constexpr int kMostThreads = 256;

struct KernelArgs {
  ExpertCombineParams p;
  bool whole;
};

template <typename Expert, typename Out>
__global__ void __launch_bounds__(kMostThreads)
    ExpertCombineKernel(const __grid_constant__ KernelArgs args) {
  device::FollowKernelBefore();
  const ExpertCombineParams& p = args.p;
  const int64_t t = device::BlockIdxX();
  const int vector = device::BlockIdxY() * device::BlockDim() + device::ThreadIdx();
  if (vector >= NumVectors(p.hidden)) return;
  float sum[kRowVector];
  CombinedDelta<Expert>{p, t, args.whole}.Load(vector, sum);
  StoreVector(sum, vector, p.hidden, args.whole, static_cast<Out*>(p.out) + t * p.out_stride);
}

template <typename Expert, typename Out>
__global__ void __launch_bounds__(kNormThreads, 1)
    CombineAndNormKernel(const __grid_constant__ CombineAndNormArgs args) {
  device::FollowKernelBefore();
  const int64_t t = device::BlockIdxX();
  using Delta = CombinedDelta<Expert>;
  const NormRow<float, Delta, Out> row(args.norm, t, Delta{args.combine, t, args.whole},
                                       args.whole);
  NormInBlock(row, args.norm.hidden, args.norm.eps, device::SharedMemory<NormShared>());
}

}  // namespace

CombinePlan ChooseCombine(const ExpertCombineParams& p) {
  const int num_vectors = NumVectors(p.hidden);
  CombinePlan plan;
  plan.threads = ThreadsForVectors(num_vectors, kMostThreads);
  plan.blocks_per_token = (num_vectors + plan.threads - 1) / plan.threads;
  plan.whole = RowsAllowVectors(p.expert_out, p.expert_stride, p.hidden) &&
               RowsAllowVectors(p.shared, p.shared == nullptr ? 0 : p.shared_stride, p.hidden) &&
               RowsAllowVectors(p.out, p.out_stride, p.hidden);
  return plan;
}

cudaError_t LaunchExpertCombine(const ExpertCombineParams& p, const DeviceFacts& device,
                                cudaStream_t stream) {
  if (p.expert_type == Element::kF16 || p.shared_type == Element::kF16 ||
      p.out_type == Element::kF16) {
    return cudaErrorInvalidValue;
  }
  const CombinePlan plan = ChooseCombine(p);
  LaunchShape shape;
  shape.grid =
      dim3(static_cast<unsigned>(p.num_tokens), static_cast<unsigned>(plan.blocks_per_token));
  shape.block = plan.threads;
  shape.early = device.early;
  const bool from_f32 = p.expert_type == Element::kF32;
  const auto kernel =
      p.out_type == Element::kF32
          ? (from_f32 ? &ExpertCombineKernel<float, float> : &ExpertCombineKernel<Bf16, float>)
          : (from_f32 ? &ExpertCombineKernel<float, Bf16> : &ExpertCombineKernel<Bf16, Bf16>);
  return Launch(kernel, shape, stream, KernelArgs{p, plan.whole});
}

CombinePlan ChooseCombineAndNorm(const ExpertCombineParams& combine, const RmsNormParams& norm) {
  const CombinePlan of_combine = ChooseCombine(combine);
  const RowsPlan of_norm = ChooseRmsNorm(norm);
  return {of_norm.threads, 1, of_combine.whole && of_norm.whole};
}

bool CanCombineAndNorm(const ExpertCombineParams& combine, const RmsNormParams& norm) {
  return combine.expert_type != Element::kF16 && combine.shared_type != Element::kF16 &&
         combine.out_type == Element::kF32 && norm.x_type == Element::kF32 &&
         norm.out_type != Element::kF16 && norm.low == nullptr &&
         combine.num_tokens == norm.num_tokens && combine.hidden == norm.hidden;
}

cudaError_t LaunchCombineAndNorm(const ExpertCombineParams& combine, const RmsNormParams& norm,
                                 const DeviceFacts& device, cudaStream_t stream) {
  if (!CanCombineAndNorm(combine, norm)) return cudaErrorInvalidValue;
  const CombinePlan plan = ChooseCombineAndNorm(combine, norm);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(norm.num_tokens));
  shape.block = plan.threads;
  shape.early = device.early;
  shape.smem_bytes = sizeof(NormShared);
  const bool from_f32 = combine.expert_type == Element::kF32;
  const auto kernel =
      norm.out_type == Element::kF32
          ? (from_f32 ? &CombineAndNormKernel<float, float> : &CombineAndNormKernel<Bf16, float>)
          : (from_f32 ? &CombineAndNormKernel<float, Bf16> : &CombineAndNormKernel<Bf16, Bf16>);
  return Launch(kernel, shape, stream, CombineAndNormArgs{combine, norm, plan.whole});
}

}  // namespace jevons::cuda

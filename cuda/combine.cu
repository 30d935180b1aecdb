// ExpertCombine: out[t] = sum_j weights[t, j] * expert_out[token_row[t, j]] + shared[t].
//
// A thread owns eight neighbouring columns of one token and walks its choices in order; the loads of
// several choices are under way at once. 64 tokens of 7168 with 8 bf16 rows each and f32 out read
// and write 64 * 7168 * (8 * 2 + 2 + 4) = 10 MB, 3.4 us at 3 TB/s. No barriers.
#include "cuda/combine.h"

#include "cuda/device/launch.h"
#include "cuda/device/thread.h"
#include "cuda/row_vector.h"

namespace jevons::cuda {
namespace {

using device::Bf16;

constexpr int kMostThreads = 256;
// Rows of experts that a thread reads before it adds the first of them.
constexpr int kLoadsUnderWay = 4;

struct KernelArgs {
  ExpertCombineParams p;
  bool whole;
};

template <typename Shared>
__device__ __forceinline__ void AddShared(const KernelArgs& args, int64_t t, int vector,
                                          float (&sum)[kRowVector]) {
  float v[kRowVector];
  LoadVector(static_cast<const Shared*>(args.p.shared) + t * args.p.shared_stride, vector,
             args.p.hidden, args.whole, v);
#pragma unroll
  for (int i = 0; i < kRowVector; ++i) sum[i] += v[i];
}

// Adds the choices [first, first + kLoadsUnderWay) of token t.
template <typename Expert>
__device__ __forceinline__ void AddChoices(const ExpertCombineParams& p, const Expert* expert_out,
                                           int64_t t, int first, int vector, bool whole,
                                           float (&sum)[kRowVector]) {
  bool there[kLoadsUnderWay];
  float v[kLoadsUnderWay][kRowVector];
#pragma unroll
  for (int i = 0; i < kLoadsUnderWay; ++i) {
    const int j = first + i;
    const int32_t row = j < p.top_k ? p.token_row[t * p.top_k + j] : -1;
    there[i] = row >= 0 && row < p.num_rows;
    if (there[i]) LoadVector(expert_out + row * p.expert_stride, vector, p.hidden, whole, v[i]);
  }
#pragma unroll
  for (int i = 0; i < kLoadsUnderWay; ++i) {
    if (!there[i]) continue;
    const float weight = p.weights[t * p.top_k + first + i];
#pragma unroll
    for (int c = 0; c < kRowVector; ++c) sum[c] = device::Fma(weight, v[i][c], sum[c]);
  }
}

template <typename Expert, typename Out>
__global__ void __launch_bounds__(kMostThreads)
    ExpertCombineKernel(const __grid_constant__ KernelArgs args) {
  const ExpertCombineParams& p = args.p;
  const int64_t t = device::BlockIdxX();
  const int vector = device::BlockIdxY() * device::BlockDim() + device::ThreadIdx();
  if (vector >= NumVectors(p.hidden)) return;
  const Expert* expert_out = static_cast<const Expert*>(p.expert_out);
  float sum[kRowVector] = {};
  for (int first = 0; first < p.top_k; first += kLoadsUnderWay) {
    AddChoices(p, expert_out, t, first, vector, args.whole, sum);
  }
  if (p.shared != nullptr) {
    if (p.shared_type == Element::kF32) {
      AddShared<float>(args, t, vector, sum);
    } else {
      AddShared<Bf16>(args, t, vector, sum);
    }
  }
  StoreVector(sum, vector, p.hidden, args.whole, static_cast<Out*>(p.out) + t * p.out_stride);
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

cudaError_t LaunchExpertCombine(const ExpertCombineParams& p, const DeviceFacts&,
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
  const bool from_f32 = p.expert_type == Element::kF32;
  const auto kernel =
      p.out_type == Element::kF32
          ? (from_f32 ? &ExpertCombineKernel<float, float> : &ExpertCombineKernel<Bf16, float>)
          : (from_f32 ? &ExpertCombineKernel<float, Bf16> : &ExpertCombineKernel<Bf16, Bf16>);
  return Launch(kernel, shape, stream, KernelArgs{p, plan.whole});
}

}  // namespace jevons::cuda

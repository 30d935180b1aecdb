// Embed, RmsNorm, SiluMul, Rope, GatherRows: one pass over rows. Formulas in ops/elementwise.h.
//
// A thread works on vectors of eight neighbouring elements; where the rows allow it a vector is
// read as 16 bytes (bf16) or twice that (f32), else element by element with the same results.
// RmsNorm gives a row to one block, the others spread a row over as many blocks as it fills.
// Bytes decide: RmsNorm of 64 rows of 7168 with a bf16 delta moves 64 * 7168 * (4 + 2 + 4 + 2) =
// 5.5 MB, 1.8 us at 3 TB/s; a single row is bound by the latency of its loads, so a thread issues
// all of them before it uses the first.
//
// Barriers: that of RmsNorm's sum (norm_row.h).
#include "cuda/rows.h"

#include <cmath>
#include <type_traits>

#include "cuda/device/launch.h"
#include "cuda/device/thread.h"
#include "cuda/norm_row.h"
#include "cuda/rope_vector.h"

namespace jevons::cuda {
namespace {

using device::Bf16;

constexpr int kMostThreads = 256;
template <typename P>
struct Planned {
  P p;
  RowsPlan plan;
};

// The vector of its row that this thread works on.
__device__ __forceinline__ int VectorIdx() {
  return device::BlockIdxY() * device::BlockDim() + device::ThreadIdx();
}

__device__ __forceinline__ int32_t EmbeddedId(const EmbedParams& p, int64_t t) {
  const int32_t id = p.ids[t];
  if (id >= -1) return id;
  const int32_t drawn_idx = -2 - id;
  return drawn_idx < p.num_drawn ? p.drawn[drawn_idx] : -1;
}

template <typename Table>
__global__ void __launch_bounds__(kMostThreads)
    EmbedKernel(const __grid_constant__ Planned<EmbedParams> args) {
  device::FollowKernelBefore();
  const EmbedParams& p = args.p;
  const int64_t t = device::BlockIdxX();
  const int vector = VectorIdx();
  if (vector >= NumVectors(p.hidden)) return;
  const int32_t id = EmbeddedId(p, t);
  float v[kRowVector];
  if (id >= 0 && id < p.vocab) {
    const Table* row = static_cast<const Table*>(p.table) + id * p.table_stride;
    LoadVector(row, vector, p.hidden, args.plan.whole, v);
  } else {
    FillNan(v);
  }
  StoreVector(v, vector, p.hidden, args.plan.whole, p.out + t * p.out_stride);
}

template <typename X, typename Delta, typename Out>
__global__ void __launch_bounds__(kNormThreads, 2)
    RmsNormKernel(const __grid_constant__ Planned<RmsNormParams> args) {
  device::FollowKernelBefore();
  const RmsNormParams& p = args.p;
  const int64_t t = device::BlockIdxX();
  const bool whole = args.plan.whole;
  const auto row = [&](auto delta) { return NormRow<X, decltype(delta), Out>(p, t, delta, whole); };
  NormShared& shared = device::SharedMemory<NormShared>();
  if constexpr (std::is_void_v<Delta>) {
    NormInBlock(row(NoDelta()), p.hidden, p.eps, shared);
  } else {
    const Delta* delta = static_cast<const Delta*>(p.delta) + t * p.delta_stride;
    NormInBlock(row(DeltaRow<Delta>{delta, p.hidden, whole}), p.hidden, p.eps, shared);
  }
}

// exp(-|z|) cannot overflow, where exp(-z) can.
__device__ __forceinline__ float Silu(float z) {
  const float e = expf(-fabsf(z));
  return (z < 0 ? z * e : z) / (1.0f + e);
}

template <typename In, typename Out>
__global__ void __launch_bounds__(kMostThreads)
    SiluMulKernel(const __grid_constant__ Planned<SiluMulParams> args) {
  device::FollowKernelBefore();
  const SiluMulParams& p = args.p;
  const int64_t t = device::BlockIdxX();
  const int vector = VectorIdx();
  if (vector >= NumVectors(p.width)) return;
  if (p.row_limit != nullptr && t >= *p.row_limit) return;
  const In* row = static_cast<const In*>(p.gate_up) + t * p.in_stride;
  float gate[kRowVector];
  float up[kRowVector];
  LoadVector(row, vector, p.width, args.plan.whole, gate);
  LoadVector(row + p.width, vector, p.width, args.plan.whole, up);
#pragma unroll
  for (int i = 0; i < kRowVector; ++i) gate[i] = Silu(gate[i]) * up[i];
  StoreVector(gate, vector, p.width, args.plan.whole, static_cast<Out*>(p.out) + t * p.out_stride);
}

template <typename In, typename Out>
__global__ void __launch_bounds__(kMostThreads)
    RopeKernel(const __grid_constant__ Planned<RopeParams> args) {
  device::FollowKernelBefore();
  const int vectors_per_head = NumVectors(args.p.d);
  const int head = VectorIdx() / vectors_per_head;
  if (head >= args.p.num_heads) return;
  RopeVector<In, Out>(args.p, args.plan.whole, device::BlockIdxX(), head,
                      VectorIdx() % vectors_per_head);
}

template <typename Unit>
__device__ __forceinline__ Unit AllOnes() {
  if constexpr (sizeof(Unit) == 16) {
    return make_uint4(~0u, ~0u, ~0u, ~0u);
  } else {
    return static_cast<Unit>(~0u);
  }
}

// Width and strides count units, of 16 bytes or of one element. All ones is NaN in both types.
template <typename Unit>
__global__ void __launch_bounds__(kMostThreads)
    GatherRowsKernel(const __grid_constant__ GatherRowsParams p) {
  device::FollowKernelBefore();
  const int64_t i = device::BlockIdxX();
  const int unit = VectorIdx();
  if (unit >= p.width) return;
  const int32_t from = p.row_idx[i];
  if (from == -1) return;
  const bool known = from >= 0 && from < p.num_source_rows;
  static_cast<Unit*>(p.out)[i * p.out_stride + unit] =
      known ? static_cast<const Unit*>(p.x)[from * p.x_stride + unit] : AllOnes<Unit>();
}

RowsPlan Spread(int num_vectors, bool whole) {
  RowsPlan plan;
  plan.threads = ThreadsForVectors(num_vectors, kMostThreads);
  plan.blocks_per_row = (num_vectors + plan.threads - 1) / plan.threads;
  plan.whole = whole;
  return plan;
}

template <typename P, typename KernelArgs>
cudaError_t LaunchRows(void (*kernel)(KernelArgs), const P& params, const RowsPlan& plan,
                       int32_t num_rows, const DeviceFacts& device, cudaStream_t stream,
                       int smem_bytes = 0) {
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(num_rows), static_cast<unsigned>(plan.blocks_per_row));
  shape.block = plan.threads;
  shape.smem_bytes = smem_bytes;
  shape.early = device.early;
  return Launch(kernel, shape, stream, Planned<P>{params, plan});
}

using NormKernel = void (*)(const Planned<RmsNormParams>);

// What rounding leaves is written where there is a delta alone: of the router's input.
NormKernel PickSplitNorm(const RmsNormParams& p) {
  const bool known = p.x_type == Element::kF32 && p.out_type == Element::kBF16 &&
                     p.delta != nullptr && p.delta_type == Element::kF32;
  return known ? &RmsNormKernel<float, float, SplitBf16> : nullptr;
}

template <typename Out>
NormKernel PickNorm(const RmsNormParams& p) {
  if (p.x_type == Element::kBF16) {
    return p.delta == nullptr ? &RmsNormKernel<Bf16, void, Out> : nullptr;
  }
  if (p.x_type != Element::kF32) return nullptr;
  if (p.delta == nullptr) return &RmsNormKernel<float, void, Out>;
  if (p.delta_type == Element::kF32) return &RmsNormKernel<float, float, Out>;
  if (p.delta_type == Element::kBF16) return &RmsNormKernel<float, Bf16, Out>;
  return nullptr;
}

bool FloatOrBf16(Element a, Element b) { return a != Element::kF16 && b != Element::kF16; }

}  // namespace

RowsPlan ChooseEmbed(const EmbedParams& p) {
  return Spread(NumVectors(p.hidden), RowsAllowVectors(p.table, p.table_stride, p.hidden) &&
                                          RowsAllowVectors(p.out, p.out_stride, p.hidden));
}

RowsPlan ChooseRmsNorm(const RmsNormParams& p) {
  RowsPlan plan;
  plan.threads = NormThreads(p.hidden);
  plan.blocks_per_row = 1;
  plan.whole = RowsAllowVectors(p.x, p.x_stride, p.hidden) &&
               RowsAllowVectors(p.delta, p.delta == nullptr ? 0 : p.delta_stride, p.hidden) &&
               RowsAllowVectors(p.out, p.out_stride, p.hidden) &&
               RowsAllowVectors(p.low, p.out_stride, p.hidden) &&
               RowsAllowVectors(p.weight, 0, p.hidden);
  return plan;
}

RowsPlan ChooseSiluMul(const SiluMulParams& p) {
  return Spread(NumVectors(p.width), RowsAllowVectors(p.gate_up, p.in_stride, p.width) &&
                                         RowsAllowVectors(p.out, p.out_stride, p.width));
}

RowsPlan ChooseRope(const RopeParams& p) {
  return Spread(
      p.num_heads * NumVectors(p.d),
      RowsAllowVectors(p.x, p.x_stride, p.d) && RowsAllowVectors(p.x, p.x_head_stride, p.d) &&
          RowsAllowVectors(p.out, p.out_stride, p.d) &&
          RowsAllowVectors(p.out, p.out_head_stride, p.d) && RowsAllowVectors(p.cos_sin, p.d, p.d));
}

RowsPlan ChooseGatherRows(const GatherRowsParams& p) {
  const bool whole =
      RowsAllowVectors(p.x, p.x_stride, p.width) && RowsAllowVectors(p.out, p.out_stride, p.width);
  return Spread(whole ? p.width * ElementBytes(p.type) / 16 : p.width, whole);
}

cudaError_t LaunchEmbed(const EmbedParams& p, const DeviceFacts& device, cudaStream_t stream) {
  const auto kernel = p.table_type == Element::kF32   ? &EmbedKernel<float>
                      : p.table_type == Element::kF16 ? &EmbedKernel<F16>
                                                      : &EmbedKernel<Bf16>;
  return LaunchRows(kernel, p, ChooseEmbed(p), p.num_tokens, device, stream);
}

cudaError_t LaunchRmsNorm(const RmsNormParams& p, const DeviceFacts& device, cudaStream_t stream) {
  const NormKernel kernel = p.low != nullptr               ? PickSplitNorm(p)
                            : p.out_type == Element::kF32  ? PickNorm<float>(p)
                            : p.out_type == Element::kBF16 ? PickNorm<Bf16>(p)
                                                           : nullptr;
  if (kernel == nullptr) return cudaErrorInvalidValue;
  return LaunchRows(kernel, p, ChooseRmsNorm(p), p.num_tokens, device, stream, sizeof(NormShared));
}

cudaError_t LaunchSiluMul(const SiluMulParams& p, const DeviceFacts& device, cudaStream_t stream) {
  if (!FloatOrBf16(p.in_type, p.out_type)) return cudaErrorInvalidValue;
  const bool from_f32 = p.in_type == Element::kF32;
  const auto kernel = p.out_type == Element::kF32
                          ? (from_f32 ? &SiluMulKernel<float, float> : &SiluMulKernel<Bf16, float>)
                          : (from_f32 ? &SiluMulKernel<float, Bf16> : &SiluMulKernel<Bf16, Bf16>);
  return LaunchRows(kernel, p, ChooseSiluMul(p), p.num_rows, device, stream);
}

cudaError_t LaunchRope(const RopeParams& p, const DeviceFacts& device, cudaStream_t stream) {
  if (!FloatOrBf16(p.in_type, p.out_type)) return cudaErrorInvalidValue;
  const bool from_f32 = p.in_type == Element::kF32;
  const auto kernel = p.out_type == Element::kF32
                          ? (from_f32 ? &RopeKernel<float, float> : &RopeKernel<Bf16, float>)
                          : (from_f32 ? &RopeKernel<float, Bf16> : &RopeKernel<Bf16, Bf16>);
  return LaunchRows(kernel, p, ChooseRope(p), p.num_tokens, device, stream);
}

cudaError_t LaunchGatherRows(const GatherRowsParams& params, const DeviceFacts& device,
                             cudaStream_t stream) {
  if (params.type == Element::kF16) return cudaErrorInvalidValue;
  const RowsPlan plan = ChooseGatherRows(params);
  GatherRowsParams p = params;
  const int elements_per_unit = plan.whole ? 16 / ElementBytes(p.type) : 1;
  p.width /= elements_per_unit;
  p.x_stride /= elements_per_unit;
  p.out_stride /= elements_per_unit;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(p.num_rows), static_cast<unsigned>(plan.blocks_per_row));
  shape.block = plan.threads;
  shape.early = device.early;
  const auto kernel = plan.whole                ? &GatherRowsKernel<uint4>
                      : p.type == Element::kF32 ? &GatherRowsKernel<uint32_t>
                                                : &GatherRowsKernel<uint16_t>;
  return Launch(kernel, shape, stream, p);
}

}  // namespace jevons::cuda

// Norm, router, choice and dispatch of a small step. Formulas in ops/moe.h.
//
// A block has a strip of 16 experts and all tokens. It asks for its weights (while the kernel before
// still runs), norms every row by
// itself and keeps x + delta of each in shared memory; its warps multiply slices of 256 columns in
// turn, with the row's bf16 and what that leaves as two operands of the tensor core; the slices are
// added in order. The block that finishes last writes x, which until then the others may still
// read, chooses with a warp a token, and groups the choices.
//
// One token of V2-Lite: four blocks read 64 KB of weights each and 24 KB of x, delta and norm
// weight. The latencies of three loads and of one meeting of the blocks decide, some 4 us.
// V3: 16 blocks of 229 KB, 4 us at what one multiprocessor gets from memory.
//
// Barriers. (1) The rows, their warps' sums and the norm's weight are there. (2) The slices' sums
// are there. (3, 4) Those of IsLastBlock, where the logits are written. (5) The rows are written to
// x, and their place is the choice's. (6) The choices are there, and their place is the dispatch's.
#include "cuda/router.h"

#include "cuda/device/copy.h"
#include "cuda/device/launch.h"
#include "cuda/device/mma.h"
#include "cuda/dispatch_block.h"
#include "cuda/last_block.h"
#include "cuda/norm_row.h"
#include "cuda/route_token.h"

namespace jevons::cuda {
namespace {

constexpr int kWarps = kFusedWarps;
constexpr int kThreads = 32 * kWarps;
constexpr int kStepColumns = 16;  // of one instruction; a run of the weight
constexpr int kRunBytes = 512;
constexpr int kSliceColumns = 256;
constexpr int kSliceSteps = kSliceColumns / kStepColumns;
// Vectors of rows that a thread reads before it adds the first of them.
constexpr int kReads = 4;
// Between two rows in shared memory: eight tokens' pairs of columns lie in different banks.
constexpr int kRowPadding = 8;

// Offsets into the block's shared memory, in floats.
struct RouterSmem {
  int32_t row = 0;      // from token to token of x, f32 [num_tokens][row]
  int32_t weight = 0;   // of the norm, f32 [padded columns]
  int32_t partial = 0;  // sums of slices, f32 [2][slice][token][16]
  int32_t sums = 0;     // NormShared [token]
  int32_t is_last = 0;
  int32_t floats = 0;
};

struct RouterLaunch {
  RouterParams p;
  RouterSmem smem;
  int32_t num_steps = 0;  // of a strip
  int32_t num_slices = 0;
  bool whole = false;
};

class RouterBlock {
 public:
  __device__ __forceinline__ explicit RouterBlock(const RouterLaunch& launch)
      : launch_(launch), norm_(launch.p.norm), smem_(&device::SharedMemory<float>()) {}

  // This block's logits of all tokens. `num_tokens` rows of out are written by the grid together.
  __device__ __forceinline__ void Multiply() {
    uint4 runs[kSliceSteps];
    const int first = device::WarpIdx();
#pragma unroll
    for (int j = 0; j < kSliceSteps; ++j) LoadRun(first, j, runs[j]);
    ReadWeight();
    device::FollowKernelBefore();
    ReadRows();
    device::CpAsyncWait<0>();
    device::SyncThreads();  // (1)
    WriteNormed();
    for (int slice = first; slice < launch_.num_slices; slice += kWarps) {
      MultiplySlice(slice, runs);
    }
    device::SyncThreads();  // (2)
    AddSlices();
  }

  // x = x + delta, by the last block.
  __device__ __forceinline__ void WriteResidual() const {
    ForEachVector(0, 1, [&](int t, int vector) {
      float v[kRowVector];
      LoadWhole(Row(t) + vector * kRowVector, v);
      StoreVector(v, vector, norm_.hidden, launch_.whole,
                  static_cast<float*>(norm_.x) + t * norm_.x_stride);
    });
  }

  __device__ __forceinline__ int32_t& IsLast() const {
    return reinterpret_cast<int32_t&>(smem_[launch_.smem.is_last]);
  }

 private:
  __device__ __forceinline__ float* Row(int t) const { return smem_ + t * launch_.smem.row; }
  __device__ __forceinline__ NormShared& Sums(int t) const {
    return reinterpret_cast<NormShared*>(smem_ + launch_.smem.sums)[t];
  }
  __device__ __forceinline__ float* Partial(int half, int slice, int t) const {
    const int sum = (half * launch_.num_slices + slice) * norm_.num_tokens + t;
    return smem_ + launch_.smem.partial + sum * kStripRows;
  }

  // fn(token, vector) for the tokens first, first + step, ...
  template <typename Fn>
  __device__ __forceinline__ void ForEachVector(int first, int step, const Fn& fn) const {
    for (int t = first; t < norm_.num_tokens; t += step) {
      for (int v = device::ThreadIdx(); v < NumVectors(norm_.hidden); v += kThreads) fn(t, v);
    }
  }

  __device__ __forceinline__ void LoadRun(int slice, int j, uint4& run) const {
    const int step = slice * kSliceSteps + j;
    if (step >= launch_.num_steps) return;
    const int64_t at = static_cast<int64_t>(device::BlockIdxX()) * launch_.num_steps + step;
    run = device::LoadStream16(static_cast<const unsigned char*>(launch_.p.weight) +
                               at * kRunBytes + device::LaneIdx() * 16);
  }

  // The norm's weight, and zeroes where the columns of the product go past the row's.
  __device__ __forceinline__ void ReadWeight() const {
    float* const to = smem_ + launch_.smem.weight;
    const int columns = launch_.num_steps * kStepColumns;
    if (launch_.whole) {
      for (int i = 4 * device::ThreadIdx(); i < columns; i += 4 * kThreads) {
        const int bytes = i < norm_.hidden ? 16 : 0;
        device::CpAsync<16>(to + i, bytes == 0 ? norm_.weight : norm_.weight + i, bytes);
      }
    } else {
      for (int i = device::ThreadIdx(); i < columns; i += kThreads) {
        const int bytes = i < norm_.hidden ? 4 : 0;
        device::CpAsync<4>(to + i, bytes == 0 ? norm_.weight : norm_.weight + i, bytes);
      }
    }
    device::CpAsyncCommit();
    const int used = NumVectors(norm_.hidden) * kRowVector;
    for (int t = 0; t < norm_.num_tokens; ++t) {
      for (int i = used + device::ThreadIdx(); i < columns; i += kThreads) Row(t)[i] = 0;
    }
  }

  // x + delta to shared memory, and the sums of squares. A warp stands for one of the norm's warps
  // after the other, over all tokens, and for kReads of them at a time.
  __device__ __forceinline__ void ReadRows() const {
    const int warps = NormThreads(norm_.hidden) / 32;
    for (int first = device::WarpIdx(); first < norm_.num_tokens * warps;
         first += kReads * kWarps) {
      float sum[kReads] = {};
      for (int begin = 0; begin < NumVectors(norm_.hidden); begin += 32 * warps) {
        ReadVectors(first, begin, warps, sum);
      }
#pragma unroll
      for (int r = 0; r < kReads; ++r) {
        const int t = (first + r * kWarps) / warps;
        const float of_warp = WarpSum(sum[r]);
        if (device::LaneIdx() != 0 || t >= norm_.num_tokens) continue;
        Sums(t).warp_sum[(first + r * kWarps) % warps] = of_warp;
      }
    }
  }
  // One vector of each.
  __device__ __forceinline__ void ReadVectors(int first, int begin, int warps,
                                              float (&sum)[kReads]) const {
    const auto for_each = [&](const auto& fn) {
#pragma unroll
      for (int r = 0; r < kReads; ++r) {
        const int t = (first + r * kWarps) / warps;
        const int vector = begin + (first + r * kWarps) % warps * 32 + device::LaneIdx();
        if (t < norm_.num_tokens && vector < NumVectors(norm_.hidden)) fn(r, t, vector);
      }
    };
    float v[kReads][kRowVector];
    for_each([&](int r, int t, int vector) { ReadSum(t, vector, v[r]); });
    for_each([&](int r, int t, int vector) {
      StoreWhole(v[r], Row(t) + vector * kRowVector);
      sum[r] = AddSquares(v[r], sum[r]);
    });
  }
  __device__ __forceinline__ void ReadSum(int t, int vector, float (&v)[kRowVector]) const {
    float d[kRowVector];
    LoadVector(static_cast<const float*>(norm_.x) + t * norm_.x_stride, vector, norm_.hidden,
               launch_.whole, v);
    LoadVector(static_cast<const float*>(norm_.delta) + t * norm_.delta_stride, vector,
               norm_.hidden, launch_.whole, d);
#pragma unroll
    for (int i = 0; i < kRowVector; ++i) v[i] += d[i];
  }

  // The blocks share the tokens.
  __device__ __forceinline__ void WriteNormed() const {
    ForEachVector(device::BlockIdxX(), device::GridDimX(), [&](int t, int vector) {
      const float factor = NormFactor(Sums(t), norm_.hidden, norm_.eps);
      float v[kRowVector];
      float w[kRowVector];
      LoadWhole(Row(t) + vector * kRowVector, v);
      LoadWhole(smem_ + launch_.smem.weight + vector * kRowVector, w);
#pragma unroll
      for (int i = 0; i < kRowVector; ++i) v[i] = v[i] * factor * w[i];
      StoreVector(v, vector, norm_.hidden, launch_.whole,
                  static_cast<device::Bf16*>(norm_.out) + t * norm_.out_stride);
    });
  }

  // Both sums of the warp's slice; meanwhile its next one is on its way.
  __device__ __forceinline__ void MultiplySlice(int slice, uint4 (&runs)[kSliceSteps]) const {
    const int token = device::LaneIdx() / 4;
    const bool there = token < norm_.num_tokens;
    const float factor = there ? NormFactor(Sums(token), norm_.hidden, norm_.eps) : 0.0f;
    float high[4] = {};
    float low[4] = {};
#pragma unroll
    for (int j = 0; j < kSliceSteps; ++j) {
      if (slice * kSliceSteps + j >= launch_.num_steps) break;
      const uint32_t a[4] = {runs[j].x, runs[j].y, runs[j].z, runs[j].w};
      uint32_t b_high[2] = {};
      uint32_t b_low[2] = {};
      const int column = slice * kSliceColumns + j * kStepColumns + device::LaneIdx() % 4 * 2;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (there) SplitPair(token, factor, column + 8 * i, b_high[i], b_low[i]);
      }
      device::MmaBf16(high, a, b_high);
      device::MmaBf16(low, a, b_low);
      LoadRun(slice + kWarps, j, runs[j]);
    }
    StoreSums(Partial(0, slice, 0), high);
    StoreSums(Partial(1, slice, 0), low);
  }

  __device__ __forceinline__ void SplitPair(int token, float factor, int column,
                                            uint32_t& pair_high, uint32_t& pair_low) const {
    const float2 v = *reinterpret_cast<const float2*>(Row(token) + column);
    const float2 w = *reinterpret_cast<const float2*>(smem_ + launch_.smem.weight + column);
    float high[2];
    float low[2];
    Split(v.x * factor, w.x, high[0], low[0]);
    Split(v.y * factor, w.y, high[1], low[1]);
    pair_high = device::PackBf16(high[0], high[1]);
    pair_low = device::PackBf16(low[0], low[1]);
  }

  // To [token][16].
  __device__ __forceinline__ void StoreSums(float* to, const float (&sum)[4]) const {
    const int expert = device::LaneIdx() / 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = device::LaneIdx() % 4 * 2 + i;
      if (token >= norm_.num_tokens) continue;
      to[token * kStripRows + expert] = sum[i];
      to[token * kStripRows + expert + 8] = sum[2 + i];
    }
  }

  __device__ __forceinline__ void AddSlices() const {
    const int token = device::ThreadIdx() / kStripRows;
    const int in_strip = device::ThreadIdx() % kStripRows;
    const int expert = device::BlockIdxX() * kStripRows + in_strip;
    if (token >= norm_.num_tokens || expert >= launch_.p.layout.n) return;
    float sum[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      for (int s = 0; s < launch_.num_slices; ++s) sum[half] += Partial(half, s, token)[in_strip];
    }
    const RouteTopKParams& route = launch_.p.route;
    route.logits[token * route.logits_stride + expert] = sum[0] + sum[1];
  }

  const RouterLaunch& launch_;
  const RmsNormParams& norm_;
  float* const smem_;
};
static_assert(kThreads >= kStripRows * kMaxRouterTokens && kWarps >= kMaxRouterTokens);

template <int kPerLane>
__global__ void __launch_bounds__(kThreads, 1)
    RouterKernel(const __grid_constant__ RouterLaunch launch) {
  const RouterParams& p = launch.p;
  RouterBlock block(launch);
  block.Multiply();
  if (!IsLastBlock(p.num_done, block.IsLast())) return;  // (3, 4)
  block.WriteResidual();
  device::SyncThreads();  // (5)
  if (device::WarpIdx() < p.route.num_tokens) RouteToken<kPerLane>(p.route, device::WarpIdx());
  if (p.cu_rows != nullptr) {
    device::SyncThreads();  // (6)
    DispatchInBlock({p.route.topk_idx, p.cu_rows, p.row_token, p.token_row, p.route.num_tokens,
                     p.route.top_k + p.route.num_fixed, AllExperts(p.route)});
  }
  ResetBlocks(p.num_done);
}

RouterSmem SmemOf(const RouterParams& p) {
  const int32_t columns = PaddedColumns(p.layout);
  const int32_t tokens = p.norm.num_tokens;
  RouterSmem smem;
  smem.row = columns + kRowPadding;
  smem.weight = tokens * smem.row;
  smem.partial = smem.weight + columns;
  smem.sums = smem.partial + 2 * CeilDiv(columns, kSliceColumns) * tokens * kStripRows;
  smem.is_last = smem.sums + tokens * kNormWarps;
  smem.floats = smem.is_last + 1;
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
  plan.smem_bytes = Max(plan.smem_bytes, RouteBytes(p.route, kWarps));
  plan.smem_bytes = Max(plan.smem_bytes, DispatchBytes(AllExperts(p.route)));
  if (plan.smem_bytes > device.max_smem_bytes) return plan;
  plan.threads = kThreads;
  plan.blocks = CeilDiv(p.layout.n, kStripRows);
  plan.whole = ChooseRmsNorm(p.norm).whole;
  return plan;
}

cudaError_t LaunchRouter(const RouterParams& p, const DeviceFacts& device, cudaStream_t stream) {
  const RouterPlan plan = ChooseRouter(p, device);
  if (plan.threads == 0) return cudaErrorInvalidValue;
  RouterLaunch launch;
  launch.p = p;
  launch.smem = SmemOf(p);
  launch.num_steps = PaddedColumns(p.layout) / kStepColumns;
  launch.num_slices = CeilDiv(PaddedColumns(p.layout), kSliceColumns);
  launch.whole = plan.whole;
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

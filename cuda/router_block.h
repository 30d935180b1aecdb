// What a block does of the router's work: the norm of a set of tokens, their logits of some experts,
// and, where it is last, their choice and the dispatch of all. router.cu says how, and what each
// barrier protects.
#pragma once

#include "cuda/device/copy.h"
#include "cuda/device/mma.h"
#include "cuda/dispatch_block.h"
#include "cuda/last_block.h"
#include "cuda/norm_row.h"
#include "cuda/route_token.h"
#include "cuda/router.h"

namespace jevons::cuda::router {

constexpr int kWarps = kFusedWarps;
constexpr int kThreads = 32 * kWarps;
constexpr int kStepColumns = 16;  // of one instruction; a run of the weight
constexpr int kRunBytes = 512;
constexpr int kSliceColumns = 256;
constexpr int kSliceSteps = kSliceColumns / kStepColumns;
// Between two rows in shared memory: eight tokens' pairs of columns lie in different banks.
constexpr int kRowPadding = 8;

// Offsets into the block's shared memory, in floats.
struct RouterSmem {
  int32_t row = 0;      // from token to token of x, f32 [set's tokens][row]
  int32_t weight = 0;   // of the norm, f32 [padded columns]
  int32_t partial = 0;  // sums of slices, f32 [2][slice][set's tokens][16]
  int32_t sums = 0;     // NormShared [token]
  int32_t flag = 0;     // of last_block.h
  int32_t floats = 0;
};

struct RouterLaunch {
  RouterParams p;
  RouterSmem smem;
  int32_t num_strips = 0;  // of 16 experts
  int32_t num_steps = 0;   // of a strip
  int32_t num_slices = 0;
  int32_t set_tokens = 0;  // the last set may have fewer
  int32_t num_sets = 0;
  int32_t set_blocks = 0;
  bool whole = false;
};
// In router.cu, for what ChooseRouter has a plan.
RouterLaunch MakeRouterLaunch(const RouterParams& params, const RouterPlan& plan);

static_assert(sizeof(BlockMeeting) == kMeetingCounters * sizeof(int32_t));

// What the launch's blocks count, and the place for who is last.
__device__ __forceinline__ BlockMeeting* Meeting(const RouterLaunch& launch) {
  return reinterpret_cast<BlockMeeting*>(launch.p.counters);
}
__device__ __forceinline__ int32_t& Flag(const RouterLaunch& launch) {
  return (&device::SharedMemory<int32_t>())[launch.smem.flag];
}

// kReads: vectors of rows that a thread reads before it adds the first of them. kAhead: steps of the
// weight under way.
template <int kReads, int kAhead>
class RouterBlock {
  static_assert(kSliceSteps % kAhead == 0);

 public:
  // Of set_blocks for each set, the block `number`.
  __device__ __forceinline__ RouterBlock(const RouterLaunch& launch, int number)
      : launch_(launch),
        norm_(launch.p.norm),
        smem_(&device::SharedMemory<float>()),
        set_(number / launch.set_blocks),
        part_(number % launch.set_blocks) {}

  // All of it. Weights are asked for before `wait`, which returns when x and delta are there.
  template <int kPerLane, typename Wait>
  __device__ __forceinline__ void Run(const Wait& wait) const {
    Multiply(wait);
    int32_t* const num_done = launch_.p.counters + kMeetingCounters + set_;
    if (!IsLastOf(launch_.set_blocks, num_done, Flag(launch_))) return;
    ResetBlocks(num_done);
    Choose<kPerLane>();
    if (IsLastSet()) Dispatch();
  }

 private:
  __device__ __forceinline__ int Lane() const { return thread_ % 32; }
  __device__ __forceinline__ int Warp() const { return thread_ / 32; }
  __device__ __forceinline__ int FirstToken() const { return set_ * launch_.set_tokens; }
  __device__ __forceinline__ int NumTokens() const {
    return Min(norm_.num_tokens - FirstToken(), launch_.set_tokens);
  }
  __device__ __forceinline__ float* Row(int t) const { return smem_ + t * launch_.smem.row; }
  __device__ __forceinline__ NormShared& Sums(int t) const {
    return reinterpret_cast<NormShared*>(smem_ + launch_.smem.sums)[t];
  }
  __device__ __forceinline__ float* Partial(int half, int slice, int t) const {
    const int sum = (half * launch_.num_slices + slice) * launch_.set_tokens + t;
    return smem_ + launch_.smem.partial + sum * kStripRows;
  }

  // Element 0 of the row of a token of the set.
  template <typename T, typename Rows>
  __device__ __forceinline__ T* RowOf(Rows* rows, int64_t stride, int t) const {
    return static_cast<T*>(rows) + (FirstToken() + t) * stride;
  }

  // The logits of the set, of this block the strips part, part + set_blocks, ... The rows of out are
  // written by its blocks together.
  template <typename Wait>
  __device__ __forceinline__ void Multiply(const Wait& wait) const {
    uint4 runs[kAhead];
    const unsigned char* const first = Weight(part_, Warp());
    const int first_steps = NumSteps(part_, Warp());
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (j < first_steps) runs[j] = device::LoadStream16(first + j * kRunBytes);
    }
    ReadWeight();
    wait();
    ReadRows();
    device::CpAsyncWait<0>();
    device::SyncThreads();  // (1)
    WriteNormed();
    for (int strip = part_; strip < launch_.num_strips; strip += launch_.set_blocks) {
      if (strip != part_) device::SyncThreads();  // (2)
      for (int slice = Warp(); slice < launch_.num_slices; slice += kWarps) {
        const bool more = slice + kWarps < launch_.num_slices;
        MultiplySlice(strip, slice, more ? strip : strip + launch_.set_blocks,
                      more ? slice + kWarps : Warp(), runs);
      }
      device::SyncThreads();  // (3)
      AddSlices(strip);
    }
  }

  // By the set's last block.
  template <int kPerLane>
  __device__ __forceinline__ void Choose() const {
    WriteResidual();
    device::SyncThreads();  // (6)
    if (Warp() < NumTokens()) RouteToken<kPerLane>(launch_.p.route, FirstToken() + Warp());
  }

  // Whether all sets have their choices, with barrier (7); then nobody counts any more.
  __device__ __forceinline__ bool IsLastSet() const {
    if (launch_.num_sets > 1) return IsLastToGo(Meeting(launch_), launch_.num_sets, Flag(launch_));
    device::SyncThreads();
    EndMeeting(Meeting(launch_));
    return true;
  }

  __device__ __forceinline__ void Dispatch() const {
    const RouterParams& p = launch_.p;
    if (p.cu_rows == nullptr) return;
    DispatchInBlock({p.route.topk_idx, p.cu_rows, p.row_token, p.token_row, p.route.num_tokens,
                     p.route.top_k + p.route.num_fixed, AllExperts(p.route)});
  }

  // fn(token, vector) for the set's tokens first, first + step, ...
  template <typename Fn>
  __device__ __forceinline__ void ForEachVector(int first, int step, const Fn& fn) const {
    for (int t = first; t < NumTokens(); t += step) {
      for (int v = thread_; v < NumVectors(norm_.hidden); v += kThreads) fn(t, v);
    }
  }

  // x = x + delta.
  __device__ __forceinline__ void WriteResidual() const {
    ForEachVector(0, 1, [&](int t, int vector) {
      float v[kRowVector];
      LoadWhole(Row(t) + vector * kRowVector, v);
      StoreVector(v, vector, norm_.hidden, launch_.whole, RowOf<float>(norm_.x, norm_.x_stride, t));
    });
  }

  // Steps of a strip's slice, none past the last strip; and this lane's first 16 bytes of it.
  __device__ __forceinline__ int NumSteps(int strip, int slice) const {
    const int left = launch_.num_steps - slice * kSliceSteps;
    return strip < launch_.num_strips ? Min(left, kSliceSteps) : 0;
  }
  __device__ __forceinline__ const unsigned char* Weight(int strip, int slice) const {
    const int64_t step = static_cast<int64_t>(strip) * launch_.num_steps + slice * kSliceSteps;
    return static_cast<const unsigned char*>(launch_.p.weight) + step * kRunBytes + Lane() * 16;
  }

  // The norm's weight.
  __device__ __forceinline__ void ReadWeight() const {
    float* const to = smem_ + launch_.smem.weight;
    const int columns = launch_.num_steps * kStepColumns;
    if (launch_.whole) {
      for (int i = 4 * thread_; i < columns; i += 4 * kThreads) {
        const int bytes = i < norm_.hidden ? 16 : 0;
        device::CpAsync<16>(to + i, bytes == 0 ? norm_.weight : norm_.weight + i, bytes);
      }
    } else {
      for (int i = thread_; i < columns; i += kThreads) {
        const int bytes = i < norm_.hidden ? 4 : 0;
        device::CpAsync<4>(to + i, bytes == 0 ? norm_.weight : norm_.weight + i, bytes);
      }
    }
    device::CpAsyncCommit();
  }

  // x + delta to shared memory, zeroes where the columns of the product go past the row's, and the sums
  // of squares. A warp stands for one of the norm's warps after the other, over all tokens, and for
  // kReads of them at a time.
  __device__ __forceinline__ void ReadRows() const {
    const int used = NumVectors(norm_.hidden) * kRowVector;
    for (int t = 0; t < NumTokens(); ++t) {
      for (int i = used + thread_; i < launch_.num_steps * kStepColumns; i += kThreads) {
        Row(t)[i] = 0;
      }
    }
    const int warps = NormThreads(norm_.hidden) / 32;
    for (int first = Warp(); first < NumTokens() * warps; first += kReads * kWarps) {
      float sum[kReads] = {};
      for (int begin = 0; begin < NumVectors(norm_.hidden); begin += 32 * warps) {
        ReadVectors(first, begin, warps, sum);
      }
#pragma unroll
      for (int r = 0; r < kReads; ++r) {
        const int t = (first + r * kWarps) / warps;
        const float of_warp = WarpSum(sum[r]);
        if (Lane() != 0 || t >= NumTokens()) continue;
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
        const int vector = begin + (first + r * kWarps) % warps * 32 + Lane();
        if (t < NumTokens() && vector < NumVectors(norm_.hidden)) fn(r, t, vector);
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
    LoadVector(RowOf<const float>(norm_.x, norm_.x_stride, t), vector, norm_.hidden, launch_.whole,
               v);
    LoadVector(RowOf<const float>(norm_.delta, norm_.delta_stride, t), vector, norm_.hidden,
               launch_.whole, d);
#pragma unroll
    for (int i = 0; i < kRowVector; ++i) v[i] += d[i];
  }

  // The set's blocks share its tokens.
  __device__ __forceinline__ void WriteNormed() const {
    ForEachVector(part_, launch_.set_blocks, [&](int t, int vector) {
      const float factor = NormFactor(Sums(t), norm_.hidden, norm_.eps);
      float v[kRowVector];
      float w[kRowVector];
      LoadWhole(Row(t) + vector * kRowVector, v);
      LoadWhole(smem_ + launch_.smem.weight + vector * kRowVector, w);
#pragma unroll
      for (int i = 0; i < kRowVector; ++i) v[i] = v[i] * factor * w[i];
      StoreVector(v, vector, norm_.hidden, launch_.whole,
                  RowOf<device::Bf16>(norm_.out, norm_.out_stride, t));
    });
  }

  // Both sums of the warp's slice; meanwhile its next one, if any, begins to come.
  __device__ __forceinline__ void MultiplySlice(int strip, int slice, int next_strip,
                                                int next_slice, uint4 (&runs)[kAhead]) const {
    const int token = Lane() / 4 < NumTokens() ? Lane() / 4 : -1;
    const float factor = token >= 0 ? NormFactor(Sums(token), norm_.hidden, norm_.eps) : 0.0f;
    const unsigned char* const own = Weight(strip, slice);
    const unsigned char* const next = Weight(next_strip, next_slice);
    const int next_steps = NumSteps(next_strip, next_slice);
    float high[4] = {};
    float low[4] = {};
#pragma unroll
    for (int j = 0; j < kSliceSteps; ++j) {
      uint4& run = runs[j % kAhead];
      const auto there = [&](int step) { return slice * kSliceSteps + step < launch_.num_steps; };
      if (there(j)) MultiplyStep(slice, j, token, factor, run, high, low);
      const int ahead = j + kAhead - kSliceSteps;
      if (ahead < 0) {
        if (there(j + kAhead)) run = device::LoadStream16(own + (j + kAhead) * kRunBytes);
      } else if (ahead < next_steps) {
        run = device::LoadStream16(next + ahead * kRunBytes);
      }
    }
    StoreSums(Partial(0, slice, 0), high);
    StoreSums(Partial(1, slice, 0), low);
  }

  // token: -1 for a column without one.
  __device__ __forceinline__ void MultiplyStep(int slice, int j, int token, float factor,
                                               const uint4& run, float (&high)[4],
                                               float (&low)[4]) const {
    const uint32_t a[4] = {run.x, run.y, run.z, run.w};
    uint32_t b_high[2] = {};
    uint32_t b_low[2] = {};
    const int column = slice * kSliceColumns + j * kStepColumns + Lane() % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (token >= 0) SplitPair(token, factor, column + 8 * i, b_high[i], b_low[i]);
    }
    device::MmaBf16(high, a, b_high);
    device::MmaBf16(low, a, b_low);
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
    const int expert = Lane() / 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = Lane() % 4 * 2 + i;
      if (token >= NumTokens()) continue;
      to[token * kStripRows + expert] = sum[i];
      to[token * kStripRows + expert + 8] = sum[2 + i];
    }
  }

  __device__ __forceinline__ void AddSlices(int strip) const {
    const int token = thread_ / kStripRows;
    const int in_strip = thread_ % kStripRows;
    const int expert = strip * kStripRows + in_strip;
    if (token >= NumTokens() || expert >= launch_.p.layout.n) return;
    float sum[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      for (int s = 0; s < launch_.num_slices; ++s) sum[half] += Partial(half, s, token)[in_strip];
    }
    const RouteTopKParams& route = launch_.p.route;
    RowOf<float>(route.logits, route.logits_stride, token)[expert] = sum[0] + sum[1];
  }

  const RouterLaunch& launch_;
  const RmsNormParams& norm_;
  float* const smem_;
  // Nothing is computed of it before, where registers are short.
  const int thread_ = device::Opaque(device::ThreadIdx());
  const int set_;
  const int part_;
};
static_assert(kThreads >= kStripRows * kMostSetTokens && kWarps >= kMostSetTokens);

}  // namespace jevons::cuda::router

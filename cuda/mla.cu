// MlaAttention: out[t, h] = sum_u softmax_u(scale * q[t, h] . cache[u]) * cache[u][:latent].
//
// A block of 8 warps takes items from the walker (mla_walker.h): up to 32 rows of queries, in one
// or two groups of 16, and a range of keys, which come through two buffers, 64 at a time, by
// cp.async. Per tile of keys (mla_tile.h):
//   scores   warp w multiplies all rows with the 16 keys of quarter w % 4 over half w / 4 of the
//            width, into scores[half]
//   weights  warp w takes whole rows: adds the halves, running maximum, p = exp2(score - max)
//            rounded to bf16, sum of the rounded p by lane
//   values   warp w has 64 columns of the latent for all rows: acc = acc * alpha + p * tile
// Where few tokens want their values, the last blocks of the grid add all up instead, each for its
// own heads, and make them (mla_values.h).
// FP8 entries (mla_fp8.h) land in two buffers of their own and become the one bf16 tile first.
// A split's acc is added to a total in registers; where a row tile is cut, it goes to the workspace
// and the block that arrives last adds all up (mla_merge.h). So one launch does everything.
//
// The arithmetic of a row does not depend on how many rows share the tile: a score is half 0 + half
// 1, each one chain over its columns; sums over keys are by lane, then by halving distance; keys
// past a row's position have p = 0 and do not move its maximum, which changes nothing. A key whose
// latent is not finite has a score that is not, in every row: then the tile's latents are looked
// through, the entry is zeroed and its score is NaN in the rows that see it, so that the others do
// not get 0 * NaN.
//
// Floor (H100, 3.0 TB/s, 132 SMs at 1.75 GHz), latent 512 + 64. 16 heads do 35 kFLOP on the 1,152
// bytes of a key, 30 a byte: memory decides. A tile is 74 KB: 3.2 us when all SMs draw, 1.6 us when
// half do; it costs 1,900 clocks of shared memory, 1.1 us. Expected, us:
//   1 x 1k: 9-11, latency (bytes 0.4)   64 x 1k: 29 (25)   64 x 4k: 105 (101)
//   256 x 1k: 107 (101)                 256 x 16k: 1,640 (1,610)
// A tile of 32 rows is 1,700 clocks of tensor cores but 3,400 of shared memory (keys in 580,
// queries 1,150, keys 580, scores 260, weights 290, values 510). Many heads, on devices that have
// wgmma: mla_wide.cu. FP8: a tile is 42 KB, 1.8 us when all SMs draw; with what makes bf16 of it
// 2,600 clocks of shared memory, 1.5 us, so memory decides only while all SMs draw: see
// docs/kernels/mla.md.
//
// Barriers, per tile: 1 the tile has landed; 2 the scores are there; 3 weights and alpha are there;
// 4 all have read the tile, and its buffer is filled again. One more where broken keys were zeroed,
// and one when the queries have landed. FP8: another after 1, the bf16 tile is there and the buffer
// of its entries is filled again; and no 4, for the next 1 also says that all have read the tile.
#include "cuda/mla.h"

#include <algorithm>

#include "cuda/device/launch.h"
#include "cuda/mla_fp8.h"
#include "cuda/mla_tile.h"
#include "cuda/mla_values.h"
#include "cuda/mla_wide.h"

namespace jevons::cuda {
namespace {

using namespace mla;

// One item: its rows, keys and results.
template <typename T, int kGroups>
class RowTile {
 public:
  __device__ __forceinline__ RowTile(const AttentionParams& args, const MlaItem& item, Shared<T>& s)
      : args_(args), item_(item), s_(s) {
    for (int i = 0; i < 2 * kGroups; ++i) state_[i / 2][i % 2] = {MlaMinusInfinity(), 0.0f};
  }

  __device__ __forceinline__ void Run() {
    if (item_.first_key < item_.end_key) WalkKeys();
    if (device::WarpIdx() < T::kValueWarps) {
      if (item_.slot < 0) WriteOut();
      if (item_.slot >= 0 && item_.piece == 0) StorePartial(0, total_, state_);
    }
  }

 private:
  // Of values 2 * half and 2 * half + 1 of a thread's sums.
  __device__ __forceinline__ static int Row(int thread, int group, int half) {
    return group * kMlaGroupRows + half * 8 + thread % 32 / 4;
  }
  __device__ __forceinline__ static int Column(int thread, int tile) {
    return (thread / 32 * T::kColumnTiles + tile) * 8 + thread % 4 * 2;
  }
  __device__ __forceinline__ void WalkKeys() {
    LoadQueries(args_, item_, kGroups * kMlaGroupRows, s_);
    Fetch(item_.first_key, 0);
    Fetch(item_.first_key + T::kKeys, 1);
    device::CpAsyncWait<1>();
    device::SyncThreads();
    Queries<T, kGroups> queries;
    queries.Hold(s_);
    WarpRows<kGroups> rows;
    rows.Reset();
    int split = item_.first_split;
    int stage = 0;
    for (int key = item_.first_key; key < item_.end_key; key += T::kKeys) {
      const int split_end = min(item_.end_key, MlaSplitBegin(split + 1));
      const bool ends_split = key + T::kKeys >= split_end;
      StepTile(key, stage, ends_split, queries, rows);
      if (ends_split) {
        if (device::WarpIdx() < T::kValueWarps) EndSplit(split);
        ++split;
      }
      if constexpr (!T::kFp8) {
        device::SyncThreads();
        Fetch(key + 2 * T::kKeys, stage);
      }
      stage ^= 1;
    }
  }

  // Starts the copy of a tile to a buffer that nobody reads any more: a group of copies, an empty
  // one where there are no such keys.
  __device__ __forceinline__ void Fetch(int key, int stage) {
    if (key < item_.end_key) {
      if constexpr (T::kFp8) {
        LoadEntries<T::kKeys, kMlaThreads>(args_, item_, key, device::Opaque(device::ThreadIdx()),
                                           s_.raw[stage]);
      } else {
        LoadKeys<T>(args_, item_, key, s_.keys[stage]);
      }
    }
    device::CpAsyncCommit();
  }

  // One tile of keys, up to the barrier after which it may be written over.
  __device__ __forceinline__ void StepTile(int key, int stage, bool ends_split,
                                           const Queries<T, kGroups>& queries,
                                           WarpRows<kGroups>& rows) {
    device::CpAsyncWait<1>();
    device::SyncThreads();
    Bf16* const keys = s_.keys[T::kFp8 ? 0 : stage];
    if constexpr (T::kFp8) {
      ConvertEntries<T::kLatent, T::kKeys, kMlaThreads>(
          args_, s_.raw[stage], [=](int row, int chunk) { return keys + Swizzled<T>(row, chunk); });
      device::SyncThreads();
      Fetch(key + 2 * T::kKeys, stage);
    }
    ComputeScores(s_, queries, keys);
    device::SyncThreads();
    const bool broken_keys = s_.num_not_finite != 0;
    if (broken_keys) {
      ZeroBrokenKeys(args_.p.latent, s_, keys);
      device::SyncThreads();
    }
    ComputeWeights(s_, key, args_.p.scale * kLog2E, broken_keys, rows);
    if (ends_split) PublishSoftmax(s_, rows);
    device::SyncThreads();
    if (device::ThreadIdx() == 0) s_.num_not_finite = 0;
    if (device::WarpIdx() < T::kValueWarps) AddValues(s_, keys, acc_);
  }

  // The split's sums go to the workspace or to the total; acc is zero again.
  __device__ __forceinline__ void EndSplit(int split) {
    const int thread = device::Opaque(device::ThreadIdx());
    MlaSoftmax ended[kGroups][2];
#pragma unroll
    for (int i = 0; i < 2 * kGroups; ++i)
      ended[i / 2][i % 2] = s_.softmax[Row(thread, i / 2, i % 2)];
    if (item_.slot >= 0 && item_.piece > 0) {
      StorePartial(1 + split - item_.second_split, acc_, ended);
    } else {
      AddSplit(split, ended);
    }
    acc_ = {};
  }

  // Rows whose position lies before the split have no part in it.
  __device__ __forceinline__ void AddSplit(int split, const MlaSoftmax (&ended)[kGroups][2]) {
    const int thread = device::Opaque(device::ThreadIdx());
#pragma unroll
    for (int i = 0; i < 2 * kGroups; ++i) {
      const int m = i / 2;
      const int half = i % 2;
      if (s_.position[Row(thread, m, half)] < MlaSplitBegin(split)) continue;
      const MlaFold fold(state_[m][half], ended[m][half]);
#pragma unroll
      for (int n = 0; n < T::kColumnTiles; ++n) {
#pragma unroll
        for (int j = 2 * half; j < 2 * half + 2; ++j) {
          total_.v[m][n][j] = fold(total_.v[m][n][j], acc_.v[m][n][j]);
        }
      }
    }
  }

  __device__ __forceinline__ void StorePartial(int partial, const Sums<T, kGroups>& sums,
                                               const MlaSoftmax (&state)[kGroups][2]) {
    const int thread = device::Opaque(device::ThreadIdx());
#pragma unroll
    for (int i = 0; i < 2 * kGroups; ++i) {
      const int m = i / 2;
      const int half = i % 2;
      const int64_t row = MlaPartialRow(item_, partial, Row(thread, m, half));
      if (thread / 32 == 0 && thread % 4 == 0) {
        args_.workspace.softmax[row] = make_float2(state[m][half].max, state[m][half].sum);
      }
#pragma unroll
      for (int n = 0; n < T::kColumnTiles; ++n) {
        *reinterpret_cast<float2*>(args_.workspace.sums + row * T::kLatent + Column(thread, n)) =
            make_float2(sums.v[m][n][2 * half], sums.v[m][n][2 * half + 1]);
      }
    }
  }

  __device__ __forceinline__ void WriteOut() {
    const int thread = device::Opaque(device::ThreadIdx());
    const MlaOutput output = OutputOf(args_);
#pragma unroll
    for (int i = 0; i < 2 * kGroups; ++i) {
      const int m = i / 2;
      const int half = i % 2;
      if (Row(thread, m, half) >= item_.num_rows) continue;
      const float inverse = 1.0f / state_[m][half].sum;
      device::Bf16* row = output.Row(item_, Row(thread, m, half));
#pragma unroll
      for (int n = 0; n < T::kColumnTiles; ++n) {
        output.Write(row, Column(thread, n), total_.v[m][n][2 * half] * inverse,
                     total_.v[m][n][2 * half + 1] * inverse);
      }
    }
  }

  const AttentionParams& args_;
  const MlaItem& item_;
  Shared<T>& s_;
  Sums<T, kGroups> acc_ = {};
  Sums<T, kGroups> total_ = {};
  MlaSoftmax state_[kGroups][2];  // of total_; no keys: the sum is 0 and the row NaN
};

template <typename T>
__global__ void __launch_bounds__(kMlaThreads, 1)
    MlaAttentionKernel(const __grid_constant__ AttentionParams args) {
  device::FollowKernelBefore();
  Shared<T>& s = device::SharedMemory<Shared<T>>();
  if (device::ThreadIdx() == 0) s.num_not_finite = 0;
  MlaWalker<false> walker(args.p, s.walker);
  const MlaItem& item = s.walker.item;
  while (walker.Next()) {
    if (item.num_rows == 0) continue;
    if (item.num_rows <= kMlaGroupRows) {
      RowTile<T, 1>(args, item, s).Run();
    } else {
      RowTile<T, 2>(args, item, s).Run();
    }
    if (item.slot >= 0 && args.plan.value_blocks == 0) {
      ArriveAndMerge<T::kLatent, false>(args, item, s.position, s.is_last);
    }
  }
  static_assert(sizeof(ValuesShared) <= sizeof(Shared<T>));
  if (args.plan.value_blocks > 0) {
    ValuesBlock<T::kLatent, false>(args, walker, reinterpret_cast<ValuesShared&>(s)).Run();
  }
}

// The kernels for one kind of entry.
template <MlaEntry kEntry>
struct Kernels {
  using Small = Traits<kSmallLatent, 64, kEntry>;
  using Large = Traits<kLargeLatent, 64, kEntry>;
  using LargeFewKeys = Traits<kLargeLatent, 32, kEntry>;
  using Pointer = void (*)(AttentionParams);

  static int32_t SmemBytes(int32_t latent, int32_t keys) {
    return latent == kSmallLatent ? sizeof(Shared<Small>)
           : keys == 64           ? sizeof(Shared<Large>)
                                  : sizeof(Shared<LargeFewKeys>);
  }
  static Pointer Find(const MlaPlan& plan) {
    return plan.latent == kSmallLatent ? &MlaAttentionKernel<Small>
           : plan.keys == 64           ? &MlaAttentionKernel<Large>
                                       : &MlaAttentionKernel<LargeFewKeys>;
  }
};
using Bf16Kernels = Kernels<MlaEntry::kBf16>;
using Fp8Kernels = Kernels<MlaEntry::kFp8>;

// Blocks that wait for each other at the end: half of the device, which draws all that memory gives,
// and leaves room for whatever else runs.
int32_t ValueBlocks(const MlaAttentionParams& p, const DeviceFacts& device) {
  const MlaValuesParams& values = p.values;
  if (values.weight == nullptr || p.num_tokens < 1 || p.num_tokens > kValueTokens ||
      p.num_seqs < 1 || values.layout.format != WeightFormat::kBf16 ||
      values.layout.order != RowOrder::kPlain) {
    return 0;
  }
  const int32_t units = p.num_heads * (PaddedRows(values.layout) / (kUnitStrips * kStripRows));
  return Min(units, device.num_sms / 2);
}

// The largest power of two up to 16 that divides the address and the byte distances.
int CopyUnit(const void* first, int64_t stride, int64_t other_stride, int64_t width) {
  const uint64_t bits = reinterpret_cast<uintptr_t>(first) | static_cast<uint64_t>(2 * stride) |
                        static_cast<uint64_t>(2 * other_stride);
  if (bits % 16 == 0) return 16;
  return (bits | static_cast<uint64_t>(2 * width)) % 4 == 0 ? 4 : 2;
}

int64_t Aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

int32_t PaddedLatent(int32_t latent) {
  return latent <= kSmallLatent ? kSmallLatent : kLargeLatent;
}

MlaWorkspace Places(void* workspace, int32_t num_slots) {
  char* base = static_cast<char*>(workspace);
  const int64_t arrivals = Aligned(sizeof(BlockMeeting));
  const int64_t softmax = arrivals + Aligned(static_cast<int64_t>(num_slots) * 4);
  const int64_t sums =
      softmax + Aligned(static_cast<int64_t>(num_slots) * kMlaGroupRows * sizeof(float2));
  return {reinterpret_cast<BlockMeeting*>(base), reinterpret_cast<int32_t*>(base + arrivals),
          reinterpret_cast<float2*>(base + softmax), reinterpret_cast<float*>(base + sums)};
}

}  // namespace

// Heads of one token fill row tiles of 64, on devices that have wgmma.
bool MlaIsWide(const MlaAttentionParams& p, const DeviceFacts& device) {
  return device.sm == 90 && p.num_heads > 0 && p.num_heads % kMlaWideRows == 0 &&
         p.latent == kLargeLatent && p.rope == kRopePadded;
}

// A row tile in n >= 2 pieces has n fair shares of the work, so all of them have at most num_sms
// pieces; of its splits at most 5 n are stored, as they double with the position, in two groups.
// Wide ones have four groups and, below 65,536 tokens, at most 2.5 n splits; and each block has a
// total.
int32_t MlaNumSlots(int32_t num_heads, const DeviceFacts& device) {
  const bool wide = device.sm == 90 && num_heads % kMlaWideRows == 0;
  return (10 + (wide ? kMlaTotalSlots : 0)) * device.num_sms;
}

int64_t MlaWorkspaceBytes(int32_t latent, int32_t num_slots) {
  const int64_t rows = static_cast<int64_t>(num_slots) * kMlaGroupRows;
  return Aligned(sizeof(BlockMeeting)) + Aligned(static_cast<int64_t>(num_slots) * 4) +
         Aligned(rows * 8) + rows * PaddedLatent(latent) * 4;
}

MlaPlan ChooseMlaAttention(const MlaAttentionParams& p, const DeviceFacts& device) {
  MlaPlan plan;
  const int32_t width = p.latent + p.rope;
  plan.latent = PaddedLatent(p.latent);
  const bool fp8 = p.entry == MlaEntry::kFp8;
  const auto smem_bytes = fp8 ? &Fp8Kernels::SmemBytes : &Bf16Kernels::SmemBytes;
  plan.keys = smem_bytes(plan.latent, 64) <= device.max_smem_bytes ? 64 : 32;
  plan.smem_bytes = smem_bytes(plan.latent, plan.keys);
  plan.wide = MlaIsWide(p, device);
  if (plan.wide) plan.smem_bytes = MlaWideSmemBytes(p.entry);
  plan.grid = p.num_tokens > 0 && p.num_seqs > 0 ? device.num_sms : 0;
  plan.q_unit = CopyUnit(p.q, p.q_stride, p.q_head_stride, width);
  plan.cache_unit = fp8 ? 16 : CopyUnit(p.cache, width, width, width);
  // Keys of FP8 entries have columns of their own, to which those of q are moved.
  if (fp8) plan.q_unit = std::min(plan.q_unit, CopyUnit(nullptr, p.latent, p.latent, p.latent));
  const Fp8Entry entry = {p.latent, p.rope};
  plan.entry_bytes = entry.bytes();
  plan.entry_scales = entry.scales();
  plan.entry_keys = entry.keys();
  plan.out_pairs =
      CopyUnit(p.out, p.out_stride, p.out_head_stride, p.latent) >= 4 && p.latent % 2 == 0;
  plan.value_blocks = ValueBlocks(p, device);
  return plan;
}

cudaError_t LaunchMlaAttention(const MlaAttentionParams& params, const DeviceFacts& device,
                               cudaStream_t stream) {
  if (params.latent > kLargeLatent || params.rope > kRopePadded) return cudaErrorInvalidValue;
  const MlaPlan plan = ChooseMlaAttention(params, device);
  const AttentionParams args = {params, plan, Places(params.workspace, params.num_slots)};
  if (plan.wide) return LaunchMlaWide(args, device, stream);
  const auto kernel =
      params.entry == MlaEntry::kFp8 ? Fp8Kernels::Find(plan) : Bf16Kernels::Find(plan);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(plan.grid));
  shape.block = kMlaThreads;
  shape.smem_bytes = plan.smem_bytes;
  shape.early = device.early;
  return Launch(kernel, shape, stream, args);
}

}  // namespace jevons::cuda

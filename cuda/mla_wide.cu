// MlaAttention of models with many heads: 64 rows, heads of one token, at a time.
//
// Three warpgroups. Keys come 64 at a time through two buffers, by cp.async. Per tile
// (mla_wide_tile.h):
//   scores   the third warpgroup: q [64, 576] keys^T, 36 products of 64 columns whose operands both
//            lie in shared memory; then, in its registers, running maximum, p = exp2(score - max)
//            rounded to bf16, sum of the rounded p by thread. Weights go to the panel of the rotated
//            keys, which nobody needs any more. It also copies all that comes
//   values   the first and the second, 256 columns of the latent each: acc = acc * alpha + p * tile,
//            four products of 256 columns; the tile is read transposed
// While values of a tile are added, the scores of the next one are computed as far as it has come.
// FP8 entries (mla_fp8.h) land in a buffer of their own, and all threads make the one bf16 tile. A
// split's result is added to the total of the splits before, which waits in the workspace: acc and
// total are 256 KB and do not both fit in registers. So splits are long (mla_splits.h). Where a row
// tile is cut, splits go to the workspace and the block that arrives last adds all up
// (mla_merge.h).
//
// A row's arithmetic depends on its position alone: a score is one chain over the columns; sums
// over keys are by thread (16 of a tile's, ascending), then by halving distance in its four lanes;
// splits are added in ascending order. All rows of a tile see the same keys, so that a broken one
// needs no zeroes: its score is NaN in all of them.
//
// Floor (H100, 132 SMs at 1.75 GHz): a tile is 4.46 M multiply-adds, 2,176 clocks of tensor cores
// and 2,432 of shared memory (keys in 576, scores 1,152, weights 64, values 640). With what is not
// hidden about 2,900, FP8 3,750: docs/kernels/mla.md. 128 heads do 242 flops a byte, and the two
// row tiles of a token read a key from L2 at the same time.
//
// Barriers, per tile. landed (among the scores' warps): its copies have come, from all of them.
// scored (the same): nobody still multiplies the rotated keys, and all scores that are not finite
// are counted. broken, only where there are such: keys are marked before marks are read.
// weights[stage]: the values' warps may read weights, alpha, and at its end what folds a split.
// done[stage]: they have left the tile, and its buffer is filled again. FP8 has no done; landed is
// for all, and says that too; converted: the bf16 tile is there, and the landing buffer is filled
// again. Of the walker two an item, which also say that all have left the item before; at the end
// those of mla_args.h and mla_values.h.
#include "cuda/mla_wide.h"

#include "cuda/device/launch.h"
#include "cuda/mla_values.h"
#include "cuda/mla_wide_tile.h"

namespace jevons::cuda {
namespace {

using namespace mla;

// The third warpgroup's part of an item.
template <bool kFp8>
class ScoresRole {
 public:
  __device__ __forceinline__ ScoresRole(const AttentionParams& args, const MlaItem& item,
                                        WideShared<kFp8>& s)
      : args_(args), item_(item), s_(s) {}

  __device__ __forceinline__ void Run() {
    WideTiles tiles(item_);
    if (!tiles.Any()) return;
    LoadWideQueries(args_, item_, s_.q);
    Fetch(tiles.Key(), 0);
    if (!kFp8) Fetch(tiles.Key() + kWideKeys, 1);
    WideRows rows;
    for (; tiles.Any(); tiles.Next()) StepTile(tiles, rows);
    if (!kFp8) WaitDone(tiles.Stage() ^ 1);
  }

 private:
  // Starts the copy of a tile: a group of copies, an empty one where there are no such keys.
  __device__ __forceinline__ void Fetch(int key, int stage) {
    if (key < item_.end_key) {
      if constexpr (kFp8) {
        LoadEntries<kWideKeys, kScoreThreads>(args_, item_, key, ScoreThread(), s_.raw);
      } else {
        LoadWideKeys(args_, item_, key, s_.Tile(stage));
      }
    }
    device::CpAsyncCommit();
  }
  __device__ __forceinline__ void WaitDone(int stage) const {
    device::BarrierSync(kDoneBarrier + stage, kMlaWideThreads);
  }

  // The tile is there, of all threads that copied it.
  __device__ __forceinline__ void WaitForTile(bool first) {
    if (first && !kFp8) {
      device::CpAsyncWait<1>();
    } else {
      device::CpAsyncWait<0>();
    }
    if constexpr (kFp8) {
      device::BarrierSync(kLandedBarrier, kMlaWideThreads);
      ConvertWideEntries(args_, s_);
      device::BarrierSync(kConvertedBarrier, kMlaWideThreads);
    } else {
      device::FenceProxyAsync();
      device::BarrierSync(kScoresBarrier, kScoreThreads);
    }
  }

  __device__ __forceinline__ void StepTile(const WideTiles& tiles, WideRows& rows) {
    const int stage = tiles.Stage();
    Panels& tile = s_.Tile(stage);
    WaitForTile(tiles.IsFirst());
    WideScores scores = {};
    StartWideScores(s_.q, tile, scores);
    if (!kFp8 && !tiles.IsFirst()) WaitDone(stage ^ 1);
    if (kFp8 || !tiles.IsFirst()) Fetch(tiles.Key() + kWideKeys, stage ^ 1);
    device::WgmmaWait<0>(scores);
    CountNotFinite(scores, &s_.num_not_finite[stage]);
    device::BarrierSync(kScoresBarrier, kScoreThreads);
    const bool broken_keys = s_.num_not_finite[stage] != 0;
    if (ScoreThread() == 0) s_.num_not_finite[stage ^ 1] = 0;
    if (broken_keys) {
      FindBrokenKeys(tile, s_.broken);
      device::BarrierSync(kScoresBarrier, kScoreThreads);
    }
    if (broken_keys || tiles.NumLeft() < kWideKeys) {
      MarkScores(s_.broken, broken_keys, tiles.NumLeft(), scores);
    }
    ComputeWideWeights(scores, args_.p.scale * kLog2E, rows, tile.panel[kWeightsPanel],
                       s_.alpha[stage]);
    if (tiles.EndsSplit()) EndSplit(tiles, rows);
    device::FenceProxyAsync();
    device::BarrierArrive(kWeightsBarrier + stage, kMlaWideThreads);
  }

  // The split's softmax goes to the workspace or to the total, and the next one starts.
  __device__ __forceinline__ void EndSplit(const WideTiles& tiles, WideRows& rows) {
    const bool stores = item_.slot >= 0 && item_.piece > 0;
    EndWideSplit(rows);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = WideRow(ScoreThread(), half);
      const MlaFold fold(rows.total[half], rows.split[half]);
      if (ScoreThread() % 4 == 0) {
        s_.fold[tiles.Stage()][row] = fold;
        if (stores) StoreSoftmax(1 + tiles.Split() - item_.second_split, row, rows.split[half]);
        if (tiles.IsLast()) s_.sum[row] = rows.total[half].sum;
        if (tiles.IsLast() && item_.slot >= 0 && !stores) StoreSoftmax(0, row, rows.total[half]);
      }
      rows.split[half] = WideRows::Nothing();
    }
  }
  __device__ __forceinline__ void StoreSoftmax(int partial, int row, const MlaSoftmax& softmax) {
    args_.workspace.softmax[MlaPartialRow(item_, partial, row)] =
        make_float2(softmax.max, softmax.sum);
  }

  const AttentionParams& args_;
  const MlaItem& item_;
  WideShared<kFp8>& s_;
};

// The part of the first and of the second warpgroup.
template <bool kFp8>
class ValuesRole {
 public:
  __device__ __forceinline__ ValuesRole(const AttentionParams& args, const MlaItem& item,
                                        WideShared<kFp8>& s)
      : args_(args), item_(item), s_(s) {}

  __device__ __forceinline__ void Run() {
    for (WideTiles tiles(item_); tiles.Any(); tiles.Next()) StepTile(tiles);
    if (item_.slot < 0) WriteOut();
    if (item_.slot >= 0 && item_.piece == 0) StorePartial(0);
  }

 private:
  static constexpr int kColumns = kLargeLatent / 2;  // of a warpgroup
  static constexpr int kSums = kColumns / 2;         // of a thread
  static constexpr int kKeyStepBytes = 16 * kPanelColumns * 2;

  __device__ __forceinline__ static int Thread() { return device::Opaque(device::ThreadIdx()); }
  // Of sums 4 j + 2 half and the next.
  __device__ __forceinline__ static int Column(int thread, int j) {
    return thread / 128 * kColumns + 8 * j + WideColumn(thread);
  }

  __device__ __forceinline__ void StepTile(const WideTiles& tiles) {
    const int stage = tiles.Stage();
    if constexpr (kFp8) {
      device::BarrierSync(kLandedBarrier, kMlaWideThreads);
      ConvertWideEntries(args_, s_);
      device::BarrierArrive(kConvertedBarrier, kMlaWideThreads);
    }
    device::BarrierSync(kWeightsBarrier + stage, kMlaWideThreads);
    if (!tiles.BeginsSplit()) Rescale(stage);
    AddValues(stage, !tiles.BeginsSplit());
    // FP8: whoever comes to the next tile has left this one.
    if (!kFp8) device::BarrierArrive(kDoneBarrier + stage, kMlaWideThreads);
    if (tiles.EndsSplit()) EndSplit(tiles);
  }

  // Mostly no row of a warp has a new maximum.
  __device__ __forceinline__ void Rescale(int stage) {
    const float alpha[2] = {s_.alpha[stage][WideRow(Thread(), 0)],
                            s_.alpha[stage][WideRow(Thread(), 1)]};
    if (device::Ballot(alpha[0] != 1 || alpha[1] != 1) == 0) return;
#pragma unroll
    for (int i = 0; i < kSums; ++i) acc_[i] *= alpha[i / 2 % 2];
  }

  __device__ __forceinline__ void AddValues(int stage, bool accumulate) {
    const Panels& keys = s_.Tile(stage);
    const uint64_t weights = PanelDescriptor(keys.panel[kWeightsPanel]);
    const uint64_t values =
        PanelDescriptor(keys.panel[device::WarpIdx() / 4 * (kColumns / kPanelColumns)]);
    device::WgmmaFence(acc_);
#pragma unroll
    for (int k = 0; k < kWideKeys / 16; ++k) {
      device::WgmmaBf16Shared<kColumns, true>(acc_, weights + DescriptorStep(32 * k),
                                              values + DescriptorStep(kKeyStepBytes * k),
                                              k > 0 || accumulate);
    }
    device::WgmmaCommit();
    device::WgmmaWait<0>(acc_);
  }

  // The split's sums go to the workspace or to the total, which stays in acc where the item ends. Its
  // factors stay until the next tile has been left.
  __device__ __forceinline__ void EndSplit(const WideTiles& tiles) {
    if (item_.slot >= 0 && item_.piece > 0) {
      return StorePartial(1 + tiles.Split() - item_.second_split);
    }
    const MlaFold fold[2] = {s_.fold[tiles.Stage()][WideRow(Thread(), 0)],
                             s_.fold[tiles.Stage()][WideRow(Thread(), 1)]};
#pragma unroll
    for (int i = 0; i < kSums; ++i) acc_[i] *= fold[i / 2 % 2].added;
    if (tiles.Split() > 0) AddTotal(fold);
    if (tiles.IsLast()) return;
    float4* const total = Total();
#pragma unroll
    for (int j = 0; j < kSums / 4; ++j) {
      total[j * kMlaThreads] =
          make_float4(acc_[4 * j], acc_[4 * j + 1], acc_[4 * j + 2], acc_[4 * j + 3]);
    }
  }

  // The block's total, of which a thread reads and writes its own part.
  __device__ __forceinline__ float4* Total() const {
    const int64_t row =
        (args_.p.num_slots + int64_t{kMlaTotalSlots} * device::BlockIdxX()) * kMlaGroupRows;
    return reinterpret_cast<float4*>(args_.workspace.sums + row * kLargeLatent) + Thread();
  }

  // To what MlaFold makes of both. SyncWarp keeps the compiler from asking for more at once than
  // registers hold.
  __device__ __forceinline__ void AddTotal(const MlaFold (&fold)[2]) {
    constexpr int kAtOnce = 4;
    const float4* const total = Total();
#pragma unroll
    for (int first = 0; first < kSums / 4; first += kAtOnce) {
      float4 before[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) before[j] = total[(first + j) * kMlaThreads];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        float* const sums = &acc_[4 * (first + j)];
        sums[0] = device::Fma(before[j].x, fold[0].before, sums[0]);
        sums[1] = device::Fma(before[j].y, fold[0].before, sums[1]);
        sums[2] = device::Fma(before[j].z, fold[1].before, sums[2]);
        sums[3] = device::Fma(before[j].w, fold[1].before, sums[3]);
      }
      device::SyncWarp();
    }
  }

  __device__ __forceinline__ void StorePartial(int partial) {
    const int thread = Thread();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = MlaPartialRow(item_, partial, WideRow(thread, half));
      float* const sums = args_.workspace.sums + row * kLargeLatent;
#pragma unroll
      for (int j = 0; j < kSums / 4; ++j) {
        *reinterpret_cast<float2*>(sums + Column(thread, j)) =
            make_float2(acc_[4 * j + 2 * half], acc_[4 * j + 2 * half + 1]);
      }
    }
  }

  __device__ __forceinline__ void WriteOut() {
    const MlaOutput output = OutputOf(args_);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // No keys: the sum is 0 and the row NaN.
      const float sum = item_.first_key < item_.end_key ? s_.sum[WideRow(Thread(), half)] : 0.0f;
      const float inverse = 1.0f / sum;
      Bf16* const row = output.Row(item_, WideRow(Thread(), half)) + Column(Thread(), 0);
      if (args_.plan.out_pairs) {
#pragma unroll
        for (int j = 0; j < kSums / 4; ++j) {
          *reinterpret_cast<uint32_t*>(row + 8 * j) = device::PackBf16(
              acc_[4 * j + 2 * half] * inverse, acc_[4 * j + 2 * half + 1] * inverse);
        }
      } else {
#pragma unroll
        for (int j = 0; j < kSums / 2; ++j) {
          row[j / 2 * 8 + j % 2] = device::ToBf16(acc_[j / 2 * 4 + 2 * half + j % 2] * inverse);
        }
      }
    }
  }

  const AttentionParams& args_;
  const MlaItem& item_;
  WideShared<kFp8>& s_;
  float acc_[kSums] = {};
};

template <MlaEntry kEntry>
__global__ void __launch_bounds__(kMlaWideThreads, 1)
    MlaWideKernel(const __grid_constant__ AttentionParams args) {
  // Never launched elsewhere: MlaIsWide.
  if constexpr (device::kHasWgmma) {
    device::FollowKernelBefore();
    constexpr bool kFp8 = kEntry == MlaEntry::kFp8;
    using Shared = WideShared<kFp8>;
    Shared& s = device::SharedMemory<Shared>();
    if (device::ThreadIdx() < 2) s.num_not_finite[device::ThreadIdx()] = 0;
    MlaWalker<true> walker(args.p, s.walker);
    const MlaItem& item = s.walker.item;
    while (walker.Next()) {
      if (item.num_rows == 0) continue;
      if (device::ThreadIdx() < kMlaThreads) {
        ValuesRole<kFp8>(args, item, s).Run();
      } else {
        ScoresRole<kFp8>(args, item, s).Run();
      }
      if (item.slot >= 0 && args.plan.value_blocks == 0) {
        ArriveAndMerge<kLargeLatent, true>(args, item, s.position, s.is_last);
      }
    }
    static_assert(sizeof(ValuesShared) <= sizeof(Shared));
    if (args.plan.value_blocks > 0) {
      ValuesBlock<kLargeLatent, true>(args, walker, reinterpret_cast<ValuesShared&>(s)).Run();
    }
  }
}

}  // namespace

int32_t MlaWideSmemBytes(MlaEntry entry) {
  return entry == MlaEntry::kFp8 ? sizeof(WideShared<true>) : sizeof(WideShared<false>);
}

cudaError_t LaunchMlaWide(const AttentionParams& args, const DeviceFacts& device,
                          cudaStream_t stream) {
  AttentionParams wide = args;
  wide.p.num_slots -= kMlaTotalSlots * args.plan.grid;
  if (wide.p.num_slots < 0) return cudaErrorInvalidValue;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(args.plan.grid));
  shape.block = kMlaWideThreads;
  shape.smem_bytes = args.plan.smem_bytes;
  shape.early = device.early;
  return Launch(args.p.entry == MlaEntry::kFp8 ? &MlaWideKernel<MlaEntry::kFp8>
                                               : &MlaWideKernel<MlaEntry::kBf16>,
                shape, stream, wide);
}

}  // namespace jevons::cuda

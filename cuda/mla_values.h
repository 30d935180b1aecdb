// values[t, h] = UV_h attended[t, h] at the end of the attention of a few tokens, in its launch.
//
// The last blocks of the grid to end share the heads, and add the splits of their own heads where a
// row tile was cut. A unit is four strips of 16 rows of a head's W_UV for all tokens: a warp has one
// strip and one slice of 256 latents, as operand a of the tensor core, and holds all of it in
// registers before it waits for the rows of the other blocks. The slices are added in order: the
// bits are those of gemm.h with GemmAtom::kMmaSync, and splits are added as anywhere.
//
// One token of V2-Lite at 1,024: 32 blocks read 64 KB of weights each while they wait; what follows
// is 16 KB of partial results from L2, 16 products and two barriers, about 2 us.
//
// Barriers. Two of NumberAmongLast (last_block.h). (0) No token is described yet. One of
// WaitForBlocks: also, all are. (1) The head's rows are in shared memory, and nobody still reads the
// sums of the unit before. (2) The slices' sums are there, and nobody still reads the rows.
#pragma once

#include "cuda/device/copy.h"
#include "cuda/device/mma.h"
#include "cuda/gemm_layout.h"
#include "cuda/last_block.h"
#include "cuda/mla_args.h"

namespace jevons::cuda::mla {

constexpr int kValueTokens = 8;  // columns of the tensor core's operand b
constexpr int kUnitStrips = 4;   // a weight has a multiple of them
constexpr int kValueSlice = 256;
constexpr int kValueSlices = kLargeLatent / kValueSlice;
constexpr int kSliceSteps = kValueSlice / 16;
constexpr int kStepBytes = 512;
static_assert(kUnitStrips * kValueSlices == kMlaThreads / 32);

// In the place of what attention had. The padding lets eight rows lie on different banks.
struct ValuesShared {
  uint32_t pairs[kValueTokens][kLargeLatent / 2 + 4];  // rows of latents
  float sums[kValueSlices][kUnitStrips][kValueTokens][kStripRows];
  MlaCutToken tokens[kValueTokens];
  int32_t number;  // this block's among the last
};

// kLatent: padded, as the rows of the workspace are. Of a wide block the first kMlaThreads do the
// work, the others meet them at the barriers.
template <int kLatent, bool kWide>
class ValuesBlock {
 public:
  __device__ __forceinline__ ValuesBlock(const AttentionParams& args,
                                         const MlaWalker<kWide>& walker, ValuesShared& s)
      : args_(args), walker_(walker), s_(s) {}

  // All threads call when the block's part of attention is stored. Nothing of it is computed before,
  // where registers are short: Opaque.
  __device__ __forceinline__ void Run() {
    const int num_blocks = args_.plan.value_blocks;
    const int number = NumberAmongLast(args_.workspace.meeting, num_blocks, s_.number);
    if (number < 0) return;
    uint4 steps[kSliceSteps];
    if (Works()) LoadSteps(number, steps);
    if (device::ThreadIdx() < kValueTokens) s_.tokens[device::ThreadIdx()] = MlaCutToken{};
    device::SyncThreads();  // (0)
    walker_.FindCutTokens(s_.tokens);
    WaitForBlocks(args_.workspace.meeting, num_blocks);
    const int num_units = args_.p.num_heads * UnitsPerHead();
#pragma unroll 1
    for (int unit = number; unit < num_units; unit += num_blocks) {
      if (Works()) GatherRows(unit / UnitsPerHead());
      device::SyncThreads();  // (1)
      if (Works()) {
        Multiply(steps);
        LoadSteps(unit + num_blocks, steps);
      }
      device::SyncThreads();  // (2)
      if (Works()) AddSlices(unit);
    }
  }

 private:
  __device__ __forceinline__ bool Works() const {
    return !kWide || device::Opaque(thread_) < kMlaThreads;
  }
  __device__ __forceinline__ const PackedLayout& Layout() const { return args_.p.values.layout; }
  __device__ __forceinline__ int UnitsPerHead() const {
    return PaddedRows(Layout()) / (kUnitStrips * kStripRows);
  }
  __device__ __forceinline__ int Lane() const { return thread_ % 32; }
  __device__ __forceinline__ int Strip() const { return thread_ / 32 / kValueSlices; }
  __device__ __forceinline__ int Slice() const { return thread_ / 32 % kValueSlices; }
  // Of the warp's slice, the last one may have fewer or none.
  __device__ __forceinline__ int NumSteps() const {
    return Min(PaddedColumns(Layout()) / 16 - Slice() * kSliceSteps, kSliceSteps);
  }

  __device__ __forceinline__ void LoadSteps(int unit, uint4 (&steps)[kSliceSteps]) const {
    const int head = unit / UnitsPerHead();
    if (head >= args_.p.num_heads) return;
    const int strip = unit % UnitsPerHead() * kUnitStrips + Strip();
    const int first = strip * (PaddedColumns(Layout()) / 16) + Slice() * kSliceSteps;
    const unsigned char* const from = static_cast<const unsigned char*>(args_.p.values.weight) +
                                      head * PackedBytes(Layout()) + int64_t{first} * kStepBytes +
                                      Lane() * 16;
#pragma unroll
    for (int j = 0; j < kSliceSteps; ++j) {
      if (j < NumSteps()) steps[j] = device::LoadStream16(from + j * kStepBytes);
    }
  }

  // The head's latents of all tokens, four columns of one a thread at a time.
  __device__ __forceinline__ void GatherRows(int head) const {
    constexpr int kThreadsPerRow = kLatent / 4;
    const int column = thread_ % kThreadsPerRow * 4;
#pragma unroll 1
    for (int t = thread_ / kThreadsPerRow; t < args_.p.num_tokens;
         t += kMlaThreads / kThreadsPerRow) {
      if (s_.tokens[t].slot < 0) {
        SetPair(t, column, Latents(t, head, column));
        SetPair(t, column + 2, Latents(t, head, column + 2));
      } else {
        MergeRow(t, head, column);
      }
    }
  }

  __device__ __forceinline__ void MergeRow(int t, int head, int column) const {
    const MlaCutToken& token = s_.tokens[t];
    const int row = token.first_row + head;
    MlaItem item;
    item.slot = token.slot + row / token.rows_per_tile * token.tile_slots;
    item.num_groups = token.rows_per_tile / kMlaGroupRows;
    const int num_partials = MlaNumPartials<kWide>(token.position, token.second_split);
    MlaMerge<kWide> merge;
#pragma unroll 1
    for (int first = 0; first < num_partials; first += MlaMerge<kWide>::kBatch) {
      merge.Load(args_.workspace, item, row % token.rows_per_tile, first, num_partials, kLatent,
                 column);
      merge.Add(first, num_partials);
    }
    const float4& total = merge.total;
    const float inverse = 1.0f / merge.state.sum;
    SetPair(t, column, device::PackBf16(total.x * inverse, total.y * inverse));
    SetPair(t, column + 2, device::PackBf16(total.z * inverse, total.w * inverse));
  }

  // Zeroes past the last latent.
  __device__ __forceinline__ void SetPair(int t, int column, uint32_t pair) const {
    const int left = args_.p.latent - column;
    s_.pairs[t][column / 2] = left >= 2 ? pair : left == 1 ? pair & 0xFFFFu : 0;
  }

  __device__ __forceinline__ uint32_t Latents(int t, int head, int column) const {
    const MlaAttentionParams& p = args_.p;
    const Bf16* const row = p.out + t * p.out_stride + head * p.out_head_stride;
    if (column >= p.latent) return 0;
    if (args_.plan.out_pairs) return *reinterpret_cast<const uint32_t*>(row + column);
    const uint32_t high = column + 1 < p.latent ? row[column + 1].bits : 0;
    return row[column].bits | high << 16;
  }

  __device__ __forceinline__ void Multiply(const uint4 (&steps)[kSliceSteps]) const {
    if (NumSteps() <= 0) return;
    const int token = Lane() / 4;
    const uint32_t* const row = s_.pairs[token] + Slice() * (kValueSlice / 2) + Lane() % 4;
    const bool there = token < args_.p.num_tokens;
    float sum[4] = {};
#pragma unroll
    for (int j = 0; j < kSliceSteps; ++j) {
      if (j >= NumSteps()) break;
      const uint32_t a[4] = {steps[j].x, steps[j].y, steps[j].z, steps[j].w};
      uint32_t b[2] = {};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (there) b[i] = row[8 * j + 4 * i];
      }
      device::MmaBf16(sum, a, b);
    }
    const int in_strip = Lane() / 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float* const to = s_.sums[Slice()][Strip()][Lane() % 4 * 2 + i];
      to[in_strip] = sum[i];
      to[in_strip + 8] = sum[2 + i];
    }
  }

  __device__ __forceinline__ void AddSlices(int unit) const {
    const MlaValuesParams& values = args_.p.values;
    const int head = unit / UnitsPerHead();
    const int first_row = unit % UnitsPerHead() * kUnitStrips * kStripRows;
    const int num_slices = CeilDiv(PaddedColumns(Layout()), kValueSlice);
    constexpr int kOfStrip = kValueTokens * kStripRows;
    for (int i = thread_; i < kUnitStrips * kOfStrip; i += kMlaThreads) {
      const int strip = i / kOfStrip;
      const int token = i % kOfStrip / kStripRows;
      const int in_strip = i % kStripRows;
      const int row = first_row + strip * kStripRows + in_strip;
      if (token >= args_.p.num_tokens || row >= Layout().n) continue;
      float total = 0;
      for (int slice = 0; slice < num_slices; ++slice) {
        total += s_.sums[slice][strip][token][in_strip];
      }
      values.out[token * values.stride + head * values.head_stride + row] = device::ToBf16(total);
    }
  }

  const AttentionParams& args_;
  const MlaWalker<kWide>& walker_;
  ValuesShared& s_;
  const int thread_ = device::Opaque(device::ThreadIdx());
};

}  // namespace jevons::cuda::mla

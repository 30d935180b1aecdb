// The kernel of gemm.cu, for one format of the weight and one width of the token tile.
#pragma once

#include "cuda/gemm_result.h"
#include "cuda/gemm_stage.h"
#include "cuda/gemm_walker.h"

namespace jevons::cuda {

// One thread's part of the kernel.
template <typename Traits>
class GemmBlock {
 public:
  __device__ __forceinline__ GemmBlock(const GemmLaunch& launch, unsigned char* smem)
      : launch_(launch), params_(launch.params), smem_(smem), walker_(launch) {}

  // The first weights are asked for while the kernel before still runs.
  __device__ __forceinline__ void Run() {
    device::LetNextKernelBegin();
    Round current = First(walker_.Next());
#pragma unroll
    for (int q = 0; q < Traits::kAhead; ++q) {
#pragma unroll
      for (int i = 0; i < Traits::kRunsPerStage; ++i) LoadRun(current, q, i);
    }
    device::WaitForKernelBefore();
#pragma unroll
    for (int q = 0; q < Traits::kAhead; ++q) CopyTokens(current, q, q);
    ClearTotals();
    while (current.tile.group >= 0) {
      const Round next = Following(current);
#pragma unroll
      for (int q = 0; q < kStagesPerSpan; ++q) {
        constexpr int kAhead = Traits::kAhead;
        Step(current, q, q + kAhead < kStagesPerSpan ? current : next,
             (q + kAhead) % kStagesPerSpan);
      }
      if constexpr (Traits::kSpreads) {
        device::SyncThreads();  // the round's slice sums are all there
        AddRound(current);
      }
      if (current.index == launch_.num_rounds - 1) {
        Store(current.tile);
        ClearTotals();
      }
      current = next;
    }
  }

 private:
  using Atom = typename Traits::Atom;
  using Round = GemmRound<Traits>;
  using Smem = GemmSmem<Traits>;
  static constexpr int kStagesPerSpan = Traits::kStagesPerSpan;
  static constexpr int kSpanRuns = kStagesPerSpan * Traits::kRunsPerStage;

  __device__ __forceinline__ int WarpsPerStrip() const {
    return Traits::kSpreads ? launch_.warps_per_strip : 1;
  }
  // Of the tile's strips, this warp's; and of the strip's warps, this one. Cheaper than kept.
  __device__ __forceinline__ int Strip() const {
    return Traits::kSpreads ? device::WarpIdx() >> launch_.strip_shift : device::WarpIdx();
  }
  __device__ __forceinline__ int Turn() const { return device::WarpIdx() & (WarpsPerStrip() - 1); }
  __device__ __forceinline__ int StripOf(const GemmTile& tile) const {
    return tile.first_strip + Strip();
  }

  // Of the tile, that this thread copies.
  __device__ __forceinline__ static int Token() {
    return device::ThreadIdx() / Traits::kTokenThreads % Traits::kTileTokens;
  }

  // The first round of a tile: which row of x this thread will copy.
  __device__ __forceinline__ Round First(const GemmTile& tile) const {
    Round round;
    round.tile = tile;
    const int token = Token();
    if (tile.group >= 0 && token < tile.num_rows) {
      const int row = tile.first_row + token;
      const int source = params_.row_idx == nullptr ? row : params_.row_idx[row];
      round.lost = source < 0 || source >= params_.num_x_rows;
      if (!round.lost) {
        round.row = static_cast<const typename Round::XElement*>(params_.x) +
                    tile.group * params_.x_group_stride + source * params_.x_row_stride;
      }
    }
    SetSpan(round);
    return round;
  }

  __device__ __forceinline__ Round Following(const Round& round) {
    if (round.index == launch_.num_rounds - 1) return First(walker_.Next());
    Round next = round;
    ++next.index;
    SetSpan(next);
    return next;
  }

  // What depends on the round's number: the warp's span of the weight and its scales.
  __device__ __forceinline__ void SetSpan(Round& round) const {
    const int span = round.index * WarpsPerStrip() + Turn();
    const int strip = StripOf(round.tile);
    const bool there = round.tile.group >= 0 && strip < launch_.num_strips;
    round.num_stages =
        there ? Min(Max(launch_.num_stages - span * kStagesPerSpan, 0), kStagesPerSpan) : 0;
    round.most_stages = round.num_stages;
    if constexpr (Traits::kTurns > 1) {
      const int first = span - Turn() % Traits::kTurns;
      round.most_stages =
          there ? Min(Max(launch_.num_stages - first * kStagesPerSpan, 0), kStagesPerSpan) : 0;
    }
    if (round.num_stages == 0) return;
    const int64_t first_run = static_cast<int64_t>(strip) * launch_.strip_runs + span * kSpanRuns;
    round.num_runs = launch_.strip_runs - span * kSpanRuns;
    round.weight = static_cast<const unsigned char*>(params_.weight) +
                   round.tile.group * launch_.group_bytes + first_run * kRunBytes +
                   device::LaneIdx() * 16;
    if constexpr (!Traits::kBf16) {
      const int blocks = ScaleBlocks(params_.layout);
      const float* scale = params_.scales + round.tile.group * launch_.group_scales +
                           static_cast<int64_t>(strip) * 2 * blocks;
#pragma unroll
      for (int i = 0; i < Traits::kSlicesPerSpan; ++i) {
        const int slice = span * Traits::kSlicesPerSpan + i;
        if (slice >= blocks) break;
        round.scale[i][0] = scale[slice];
        round.scale[i][1] = scale[blocks + slice];
      }
    }
  }

  __device__ __forceinline__ void LoadRun(const Round& round, int q, int i) {
    if (q >= round.num_stages) return;
    const int run = q * Traits::kRunsPerStage + i;
    uint4& to = runs_[q % Traits::kAhead][i];
    if (Traits::kFp8 && run >= round.num_runs) {
      to = make_uint4(0, 0, 0, 0);  // the strip ends within the stage
    } else {
      to = device::LoadStream16(round.weight + run * kRunBytes);
    }
  }

  // Stage q of the round's tokens for all warps of the block: one group of asynchronous copies.
  __device__ __forceinline__ void CopyTokens(const Round& round, int q, int slot) const {
    constexpr int kThreads = Traits::kTokenThreads;
    const int wanted =
        round.tile.group < 0 ? 0 : RoundUp(round.tile.num_rows, Traits::kOctets == 1 ? 8 : 16);
    const int token = Token();
    constexpr int kTileThreads = kThreads * Traits::kTileTokens;
#pragma unroll 1
    for (int turn = device::ThreadIdx() / kTileThreads; turn < WarpsPerStrip() && token < wanted;
         turn += kGemmThreads / kTileThreads) {
      const int stage = (round.index * WarpsPerStrip() + turn) * kStagesPerSpan + q;
      if (stage >= launch_.num_stages) break;
      unsigned char* const tile =
          smem_ + slot * Smem::SlotBytes(WarpsPerStrip()) + turn * Smem::SlotBytes(1);
#pragma unroll
      for (int i = 0; i < 8 / kThreads; ++i) {
        const int piece = i * kThreads + device::ThreadIdx() % kThreads;
        unsigned char* const to = tile + SwizzledOffset(token, piece);
        if (round.lost) {
          FillNan(to);
        } else if constexpr (Traits::kFp8) {
          CopyFp8Token(to, round.row, stage * Traits::kColumnsPerStage + piece * 16,
                       params_.layout.k, params_.weight);
        } else {
          CopyToken(to, round.row, stage * kStageColumns + piece * 8, params_.layout.k,
                    launch_.x_alignment, params_.weight);
        }
      }
      if constexpr (Traits::kFp8) {
        if (device::ThreadIdx() % kThreads == 0) {
          CopyTokenScale(&TokenScales(slot, turn)[token], round.row, stage, params_.layout.k,
                         params_.weight);
        }
      }
    }
    device::CpAsyncCommit();
  }

  __device__ __forceinline__ float* TokenScales(int slot, int turn) const {
    return reinterpret_cast<float*>(smem_ + Smem::TokenScales(WarpsPerStrip())) +
           (slot * WarpsPerStrip() + turn) * Traits::kTileTokens;
  }

  // Multiplies stage q of `round` and lets stage `ahead_q` of `ahead` begin.
  __device__ __forceinline__ void Step(const Round& round, int q, const Round& ahead, int ahead_q) {
    device::CpAsyncWait<Traits::kAhead - 1>();
    if constexpr (Traits::kTogether) device::FenceProxyAsync();
    device::SyncThreads();  // this stage's tokens are there; the slot before it is free
    constexpr int kStagesPerSlice = kStagesPerSpan / Traits::kSlicesPerSpan;
    constexpr int kStepsPerRun = 4 / Traits::kRunsPerStage;
    const auto operand = [&](int j, uint32_t(&a)[4]) {
      GemmOperand<Traits>(runs_[q % Traits::kAhead][j / kStepsPerRun], j, a);
    };
    const auto refill = [&](int j) {
      if (j % kStepsPerRun == kStepsPerRun - 1) LoadRun(ahead, ahead_q, j / kStepsPerRun);
    };
    const auto meanwhile = [&] {
      CopyTokens(ahead, ahead_q, slot_ == 0 ? Traits::kAhead : slot_ - 1);
    };
    if (q % kStagesPerSlice == 0) ClearSlice();
    if (q < round.most_stages) {
      const unsigned char* const x = smem_ + slot_ * Smem::SlotBytes(WarpsPerStrip()) +
                                     (Turn() & ~(Traits::kTurns - 1)) * Smem::SlotBytes(1);
      Atom::MultiplyStage(slice_, x, round.tile.num_rows, operand, refill, meanwhile);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) refill(j);
      meanwhile();
    }
    const int slot = slot_;
    slot_ = slot_ == Traits::kAhead ? 0 : slot_ + 1;
    // A span that ends early is complete then: what its warp goes on to multiply, for the others of
    // its four, is not its own.
    const int slice = q / kStagesPerSlice;
    const int end = (slice + 1) * kStagesPerSlice;
    const int own_end = Traits::kTurns == 1 ? end : Min(round.num_stages, end);
    if (q + 1 == own_end) EndSlice(round, slice, slot);
  }

  __device__ __forceinline__ float4 Slice(int first, int octet, int slot) const {
    const float4 slice =
        make_float4(slice_[first], slice_[first + 1], slice_[first + 2], slice_[first + 3]);
    return ScaledSlice<Traits>(slice, TokenScales(slot, Turn()) + octet * 8);
  }

  // The warp's slice `i` of the round is summed up, its tokens are in `slot`: add it, or hand it to
  // those who add.
  __device__ __forceinline__ void EndSlice(const Round& round, int i, int slot) {
    constexpr int kStagesPerSlice = kStagesPerSpan / Traits::kSlicesPerSpan;
    if (i * kStagesPerSlice >= round.num_stages) return;
    if constexpr (!Traits::kSpreads) {
#pragma unroll
      for (int o = 0; o < Traits::kOctets; ++o) {
        const float2 scale = make_float2(round.scale[i][0], round.scale[i][1]);
        AddSlice<Traits>(total_[o], Slice(4 * o, o, slot), scale);
      }
    } else {
      const int part = (Turn() * Traits::kSlicesPerSpan + i) * launch_.tile_strips + Strip();
#pragma unroll
      for (int turn = 0; turn < Traits::kTurns; ++turn) {
        if (turn != Turn() % Traits::kTurns) continue;
#pragma unroll
        for (int o = 0; o < Traits::kOctets; ++o) {
          if (8 * o >= round.tile.num_rows) break;
          Partial(part, o) = Slice(4 * (turn * Traits::kOctets + o), o, slot);
        }
      }
      if (!Traits::kBf16 && device::LaneIdx() == 0) {
        PartialScale(part) = make_float2(round.scale[i][0], round.scale[i][1]);
      }
    }
  }

  // The warps of a strip share its octets and add all slices of the round in order.
  __device__ __forceinline__ void AddRound(const Round& round) {
    constexpr int kSlices = Traits::kSlicesPerSpan;
    [[maybe_unused]] constexpr int kUnroll = Traits::kBf16 ? 2 : 1;  // registers are short
    const int all = CeilDiv(params_.layout.k, Traits::kSliceColumns);
    const int num_slices =
        Min(all - round.index * WarpsPerStrip() * kSlices, WarpsPerStrip() * kSlices);
    if (StripOf(round.tile) >= launch_.num_strips) return;
#pragma unroll
    for (int t = 0; t < Traits::kTotals; ++t) {
      const int o = Turn() + t * WarpsPerStrip();
      if (o >= Traits::kOctets || 8 * o >= round.tile.num_rows) break;
#pragma unroll(kUnroll)
      for (int i = 0; i < num_slices; ++i) {
        const int part = i * launch_.tile_strips + Strip();
        const float4 slice = Partial(part, o);
        float2 scale = {};
        if constexpr (!Traits::kBf16) scale = PartialScale(part);
        AddSlice<Traits>(total_[t], slice, scale);
      }
    }
  }

  __device__ __forceinline__ float4& Partial(int part, int octet) const {
    float4* const partials = reinterpret_cast<float4*>(smem_ + Smem::Partials(WarpsPerStrip()));
    return partials[(part * Traits::kOctets + octet) * 32 + device::LaneIdx()];
  }
  __device__ __forceinline__ float2& PartialScale(int part) const {
    return reinterpret_cast<float2*>(smem_ + Smem::Scales(WarpsPerStrip()))[part];
  }

  __device__ __forceinline__ void ClearSlice() {
#pragma unroll
    for (float& sum : slice_) sum = 0;
  }
  __device__ __forceinline__ void ClearTotals() {
#pragma unroll
    for (int t = 0; t < Traits::kTotals; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) total_[t][i] = 0;
    }
  }

  __device__ __forceinline__ void Store(const GemmTile& tile) const {
    if (StripOf(tile) >= launch_.num_strips) return;
#pragma unroll
    for (int t = 0; t < Traits::kTotals; ++t) {
      const int o = Traits::kSpreads ? Turn() + t * WarpsPerStrip() : t;
      if (o >= Traits::kOctets || 8 * o >= tile.num_rows) break;
      StoreOctet(params_, tile, StripOf(tile), o, total_[t]);
    }
  }

  const GemmLaunch& launch_;
  const GemmParams& params_;
  unsigned char* const smem_;
  TileWalker walker_;
  int slot_ = 0;
  uint4 runs_[Traits::kAhead][Traits::kRunsPerStage];
  float slice_[4 * Traits::kTurns * Traits::kOctets];
  float total_[Traits::kTotals][4];
};

template <typename Traits>
__global__ void __launch_bounds__(kGemmThreads, Traits::kMinBlocks)
    GemmKernel(const __grid_constant__ GemmLaunch launch) {
  // Never launched elsewhere: ChooseGemm.
  if constexpr (device::kHasWgmma || !Traits::kTogether) {
    GemmBlock<Traits> block(launch, &device::SharedMemory<unsigned char>());
    block.Run();
  }
}

}  // namespace jevons::cuda

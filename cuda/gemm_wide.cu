// out[r] = W_g x[source(r)] for many rows on sm_90: tiles of 192 outputs for 128 tokens.
//
// Three warpgroups multiply, 64 outputs each; the fourth fetches what they multiply into a ring of
// stages in shared memory, 64 columns (FP8: 128) of weights and tokens, which runs on over the end of a
// tile into the block's next one:
//   weights  a stage of a strip is one piece of the packed weight: one bulk copy, asked for by one
//            thread
//   tokens   rows that an index picks: cp.async by all its warps, swizzled as in gemm_stage.h
// A warp that multiplies takes operand a of its strip from there, 16 bytes a lane, as packed. What it
// does with it, and the order of sums, are those of gemm_kernel.h: the same bits.
//
// Why. A tile of 128 x 128 reads 32 KiB from L2 for 512 clocks of the tensor cores, this one 40 KiB for
// 768. What a thread needs for it are 64 + 64 sums of 64 outputs, and a third warpgroup has place for
// them only where it does not hold weights on their way too. Registers: 128 a thread at the start, then
// 160 of those that multiply and 32 of those that fetch.
//
// Floor (H100, 132 SMs at 1.75 GHz), clocks a stage; moe.md has the times
//              tensor cores   shared memory   L2 at 35 bytes a clock
//   bf16       768            896             1,170
//   e4m3       768            704               819
//   FP8        768            896             1,170, for twice the columns
//
// Barriers. Of each stage: full, of the warps that fetch, when the tokens that they copied have landed,
// and of the thread that asked for the weights, with their bytes: both may be read. empty, of each warp
// that multiplies, when it has: the stage is filled again. One of the block: the barriers are
// there. In a warp that fetches, two SyncWarp a tile: its lanes have left the pointers of the tile
// before; those of this one are there.
#include "cuda/gemm_wide.h"

#include "cuda/device/launch.h"
#include "cuda/device/mbarrier.h"
#include "cuda/gemm_result.h"

namespace jevons::cuda {
namespace {

constexpr int kMultiplyWarps = kWideStrips;
constexpr int kFetchWarps = 4;
constexpr int kWideThreads = 32 * (kMultiplyWarps + kFetchWarps);
constexpr int kMultiplyRegisters = 160;
constexpr int kFetchRegisters = 32;
static_assert(32 * (kMultiplyWarps * kMultiplyRegisters + kFetchWarps * kFetchRegisters) <= 65536);

constexpr int kWideStages = 5;
// Stages whose tokens are under way while the next one's are asked for. Fewer than the others, which
// are being multiplied or wait for it.
constexpr int kTokensAhead = 2;
static_assert(kTokensAhead < kWideStages - 1);

template <typename Traits>
struct WideShared {
  static constexpr int kStripBytes = Traits::kRunsPerStage * kRunBytes;

  alignas(1024) unsigned char tokens[kWideStages][Traits::kTileTokens * kTokenBytes];
  alignas(128) unsigned char weights[kWideStages][kWideStrips][kStripBytes];
  float token_scales[kWideStages][Traits::kFp8 ? Traits::kTileTokens : 1];
  GemmTile tile[kWideStages];  // of which the stage is; the last one of all is of none
  // Of x, of the tile that is fetched; null: the token has none.
  const void* rows[Traits::kTileTokens];
  device::MBarrier full[kWideStages];
  device::MBarrier empty[kWideStages];
};

// Where a stage lies, as all walk over the ring: slots of even and of odd turns in one number, as
// registers are short.
template <int kSlots>
class RingPlace {
 public:
  __device__ __forceinline__ int Slot() const {
    return number_ < kSlots ? number_ : number_ - kSlots;
  }
  // Of the phase of the slot's barriers.
  __device__ __forceinline__ uint32_t Parity() const { return number_ < kSlots ? 0 : 1; }
  __device__ __forceinline__ void Advance() {
    number_ = number_ == 2 * kSlots - 1 ? 0 : number_ + 1;
  }

 private:
  int number_ = 0;
};

// The part of the fourth warpgroup.
template <typename Traits>
class FetchRole {
 public:
  __device__ __forceinline__ FetchRole(const GemmLaunch& launch, WideShared<Traits>& s)
      : launch_(launch), params_(launch.params), s_(s) {}

  // The first weights are asked for while the kernel before still runs: every slot is free.
  __device__ __forceinline__ void Run() {
    TileWalker walker(launch_);
    GemmTile tile = walker.Next();
    int asked = Min(kWideStages, NumStages(tile));
    for (int stage = 0; stage < asked; ++stage) FetchWeights(tile, stage, stage);
    device::WaitForKernelBefore();
    while (true) {
      FindRows(tile);
#pragma unroll 1
      for (int stage = 0; stage < NumStages(tile); ++stage) {
        device::MBarrierWait(s_.empty[place_.Slot()], place_.Parity() ^ 1);
        if (asked > 0) {
          --asked;
        } else {
          FetchWeights(tile, stage, place_.Slot());
        }
        FetchTokens(tile, stage);
        Land();
        place_.Advance();
      }
      if (tile.group < 0) break;
      tile = walker.Next();
    }
    for (int i = 0; i < kTokensAhead; ++i) Land();
  }

 private:
  static constexpr int kXBytes = Traits::kFp8 ? 1 : 2;  // of an element

  __device__ __forceinline__ static int Warp() { return device::WarpIdx() - kMultiplyWarps; }

  __device__ __forceinline__ int NumStages(const GemmTile& tile) const {
    return tile.group < 0 ? 1 : launch_.num_stages;
  }

  // All strips of the tile that there are, and what the stage is of, by one thread.
  __device__ __forceinline__ void FetchWeights(const GemmTile& tile, int stage, int slot) const {
    if (device::ThreadIdx() != 32 * kMultiplyWarps) return;
    const int first_run = stage * Traits::kRunsPerStage;
    // A strip of FP8 may end within the stage.
    const int bytes = Min(launch_.strip_runs - first_run, Traits::kRunsPerStage) * kRunBytes;
    const int num_strips =
        tile.group < 0 ? 0 : Min(launch_.num_strips - tile.first_strip, kWideStrips);
    const int64_t strip_bytes = int64_t{launch_.strip_runs} * kRunBytes;
    const unsigned char* from = static_cast<const unsigned char*>(params_.weight) +
                                tile.group * launch_.group_bytes + tile.first_strip * strip_bytes +
                                first_run * kRunBytes;
    s_.tile[slot] = tile;
    device::MBarrierArriveExpect(s_.full[slot], num_strips * bytes);
#pragma unroll 1
    for (int i = 0; i < num_strips; ++i) {
      device::BulkCopy(s_.weights[slot][i], from, bytes, s_.full[slot]);
      from += strip_bytes;
    }
  }

  // Lane l finds the row of the warp's token l.
  __device__ __forceinline__ void FindRows(const GemmTile& tile) {
    const int token = 32 * Warp() + device::LaneIdx();
    const unsigned char* found = nullptr;
    bool lost = false;
    if (token < tile.num_rows) {
      const int row = tile.first_row + token;
      const int source = params_.row_idx == nullptr ? row : params_.row_idx[row];
      lost = source < 0 || source >= params_.num_x_rows;
      if (!lost) {
        found = static_cast<const unsigned char*>(params_.x) +
                (tile.group * params_.x_group_stride + source * params_.x_row_stride) * kXBytes;
      }
    }
    lost_ = device::Ballot(lost);
    device::SyncWarp();
    s_.rows[token] = found;
    device::SyncWarp();
  }

  // Eight lanes copy a token's 128 bytes, and each lane the scale of its own token.
  __device__ __forceinline__ void FetchTokens(const GemmTile& tile, int stage) const {
    const int piece = device::LaneIdx() % 8;
    unsigned char* const slot = s_.tokens[place_.Slot()];
#pragma unroll 4
    for (int in_warp = device::LaneIdx() / 8; in_warp < 32; in_warp += 4) {
      const int token = 32 * Warp() + in_warp;
      if (token >= tile.num_rows) break;
      unsigned char* const to = slot + SwizzledOffset(token, piece);
      if (lost_ >> in_warp & 1) {
        FillNan(to);
      } else if constexpr (Traits::kFp8) {
        CopyFp8Token(to, static_cast<const uint8_t*>(s_.rows[token]),
                     stage * Traits::kColumnsPerStage + piece * 16, params_.layout.k,
                     params_.weight);
      } else {
        CopyToken(to, static_cast<const device::Bf16*>(s_.rows[token]),
                  stage * kStageColumns + piece * 8, params_.layout.k, 16, params_.weight);
      }
    }
    if constexpr (Traits::kFp8) {
      const int token = 32 * Warp() + device::LaneIdx();
      CopyTokenScale(&s_.token_scales[place_.Slot()][token],
                     static_cast<const uint8_t*>(s_.rows[token]), stage, params_.layout.k,
                     params_.weight);
    }
  }

  // Ends the warp's copies of a stage; those of kTokensAhead before have landed then.
  __device__ __forceinline__ void Land() {
    device::CpAsyncCommit();
    if (under_way_ < kTokensAhead) {
      ++under_way_;
      return;
    }
    device::CpAsyncWait<kTokensAhead>();
    device::FenceProxyAsync();
    device::SyncWarp();
    if (device::LaneIdx() == 0) device::MBarrierArrive(s_.full[landed_.Slot()]);
    landed_.Advance();
  }

  const GemmLaunch& launch_;
  const GemmParams& params_;
  WideShared<Traits>& s_;
  RingPlace<kWideStages> place_;
  RingPlace<kWideStages> landed_;
  int under_way_ = 0;
  uint32_t lost_ = 0;  // of the warp's tokens, those whose source is out of range: NaN
};

// The part of the other three. Warp w has strip w of a tile.
template <typename Traits>
class MultiplyRole {
 public:
  __device__ __forceinline__ MultiplyRole(const GemmLaunch& launch, WideShared<Traits>& s)
      : launch_(launch), params_(launch.params), s_(s) {}

  __device__ __forceinline__ void Run() {
    device::WaitForKernelBefore();
    while (true) {
      device::MBarrierWait(s_.full[place_.Slot()], place_.Parity());
      const GemmTile& tile = s_.tile[place_.Slot()];
      if (tile.group < 0) break;
      // The strips of a group are a multiple of four: all of a warpgroup or none.
      if (StripOf(tile) < launch_.num_strips) {
        MultiplyTile();
      } else {
        LeaveTile();
      }
    }
  }

 private:
  using Atom = typename Traits::Atom;
  static constexpr int kStagesPerSlice = Traits::kStagesPerSpan / Traits::kSlicesPerSpan;

  __device__ __forceinline__ static int StripOf(const GemmTile& tile) {
    return tile.first_strip + device::Opaque(device::ThreadIdx()) / 32;
  }

  __device__ __forceinline__ void MultiplyTile() {
    GemmTile tile;
    float total[Traits::kOctets][4] = {};
    float slice[4 * Traits::kOctets];
#pragma unroll 1
    for (int stage = 0; stage < launch_.num_stages; ++stage) {
      device::MBarrierWait(s_.full[place_.Slot()], place_.Parity());
      const bool ends = (stage + 1) % kStagesPerSlice == 0 || stage + 1 == launch_.num_stages;
      float2 scale = {};
      if (!Traits::kBf16 && ends) scale = ScaleOf(s_.tile[place_.Slot()], stage / kStagesPerSlice);
      uint32_t a[4][4];
      LoadOperands(stage, a);
      Atom::Begin(slice, a, s_.tokens[place_.Slot()], stage % kStagesPerSlice != 0);
      device::WgmmaWait<0>(slice);
      tile = s_.tile[place_.Slot()];
      if (ends) EndSlice(slice, scale, total);
      LeaveStage();
    }
#pragma unroll
    for (int o = 0; o < Traits::kOctets; ++o) {
      if (8 * o >= tile.num_rows) break;
      StoreOctet(params_, tile, StripOf(tile), o, total[o]);
    }
  }

  __device__ __forceinline__ void EndSlice(const float (&slice)[4 * Traits::kOctets],
                                           const float2& scale,
                                           float (&total)[Traits::kOctets][4]) const {
#pragma unroll
    for (int o = 0; o < Traits::kOctets; ++o) {
      const float4 sums =
          make_float4(slice[4 * o], slice[4 * o + 1], slice[4 * o + 2], slice[4 * o + 3]);
      const float* const scales = s_.token_scales[place_.Slot()] + (Traits::kFp8 ? 8 * o : 0);
      AddSlice<Traits>(total[o], ScaledSlice<Traits>(sums, scales), scale);
    }
  }

  __device__ __forceinline__ void LeaveTile() {
#pragma unroll 1
    for (int stage = 0; stage < launch_.num_stages; ++stage) {
      device::MBarrierWait(s_.full[place_.Slot()], place_.Parity());
      LeaveStage();
    }
  }

  __device__ __forceinline__ void LeaveStage() {
    device::SyncWarp();
    if (device::LaneIdx() == 0) device::MBarrierArrive(s_.empty[place_.Slot()]);
    place_.Advance();
  }

  __device__ __forceinline__ void LoadOperands(int stage, uint32_t (&a)[4][4]) const {
    constexpr int kStepsPerRun = 4 / Traits::kRunsPerStage;
    const int thread = device::Opaque(device::ThreadIdx());
    const unsigned char* const runs = s_.weights[place_.Slot()][thread / 32] + thread % 32 * 16;
#pragma unroll
    for (int i = 0; i < Traits::kRunsPerStage; ++i) {
      uint4 run = make_uint4(0, 0, 0, 0);
      // A strip of FP8 may end within the stage.
      if (!Traits::kFp8 || stage * Traits::kRunsPerStage + i < launch_.strip_runs) {
        run = *reinterpret_cast<const uint4*>(runs + i * kRunBytes);
      }
#pragma unroll
      for (int j = 0; j < kStepsPerRun; ++j) {
        GemmOperand<Traits>(run, i * kStepsPerRun + j, a[i * kStepsPerRun + j]);
      }
    }
  }

  // Of the strip's first and last eight rows.
  __device__ __forceinline__ float2 ScaleOf(const GemmTile& tile, int slice) const {
    const int blocks = ScaleBlocks(params_.layout);
    const float* const scale = params_.scales + tile.group * launch_.group_scales +
                               static_cast<int64_t>(StripOf(tile)) * 2 * blocks + slice;
    return make_float2(scale[0], scale[blocks]);
  }

  const GemmLaunch& launch_;
  const GemmParams& params_;
  WideShared<Traits>& s_;
  RingPlace<kWideStages> place_;
};

template <typename Traits>
__global__ void __launch_bounds__(kWideThreads, 1)
    GemmWideKernel(const __grid_constant__ GemmLaunch launch) {
  // Never launched elsewhere: ChooseGemm.
  if constexpr (device::kHasWgmma) {
    device::LetNextKernelBegin();
    WideShared<Traits>& s = device::SharedMemory<WideShared<Traits>>();
    if (device::ThreadIdx() == 0) {
      for (int i = 0; i < kWideStages; ++i) {
        device::MBarrierInit(s.full[i], kFetchWarps + 1);
        device::MBarrierInit(s.empty[i], kMultiplyWarps);
      }
      device::FenceMBarrierInit();
    }
    device::SyncThreads();
    if (device::WarpIdx() < kMultiplyWarps) {
      device::TakeRegisters<kMultiplyRegisters>();
      MultiplyRole<Traits>(launch, s).Run();
    } else {
      device::GiveUpRegisters<kFetchRegisters>();
      FetchRole<Traits>(launch, s).Run();
    }
  }
}

// Calls `use` with the traits of a wide tile.
template <typename Use>
void WithWide(WeightFormat format, GemmAtom atom, const Use& use) {
  constexpr auto kE4m3 = WeightFormat::kE4m3;
  if (atom == GemmAtom::kWgmmaFp8) {
    use(GemmTraits<kE4m3, kWideTokens, GemmAtom::kWgmmaFp8>());
  } else if (format == kE4m3) {
    use(GemmTraits<kE4m3, kWideTokens, GemmAtom::kWgmma>());
  } else {
    use(GemmTraits<WeightFormat::kBf16, kWideTokens, GemmAtom::kWgmma>());
  }
}

}  // namespace

int32_t GemmWideSmemBytes(WeightFormat format, GemmAtom atom) {
  int32_t bytes = 0;
  WithWide(format, atom, [&](auto traits) { bytes = sizeof(WideShared<decltype(traits)>); });
  return bytes;
}

cudaError_t LaunchGemmWide(const GemmLaunch& launch, const GemmPlan& plan,
                           const DeviceFacts& device, cudaStream_t stream) {
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(plan.num_blocks));
  shape.block = kWideThreads;
  shape.smem_bytes = plan.smem_bytes;
  shape.early = device.early;
  cudaError_t error = cudaErrorInvalidValue;
  WithWide(launch.params.layout.format, plan.atom, [&](auto traits) {
    error = Launch(GemmWideKernel<decltype(traits)>, shape, stream, launch);
  });
  return error;
}

}  // namespace jevons::cuda

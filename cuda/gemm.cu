// out[r] = W_g x[source(r)]: the products of a step, for any number of rows.
//
// The weight is operand a of the tensor core, the tokens are operand b: with one token seven eighths
// of b are idle, but the weight's bytes are what a decoding step waits for, and they go from memory
// straight to the registers that multiply them (gemm_layout.h).
//
// A block of eight warps computes tiles: some strips of 16 outputs for some tokens. `warps_per_strip`
// of its warps share a strip; each multiplies spans of 256 columns in turn, and at the end of a
// round, when each has done one, their slice sums are added in order by way of shared memory. With
// one warp a strip the sums stay in registers. Which strip and how many warps share it changes what
// runs at one time and never the order of a sum (gemm.h).
//
// What a warp will multiply is requested kAhead stages (of 64 columns) before: the weight into
// registers, the tokens by cp.async into shared memory. Both run on over the end of a tile into the
// block's next one.
//
// wgmma multiplies 64 rows of a weight by one set of columns of b. For few tokens that would leave a
// weight of 2048 rows with 32 blocks; so the four warps of a product keep a strip or a span each,
// and b holds the tokens once for every span among them: each warp takes the columns of its own
// span and drops the others. The tensor core then multiplies four times what is needed, at a
// fraction of its rate while it waits for memory.
//
// FP8 with FP8 (kWgmmaFp8) is the same loop: a row of shared memory holds twice the columns, one slice
// a stage, and the packed weight is its operand as it lies. A token's scales come with its columns.
//
// Barriers. (1) At each stage: this stage's tokens, copied by all threads, are visible; and no warp
// still reads the slot of the stage before, which is now filled again. (2) At the end of a round,
// where warps share strips: the slice sums are visible. They are overwritten in the next round,
// after at least one barrier (1), so after everyone has read them.
//
// Bytes in flight: 3.0 TB/s over a latency of 0.8 us are 18 KiB for each of 132 SMs; the tiles of 8
// and 32 tokens keep 32 to 128 KiB.
//
// Floors, H100, DeepSeek-V2-Lite, bf16 weights, in us, without the start and the end of a kernel:
//   one token    q [3072, 2048] 4.2, o [2048, 2048] 2.8, head [102400, 2048] 140;
//                six experts: gate and up [2816, 2048] 23.1, down [2048, 1408] 11.5
//   64 tokens    64 experts: gate and up 246, down 123; the bytes of the weight are the floor up to
//                about 120 rows an expert
//   8192 tokens  o: 69 GFLOP. A tile of 128 x 128 takes 32 KiB of operands a stage, at 35 bytes a clock
//                from the L2 cache 940 clocks: 133 (515 TFLOP/s); mma.sync at its rate of 1024: 145;
//                gemm_wide.cu 111
#include "cuda/gemm.h"

#include "cuda/device/launch.h"
#include "cuda/gemm_kernel.h"
#include "cuda/gemm_wide.h"

namespace jevons::cuda {
namespace {

// The tiles to choose from. With wgmma the four warps that multiply together must have as many
// different turns as the instance of the kernel expects.
struct TileShape {
  int32_t tokens;
  int32_t strips;
  bool for_mma_sync;
  bool for_wgmma;
};
constexpr TileShape kShapes[] = {{8, 1, true, true},   {8, 2, true, true},
                                 {8, 4, true, false},  {32, 1, true, true},
                                 {32, 2, true, true},  {32, 4, true, false},
                                 {64, 2, true, false}, {64, 4, true, true},
                                 {128, 8, true, true}, {kWideTokens, kWideStrips, false, true}};
// Rows of a group up to which it is the weight's bytes that one waits for, and they come soonest
// straight to the registers.
constexpr int32_t kMostNarrowRows = 64;

// Rough rates of one multiprocessor a clock, alike from sm_80 to sm_100: enough to rank tiles. wgmma
// multiplies twice as much, but where warps share a strip that goes into products that nobody uses.
constexpr int64_t kMemoryBytes = 13;
constexpr int64_t kCacheBytes = 32;
constexpr int64_t kMultiplyAdds = 1024;
constexpr int64_t kRoundLatency = 1200;
constexpr int64_t kTileOverhead = 800;

// Calls `use` with the traits of the tile; not at all where there are none.
template <WeightFormat kFormat, GemmAtom kAtom, typename Use>
void WithTokens(int32_t tokens, const Use& use) {
  if (tokens == 8) use(GemmTraits<kFormat, 8, kAtom>());
  if (tokens == 32) use(GemmTraits<kFormat, 32, kAtom>());
  if (tokens == 64) use(GemmTraits<kFormat, 64, kAtom>());
  if (tokens == 128) use(GemmTraits<kFormat, 128, kAtom>());
}

template <GemmAtom kAtom, typename Use>
void WithFormat(WeightFormat format, int32_t tokens, const Use& use) {
  if (format == WeightFormat::kBf16) WithTokens<WeightFormat::kBf16, kAtom>(tokens, use);
  if (format == WeightFormat::kE4m3) WithTokens<WeightFormat::kE4m3, kAtom>(tokens, use);
}

template <typename Use>
void WithTraits(const GemmParams& params, const GemmPlan& plan, const Use& use) {
  const WeightFormat format = params.layout.format;
  if (plan.atom == GemmAtom::kMmaSync) {
    WithFormat<GemmAtom::kMmaSync>(format, plan.tile_tokens, use);
  }
  if (plan.atom == GemmAtom::kWgmma) WithFormat<GemmAtom::kWgmma>(format, plan.tile_tokens, use);
  if (plan.atom == GemmAtom::kWgmmaFp8) {
    WithTokens<WeightFormat::kE4m3, GemmAtom::kWgmmaFp8>(plan.tile_tokens, use);
  }
}

// Groups that have rows, at most, and rows that one of them has where they are spread evenly.
int32_t ActiveGroups(const GemmParams& params) {
  return params.cu_rows == nullptr ? params.num_groups : Min(params.num_groups, params.num_rows);
}
int32_t RowsOfGroup(const GemmParams& params) {
  return params.cu_rows == nullptr ? params.num_rows
                                   : CeilDiv(params.num_rows, ActiveGroups(params));
}

int32_t StripTiles(const GemmParams& params, const GemmPlan& plan) {
  return CeilDiv(PaddedRows(params.layout) / kStripRows, plan.tile_strips);
}

// An upper bound: with cu_rows every active group may have a last tile that is not full.
int64_t NumTiles(const GemmParams& params, const GemmPlan& plan) {
  const int64_t token_tiles =
      params.cu_rows == nullptr
          ? int64_t{params.num_groups} * CeilDiv(params.num_rows, plan.tile_tokens)
          : ActiveGroups(params) + params.num_rows / plan.tile_tokens;
  return token_tiles * StripTiles(params, plan);
}

bool HasFp8Rows(const GemmParams& params) { return params.atom == GemmAtom::kWgmmaFp8; }

// Clocks that the product takes with this plan, roughly.
int64_t Clocks(const GemmParams& params, const DeviceFacts& device, const GemmPlan& plan) {
  const int64_t tile_rows = Min(plan.tile_tokens, RoundUp(RowsOfGroup(params), 8));
  const int64_t token_tiles = CeilDiv(RowsOfGroup(params), plan.tile_tokens);
  const int64_t tiles = ActiveGroups(params) * token_tiles * StripTiles(params, plan);
  const int64_t blocks = tiles < plan.num_blocks ? tiles : plan.num_blocks;
  const int64_t on_one_sm = (blocks + device.num_sms - 1) / device.num_sms;
  const int64_t element = params.layout.format == WeightFormat::kBf16 ? 2 : 1;
  const int64_t spans = plan.tile_strips * plan.warps_per_strip;  // of a round
  const int64_t weight_bytes = element * spans * kStripRows * kSpanColumns;
  const int64_t fp8 = HasFp8Rows(params) ? 2 : 1;
  const int64_t x_bytes = plan.warps_per_strip * tile_rows * kSpanColumns * 2 / fp8;
  const bool whole_wgmma = plan.atom != GemmAtom::kMmaSync && plan.warps_per_strip == 1;
  const int64_t products =
      spans * kStripRows * kSpanColumns * (whole_wgmma ? plan.tile_tokens : tile_rows);
  const int64_t multiply_adds = kMultiplyAdds * fp8 * (whole_wgmma ? 2 : 1);
  int64_t round = kRoundLatency;
  for (const int64_t clocks :
       {weight_bytes * blocks / (token_tiles * kMemoryBytes * device.num_sms),
        (weight_bytes + x_bytes) * on_one_sm / kCacheBytes, products * on_one_sm / multiply_adds}) {
    if (clocks > round) round = clocks;
  }
  const int64_t rounds = CeilDiv(params.layout.k, kSpanColumns * plan.warps_per_strip);
  return (tiles + blocks - 1) / blocks * (rounds * round + kTileOverhead);
}

int32_t AlignmentOf(const GemmParams& params) {
  const int64_t element = HasFp8Rows(params) ? 1 : 2;
  const uint64_t all = reinterpret_cast<uintptr_t>(params.x) |
                       static_cast<uint64_t>(params.x_row_stride * element) |
                       static_cast<uint64_t>(params.x_group_stride * element) | 16;
  return static_cast<int32_t>(all & (~all + 1));
}

bool Valid(const GemmParams& params, const GemmPlan& plan) {
  if (params.out_type == Element::kF16 || params.layout.n < 1 || params.layout.k < 1) return false;
  if ((params.layout.order == RowOrder::kPaired) != (params.epilogue == GemmEpilogue::kSiluMul)) {
    return false;
  }
  // Rows as LaunchRoundRows makes them.
  if (HasFp8Rows(params) &&
      (params.layout.format != WeightFormat::kE4m3 || AlignmentOf(params) % 16 != 0)) {
    return false;
  }
  if (IsWide(plan) && AlignmentOf(params) % 16 != 0) return false;
  for (const TileShape& shape : kShapes) {
    if (shape.tokens == plan.tile_tokens && shape.strips == plan.tile_strips) {
      return plan.atom == GemmAtom::kMmaSync ? shape.for_mma_sync : shape.for_wgmma;
    }
  }
  return false;
}

}  // namespace

GemmLaunch MakeGemmLaunch(const GemmParams& params, const GemmPlan& plan) {
  GemmLaunch launch;
  launch.params = params;
  launch.x_alignment = AlignmentOf(params);
  launch.warps_per_strip = plan.warps_per_strip;
  while (1 << launch.strip_shift < plan.warps_per_strip) ++launch.strip_shift;
  launch.tile_tokens = plan.tile_tokens;
  launch.tile_strips = plan.tile_strips;
  launch.strip_tiles = StripTiles(params, plan);
  launch.num_strips = PaddedRows(params.layout) / kStripRows;
  launch.num_stages =
      CeilDiv(params.layout.k, HasFp8Rows(params) ? 2 * kStageColumns : kStageColumns);
  launch.strip_runs =
      static_cast<int32_t>(PackedBytes(params.layout) / (int64_t{launch.num_strips} * kRunBytes));
  launch.num_rounds = CeilDiv(params.layout.k, kSpanColumns * plan.warps_per_strip);
  if (!params.one_weight) {
    launch.group_bytes = PackedBytes(params.layout);
    launch.group_scales = ScaleBytes(params.layout) / 4;
  }
  launch.num_blocks = plan.num_blocks;
  return launch;
}

GemmPlan PlanGemm(const GemmParams& params, const DeviceFacts& device, int32_t tile_tokens,
                  int32_t tile_strips) {
  GemmPlan plan;
  plan.atom = params.atom != GemmAtom::kOfDevice ? params.atom
              : device.sm == 90                  ? GemmAtom::kWgmma
                                                 : GemmAtom::kMmaSync;
  plan.tile_tokens = tile_tokens;
  plan.tile_strips = tile_strips;
  plan.warps_per_strip = IsWide(plan) ? 1 : kGemmWarps / tile_strips;
  int32_t blocks_per_sm = 1;
  WithTraits(params, plan, [&](auto traits) {
    using Traits = decltype(traits);
    plan.smem_bytes = GemmSmem<Traits>::Bytes(plan.warps_per_strip);
    constexpr int kReserved = 1024;  // of each block, by the system
    const int32_t fit = (device.max_smem_bytes + kReserved) / (plan.smem_bytes + kReserved);
    blocks_per_sm = Min(Traits::kMinBlocks, Max(fit, 1));
  });
  if (IsWide(plan)) plan.smem_bytes = GemmWideSmemBytes(params.layout.format, plan.atom);
  const int64_t tiles = NumTiles(params, plan);
  plan.resident_blocks = blocks_per_sm * device.num_sms;
  plan.num_blocks =
      static_cast<int32_t>(tiles < plan.resident_blocks ? tiles : plan.resident_blocks);
  return plan;
}

GemmPlan ChooseGemm(const GemmParams& params, const DeviceFacts& device) {
  GemmPlan best;
  if (params.num_rows <= 0) return best;
  // A group's rows should fit one tile, so that its weight is read once: all rows there are, or
  // twice what the groups have on average.
  const int32_t wanted = Min(params.num_rows, 2 * RowsOfGroup(params));
  int64_t best_clocks = 0;
  for (const TileShape& shape : kShapes) {
    const bool too_small = shape.tokens == 8 && wanted > 8;
    const bool too_large =
        shape.tokens > 8 && wanted <= (shape.tokens == 32 ? 8 : shape.tokens / 2);
    if (too_small || too_large) continue;
    if (shape.strips == kWideStrips && RowsOfGroup(params) <= kMostNarrowRows) continue;
    const GemmPlan plan = PlanGemm(params, device, shape.tokens, shape.strips);
    if (!Valid(params, plan) || plan.smem_bytes > device.max_smem_bytes) continue;
    const int64_t clocks = Clocks(params, device, plan);
    if (best.num_blocks == 0 || clocks < best_clocks) {
      best = plan;
      best_clocks = clocks;
    }
  }
  return best;
}

cudaError_t LaunchGemm(const GemmParams& params, const DeviceFacts& device, cudaStream_t stream) {
  if (params.num_rows <= 0 || params.num_groups <= 0) return cudaSuccess;
  return LaunchGemmAs(params, ChooseGemm(params, device), device, stream);
}

cudaError_t LaunchGemmAs(const GemmParams& params, const GemmPlan& plan, const DeviceFacts& device,
                         cudaStream_t stream) {
  if (!Valid(params, plan)) return cudaErrorInvalidValue;
  const GemmLaunch launch = MakeGemmLaunch(params, plan);
  if (IsWide(plan)) return LaunchGemmWide(launch, plan, device, stream);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(plan.num_blocks));
  shape.block = kGemmThreads;
  shape.smem_bytes = plan.smem_bytes;
  shape.early = device.early;
  cudaError_t error = cudaErrorInvalidValue;
  WithTraits(params, plan, [&](auto traits) {
    error = Launch(GemmKernel<decltype(traits)>, shape, stream, launch);
  });
  return error;
}

}  // namespace jevons::cuda

// What an instance of the kernel of gemm.cu fixes at compile time, and where its shared memory lies.
#pragma once

#include <type_traits>

#include "cuda/gemm_atom.h"
#include "cuda/gemm_stage.h"
#include "cuda/gemm_walker.h"
#include "ops/fp8_entry.h"

namespace jevons::cuda {

constexpr int kGemmWarps = 8;
constexpr int kGemmThreads = 32 * kGemmWarps;
// A span is what one warp multiplies before another may take over: one slice of bf16, two of e4m3.
constexpr int kSpanColumns = 256;
constexpr int kRunBytes = 512;  // of a packed weight: 16 bytes a lane

template <WeightFormat kFormat, int kTokens, GemmAtom kAtom>
struct GemmTraits {
  static constexpr bool kBf16 = kFormat == WeightFormat::kBf16;
  static constexpr bool kFp8 = kAtom == GemmAtom::kWgmmaFp8;  // tokens too
  static constexpr int kTileTokens = kTokens;
  static constexpr int kOctets = kTokens / 8;
  // Several warps share a strip and their sums meet in shared memory; otherwise a warp has its strip
  // for itself and adds in registers.
  static constexpr bool kSpreads = kTokens < 128;
  static constexpr int kColumnsPerStage = kFp8 ? 2 * kStageColumns : kStageColumns;
  static constexpr int kStagesPerSpan = kSpanColumns / kColumnsPerStage;
  static constexpr int kRunsPerStage = kBf16 || kFp8 ? 4 : 2;
  static constexpr int kSlicesPerSpan = kBf16 ? 1 : 2;
  static constexpr int kSliceColumns = kSpanColumns / kSlicesPerSpan;
  // Four warps that multiply together also share their tokens: those of as many spans as they have
  // turns. Each warp then uses the products with its own span alone.
  static constexpr bool kTogether = kAtom != GemmAtom::kMmaSync;
  static constexpr int kTurns = !kTogether || !kSpreads ? 1 : kTokens == 64 ? 2 : 4;
  using Atom =
      std::conditional_t<kTogether, WgmmaAtom<kTurns * kTokens, kFp8>, MmaSyncAtom<kTokens>>;
  // Blocks that one multiprocessor should hold; more than one bounds the registers.
  static constexpr int kMinBlocks = kTokens == 8 || (kTokens == 32 && !kTogether) ? 2 : 1;
  // Stages that are under way before they are multiplied: four where the weight's bytes are all that
  // counts, two where registers are short. Two of FP8 have the columns of four.
  static constexpr int kAhead = kFp8                                    ? 2
                                : kTokens == 8 && !(kTogether && kBf16) ? 4
                                : kTokens == 32 && kTogether            ? 4
                                                                        : 2;
  static constexpr int kSlots = kAhead + 1;
  // Threads that copy one token's 128 bytes, 16 at a time: a thread has one token.
  static constexpr int kTokenThreads = kTokens <= 32 ? 8 : kGemmThreads / kTokens;
  // Octets whose totals one warp keeps.
  static constexpr int kTotals = !kSpreads ? kOctets : kOctets == 1 ? 1 : kOctets / 2;
  static_assert(kTokens == 8 || kTokens % 32 == 0);
  // A stage of FP8 is what has one scale, of the weight and of a token.
  static_assert(!kFp8 || (!kBf16 && kColumnsPerStage == kFp8Group && kFp8Group == kScaleColumns));
};

// Byte offsets into the block's shared memory; the launcher asks for Bytes.
template <typename Traits>
struct GemmSmem {
  __host__ __device__ static constexpr int SlotBytes(int warps_per_strip) {
    return warps_per_strip * Traits::kTileTokens * kTokenBytes;
  }
  // Slice sums of a round: float4 [slice][strip][octet][lane], then scales [slice][strip][2].
  __host__ __device__ static constexpr int Partials(int warps_per_strip) {
    return Traits::kSlots * SlotBytes(warps_per_strip);
  }
  __host__ __device__ static constexpr int Scales(int warps_per_strip) {
    return Partials(warps_per_strip) +
           (Traits::kSpreads ? kGemmWarps * Traits::kSlicesPerSpan * Traits::kOctets * kRunBytes
                             : 0);
  }
  // Scales of FP8 tokens: floats [slot][turn][token].
  __host__ __device__ static constexpr int TokenScales(int warps_per_strip) {
    return Scales(warps_per_strip) +
           (Traits::kSpreads ? kGemmWarps * Traits::kSlicesPerSpan * 8 : 0);
  }
  __host__ __device__ static constexpr int Bytes(int warps_per_strip) {
    return TokenScales(warps_per_strip) +
           (Traits::kFp8 ? Traits::kSlots * warps_per_strip * Traits::kTileTokens * 4 : 0);
  }
};

// What the warps do between two meetings at the end of a round: one span each.
template <typename Traits>
struct GemmRound {
  using XElement = std::conditional_t<Traits::kFp8, uint8_t, device::Bf16>;

  GemmTile tile;
  int32_t index = 0;                      // round of the tile
  const unsigned char* weight = nullptr;  // this lane's first 16 bytes of the warp's span
  int32_t num_stages = 0;                 // of the warp's span; 0: the warp has nothing to multiply
  int32_t num_runs = 0;                   // from there to the end of the strip
  int32_t most_stages = 0;                // of the spans of the warps that multiply together
  const XElement* row = nullptr;          // of x, that this thread copies; null: zeroes
  bool lost = false;                      // its source is out of range: NaN
  float scale[Traits::kSlicesPerSpan][2] = {};  // of the strip's first and last eight rows
};

}  // namespace jevons::cuda

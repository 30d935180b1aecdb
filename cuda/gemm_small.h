// The instances of a kernel that does more than a product of gemm_kernel.h: small tiles of tokens.
#pragma once

#include <cstdint>

#include "cuda/gemm_traits.h"

namespace jevons::cuda {

constexpr int32_t kMostSmallTokens = 64;

namespace internal {

template <WeightFormat kFormat, GemmAtom kAtom, typename Use>
void WithSmallTileOf(int32_t tile_tokens, const Use& use) {
  if (tile_tokens == 8) use(GemmTraits<kFormat, 8, kAtom>());
  if (tile_tokens == 32) use(GemmTraits<kFormat, 32, kAtom>());
  if (tile_tokens == kMostSmallTokens) use(GemmTraits<kFormat, kMostSmallTokens, kAtom>());
}

template <WeightFormat kFormat, typename Use>
void WithSmallTileOf(GemmAtom atom, int32_t tile_tokens, const Use& use) {
  if (atom == GemmAtom::kMmaSync) {
    WithSmallTileOf<kFormat, GemmAtom::kMmaSync>(tile_tokens, use);
  }
  if (atom == GemmAtom::kWgmma) WithSmallTileOf<kFormat, GemmAtom::kWgmma>(tile_tokens, use);
}

}  // namespace internal

// Calls `use` with the traits of a tile of 8, 32 or 64 tokens of bf16; not at all where there are none.
template <typename Use>
void WithSmallTile(WeightFormat format, GemmAtom atom, int32_t tile_tokens, const Use& use) {
  if (format == WeightFormat::kBf16) {
    internal::WithSmallTileOf<WeightFormat::kBf16>(atom, tile_tokens, use);
  }
  if (format == WeightFormat::kE4m3) {
    internal::WithSmallTileOf<WeightFormat::kE4m3>(atom, tile_tokens, use);
  }
}

// The same with tokens of FP8: kWgmmaFp8.
template <typename Use>
void WithSmallFp8Tile(int32_t tile_tokens, const Use& use) {
  internal::WithSmallTileOf<WeightFormat::kE4m3, GemmAtom::kWgmmaFp8>(tile_tokens, use);
}

}  // namespace jevons::cuda

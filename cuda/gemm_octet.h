// The instances of a kernel that does more than a product of gemm_kernel.h: small tiles of tokens.
#pragma once

#include <cstdint>

#include "cuda/gemm_traits.h"

namespace jevons::cuda {

constexpr int32_t kOctetTokens = 8;
constexpr int32_t kMostSmallTokens = 64;

namespace internal {

template <WeightFormat kFormat, int kTokens, typename Use>
void WithTile(GemmAtom atom, const Use& use) {
  if (atom == GemmAtom::kMmaSync) use(GemmTraits<kFormat, kTokens, GemmAtom::kMmaSync>());
  if (atom == GemmAtom::kWgmma) use(GemmTraits<kFormat, kTokens, GemmAtom::kWgmma>());
}

template <WeightFormat kFormat, typename Use>
void WithSmallTileOf(GemmAtom atom, int32_t tile_tokens, const Use& use) {
  if (tile_tokens == kOctetTokens) WithTile<kFormat, kOctetTokens>(atom, use);
  if (tile_tokens == 32) WithTile<kFormat, 32>(atom, use);
  if (tile_tokens == kMostSmallTokens) WithTile<kFormat, kMostSmallTokens>(atom, use);
}

}  // namespace internal

// Calls `use` with the traits of tiles of eight tokens of bf16.
template <typename Use>
void WithOctet(WeightFormat format, GemmAtom atom, const Use& use) {
  if (format == WeightFormat::kBf16) {
    internal::WithTile<WeightFormat::kBf16, kOctetTokens>(atom, use);
  }
  if (format == WeightFormat::kE4m3) {
    internal::WithTile<WeightFormat::kE4m3, kOctetTokens>(atom, use);
  }
}

// The same of tiles of 8, 32 and 64 tokens; no call where the plan has a larger one.
template <typename Use>
void WithSmallTile(WeightFormat format, GemmAtom atom, int32_t tile_tokens, const Use& use) {
  if (format == WeightFormat::kBf16) {
    internal::WithSmallTileOf<WeightFormat::kBf16>(atom, tile_tokens, use);
  }
  if (format == WeightFormat::kE4m3) {
    internal::WithSmallTileOf<WeightFormat::kE4m3>(atom, tile_tokens, use);
  }
}

}  // namespace jevons::cuda

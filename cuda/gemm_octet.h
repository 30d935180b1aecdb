// The instance of a kernel that does more than a product of gemm_kernel.h, for up to eight tokens.
#pragma once

#include <cstdint>

#include "cuda/gemm_traits.h"

namespace jevons::cuda {

constexpr int32_t kOctetTokens = 8;

namespace internal {

template <WeightFormat kFormat, typename Use>
void WithOctetOf(GemmAtom atom, const Use& use) {
  if (atom == GemmAtom::kMmaSync) use(GemmTraits<kFormat, kOctetTokens, GemmAtom::kMmaSync>());
  if (atom == GemmAtom::kWgmma) use(GemmTraits<kFormat, kOctetTokens, GemmAtom::kWgmma>());
}

}  // namespace internal

// Calls `use` with the traits of tiles of eight tokens of bf16.
template <typename Use>
void WithOctet(WeightFormat format, GemmAtom atom, const Use& use) {
  if (format == WeightFormat::kBf16) internal::WithOctetOf<WeightFormat::kBf16>(atom, use);
  if (format == WeightFormat::kE4m3) internal::WithOctetOf<WeightFormat::kE4m3>(atom, use);
}

}  // namespace jevons::cuda

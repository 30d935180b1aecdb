// The float types that rows come in.
#pragma once

#include <cstdint>

namespace jevons::cuda {

enum class Element : int32_t { kF32, kF16, kBF16 };

constexpr int ElementBytes(Element element) { return element == Element::kF32 ? 4 : 2; }

}  // namespace jevons::cuda

#include "ops/fp8_entry.h"

#include <algorithm>

#include "base/tensor_view.h"

namespace jevons {

void WriteFp8Entry(const float* values, const Fp8Entry& layout, uint8_t* entry) {
  std::memset(entry, 0, static_cast<size_t>(layout.bytes()));
  for (int32_t group = 0; group < layout.num_groups(); ++group) {
    const int32_t begin = group * kFp8Group;
    const int32_t end = std::min(layout.r, begin + kFp8Group);
    uint32_t largest = 0;
    for (int32_t i = begin; i < end; ++i) largest = std::max(largest, Fp8Magnitude(values[i]));
    const float scale = Fp8Scale(largest);
    std::memcpy(entry + layout.scales() + 4 * group, &scale, sizeof(scale));
    for (int32_t i = begin; i < end; ++i) entry[i] = ToFp8(values[i], scale);
  }
  for (int32_t i = 0; i < layout.p; ++i) {
    const uint16_t key = FloatToBf16(values[layout.r + i]);
    std::memcpy(entry + layout.keys() + 2 * i, &key, sizeof(key));
  }
}

void ReadFp8Entry(const uint8_t* entry, const Fp8Entry& layout, float* values) {
  for (int32_t i = 0; i < layout.r; ++i) {
    float scale = 0;
    std::memcpy(&scale, entry + layout.scales() + i / kFp8Group * 4, sizeof(scale));
    values[i] = FromFp8(entry[i], scale);
  }
  for (int32_t i = 0; i < layout.p; ++i) {
    uint16_t key = 0;
    std::memcpy(&key, entry + layout.keys() + 2 * i, sizeof(key));
    values[layout.r + i] = Bf16ToFloat(key);
  }
}

void RoundToFp8(const float* values, int64_t r, float* rounded) {
  for (int64_t begin = 0; begin < r; begin += kFp8Group) {
    const int64_t end = std::min(r, begin + kFp8Group);
    uint32_t largest = 0;
    for (int64_t i = begin; i < end; ++i) largest = std::max(largest, Fp8Magnitude(values[i]));
    const float scale = Fp8Scale(largest);
    for (int64_t i = begin; i < end; ++i) rounded[i] = FromFp8(ToFp8(values[i], scale), scale);
  }
}

}  // namespace jevons

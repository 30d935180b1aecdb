// Weights as the vector code reads them: panels of 32 outputs, in the order of the sum.
#pragma once

#include <memory>
#include <span>

#include "base/status.h"
#include "cpu/huge_buffer.h"
#include "cpu/thread_pool.h"
#include "ops/weight.h"

namespace jevons {

inline constexpr int64_t kPanelOutputs = 32;
// Inputs that share one factor of an f8 panel.
inline constexpr int64_t kF8ScaleInputs = 128;
// An f8_e4m3 byte with its bits moved to the places of f16 is the value divided by this; so the
// factors are kept multiplied by it. A power of two: the product of both is the same number.
inline constexpr float kF8ScaleUnit = 256;

enum class WeightFormat : uint8_t { kF32, kF16, kBF16, kF8 };

inline int64_t WeightElementBytes(WeightFormat format) {
  return format == WeightFormat::kF32 ? 4 : format == WeightFormat::kF8 ? 1 : 2;
}

// Group after group, panel after panel, and for each input k the 32 values of the panel:
//   f32, f16, f8  value j at place j
//   bf16          word j = 0 .. 15 holds value j in its low half and value j + 16 in its high half,
//                 so that a shift and a mask make floats
// Outputs past n are zero. An f8 panel has one factor for each 128 inputs, times kF8ScaleUnit.
class CpuWeight : public Weight {
 public:
  CpuWeight(int32_t num_groups, int64_t n, int64_t k, WeightUse use, ActivationPrecision input,
            WeightFormat format, HugeBuffer data, HugeBuffer scales)
      : Weight(num_groups, n, k, use, input),
        format_(format),
        data_(std::move(data)),
        scales_(std::move(scales)) {}

  int64_t bytes() const override { return data_.bytes() + scales_.bytes(); }

  WeightFormat format() const { return format_; }
  int64_t num_panels() const { return (n() + kPanelOutputs - 1) / kPanelOutputs; }
  int64_t group_bytes() const { return num_panels() * panel_bytes(); }
  int64_t group_scale_bytes() const {
    return format_ == WeightFormat::kF8 ? num_panels() * scales_per_panel() * 4 : 0;
  }
  int64_t panel_bytes() const { return k() * kPanelOutputs * WeightElementBytes(format_); }
  int64_t scales_per_panel() const { return (k() + kF8ScaleInputs - 1) / kF8ScaleInputs; }
  const uint8_t* group_data(int64_t group) const { return data_.data() + group * group_bytes(); }
  // kF8 only.
  const float* group_scales(int64_t group) const {
    return reinterpret_cast<const float*>(scales_.data()) +
           group * num_panels() * scales_per_panel();
  }

 private:
  WeightFormat format_;
  HugeBuffer data_;
  HugeBuffer scales_;
};

// `spec` has passed Validate. The stored type is kept, but these become f32: weights of parts that
// differ in type; f8 whose parts do not begin at multiples of 32 rows, or with a factor beyond
// 2^100. INVALID_ARGUMENT for NaN among f8 values; RESOURCE_EXHAUSTED without memory. Reads the
// parts once and holds no second copy.
absl::StatusOr<std::unique_ptr<Weight>> PackCpuWeight(const WeightSpec& spec, ThreadPool& pool);

// `groups` have passed Validate and are of CpuWeights.
absl::StatusOr<std::unique_ptr<Weight>> JoinCpuGroups(std::span<const PackedGroup> groups,
                                                      ThreadPool& pool);

}  // namespace jevons

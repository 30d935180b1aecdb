#include "ops/weight.h"

namespace jevons {

std::string_view ActivationPrecisionName(ActivationPrecision precision) {
  return precision == ActivationPrecision::kFp8 ? "fp8" : "exact";
}

bool IsAllFp8(const WeightSpec& spec) {
  for (const std::vector<WeightPart>& parts : spec.groups) {
    for (const WeightPart& part : parts) {
      if (part.data.dtype != DType::kF8E4M3) return false;
    }
  }
  return true;
}

}  // namespace jevons

// Random weights whose router sends every token to the same few experts.
#pragma once

#include <string_view>

#include "base/status.h"
#include "bench/random_checkpoint.h"

namespace jevons {

// For noaux_tc: biases make the first `num_wanted` experts the choice of all tokens; with 0 it is a
// RandomCheckpoint.
class SkewedCheckpoint : public RandomCheckpoint {
 public:
  SkewedCheckpoint(const ModelConfig& config, uint64_t seed, int32_t num_wanted)
      : RandomCheckpoint(config, seed), num_wanted_(num_wanted) {}

  absl::StatusOr<TensorView> Find(std::string_view name) const override {
    ASSIGN_OR_RETURN(TensorView out, RandomCheckpoint::Find(name));
    if (name.find("e_score_correction_bias") == std::string_view::npos) return out;
    for (int32_t e = 0; e < num_wanted_; ++e) out.ptr<uint16_t>()[e] = FloatToBf16(1000);
    return out;
  }

 private:
  const int32_t num_wanted_;
};

}  // namespace jevons

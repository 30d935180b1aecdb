// Loads of experts that follow a power law, and tokens that choose by them. Synthetic: for tests and
// for what is shown of the balance of ranks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "base/random.h"

namespace jevons {

// The experts in random order have 1, 2^-s, 3^-s, ... times the load of the first.
inline std::vector<double> PowerLawLoad(int32_t num_experts, double s, uint64_t seed) {
  std::vector<double> load;
  for (int32_t i = 0; i < num_experts; ++i) load.push_back(std::pow(i + 1.0, -s));
  Random random(seed);
  for (int64_t i = num_experts; i > 1; --i) std::swap(load[i - 1], load[random.Below(i)]);
  return load;
}

// Draws experts by weight, without repeating one within a token: so no expert has more than every
// token.
class ChoiceSampler {
 public:
  ChoiceSampler(std::span<const double> weight, uint64_t seed)
      : cu_weight_(weight.size()), random_(seed) {
    std::partial_sum(weight.begin(), weight.end(), cu_weight_.begin());
  }

  // As many distinct experts as topk_idx has places.
  void Draw(std::span<int32_t> topk_idx) {
    for (size_t k = 0; k < topk_idx.size(); ++k) {
      const auto chosen = topk_idx.first(k);
      do {
        const double at = random_.Uniform() * cu_weight_.back();
        topk_idx[k] = static_cast<int32_t>(
            std::upper_bound(cu_weight_.begin(), cu_weight_.end() - 1, at) - cu_weight_.begin());
      } while (std::find(chosen.begin(), chosen.end(), topk_idx[k]) != chosen.end());
    }
  }

 private:
  std::vector<double> cu_weight_;
  Random random_;
};

}  // namespace jevons

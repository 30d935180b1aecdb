// How much each expert is called, measured.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"

namespace jevons {

// Adds the choices of some tokens to counts [num_experts]. Ids are those that routing gave: below
// num_experts, -1 is none.
void CountExperts(std::span<const int32_t> topk_idx, std::span<int64_t> counts);

// What  load[l, e] = sum over past tokens of 2^(-age / half_life_tokens) * (1 if e was chosen)
// Units choices; the age of a token is the number of tokens, of all ranks, in the calls of Add that
//       came after its own
// Order plain arithmetic in a fixed order, no library function: ranks that add the same counts in
//       the same order hold the same bits, so each may plan by itself
//
// Thread-compatible.
class ExpertLoad {
 public:
  // INVALID_ARGUMENT unless all are at least 1.
  static absl::StatusOr<ExpertLoad> Create(int32_t num_layers, int32_t num_experts,
                                           int64_t half_life_tokens);

  // counts [num_layers, num_experts]: what num_tokens tokens chose, summed over the ranks.
  // INVALID_ARGUMENT for a wrong size or a negative number; then nothing has changed.
  absl::Status Add(std::span<const int64_t> counts, int64_t num_tokens);

  int32_t num_layers() const { return num_layers_; }
  int32_t num_experts() const { return num_experts_; }
  // [num_experts]; valid until the next Add.
  std::span<const double> of_layer(int32_t layer) const {
    return std::span(load_).subspan(int64_t{layer} * num_experts_, num_experts_);
  }
  // The sum of the weights of all past tokens: few say little.
  double tokens() const { return tokens_; }

 private:
  int32_t num_layers_ = 0;
  int32_t num_experts_ = 0;
  int64_t half_life_tokens_ = 1;
  double tokens_ = 0;
  std::vector<double> load_;
};

}  // namespace jevons

#include "parallel/expert_load.h"

#include <cmath>

#include "absl/strings/str_cat.h"

namespace jevons {
namespace {

// 2^(-tokens / half_life) from its series, to 1e-15: exp2 of two C libraries may differ in the last
// bit.
double DecayOf(int64_t tokens, int64_t half_life) {
  const int64_t halvings = tokens / half_life;
  if (halvings > 1100) return 0;  // below the smallest double
  const double rest = static_cast<double>(tokens % half_life) / static_cast<double>(half_life);
  const double x = -0.69314718055994531 * rest;
  double sum = 1;
  for (int32_t n = 18; n > 0; --n) sum = 1 + x * sum / n;
  return std::ldexp(sum, -static_cast<int>(halvings));
}

}  // namespace

void CountExperts(std::span<const int32_t> topk_idx, std::span<int64_t> counts) {
  for (const int32_t expert : topk_idx) {
    if (expert >= 0) ++counts[expert];
  }
}

absl::StatusOr<ExpertLoad> ExpertLoad::Create(int32_t num_layers, int32_t num_experts,
                                              int64_t half_life_tokens) {
  if (num_layers < 1 || num_experts < 1 || half_life_tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_layers, num_experts and half_life_tokens must be at least 1, got ",
                     num_layers, ", ", num_experts, " and ", half_life_tokens));
  }
  ExpertLoad out;
  out.num_layers_ = num_layers;
  out.num_experts_ = num_experts;
  out.half_life_tokens_ = half_life_tokens;
  out.load_.assign(static_cast<size_t>(num_layers) * static_cast<size_t>(num_experts), 0);
  return out;
}

absl::Status ExpertLoad::Add(std::span<const int64_t> counts, int64_t num_tokens) {
  if (counts.size() != load_.size()) {
    return absl::InvalidArgumentError(absl::StrCat("counts must have num_layers * num_experts = ",
                                                   load_.size(), " entries, got ", counts.size()));
  }
  if (num_tokens < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_tokens must be at least 0, got ", num_tokens));
  }
  for (size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] >= 0) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("counts must be at least 0, got ", counts[i], " for layer ",
                     static_cast<int64_t>(i) / num_experts_, ", expert ",
                     static_cast<int64_t>(i) % num_experts_));
  }
  const double decay = DecayOf(num_tokens, half_life_tokens_);
  for (size_t i = 0; i < counts.size(); ++i) {
    load_[i] = load_[i] * decay + static_cast<double>(counts[i]);
  }
  tokens_ = tokens_ * decay + static_cast<double>(num_tokens);
  return absl::OkStatus();
}

}  // namespace jevons

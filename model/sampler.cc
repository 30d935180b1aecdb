#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "base/random.h"

namespace jevons {
namespace {

struct Candidate {
  float logit = 0;
  int32_t id = 0;
  bool operator<(const Candidate& other) const {
    return logit != other.logit ? logit > other.logit : id < other.id;
  }
};

// `logits` with the bias added, or the logits themselves; `storage` keeps the copy.
std::span<const float> Biased(std::span<const float> logits, const SamplingParams& params,
                              std::vector<float>& storage) {
  if (params.logit_bias.empty()) return logits;
  storage.assign(logits.begin(), logits.end());
  for (const auto& [id, bias] : params.logit_bias) {
    if (id >= 0 && id < static_cast<int32_t>(storage.size())) storage[id] += bias;
  }
  return storage;
}

// The most likely candidates in falling order, at least until they hold `mass` of the whole and at
// least `count`.
std::vector<Candidate> TopCandidates(std::span<const float> logits, double max, double inv_t,
                                     double total, double mass, size_t count, double min_weight) {
  std::vector<Candidate> all(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) all[i] = {logits[i], static_cast<int32_t>(i)};
  size_t sorted = 0;
  double held = 0;
  for (size_t want = std::max<size_t>(64, count); sorted < all.size(); want *= 8) {
    const size_t end = std::min(want, all.size());
    std::partial_sort(all.begin() + sorted, all.begin() + end, all.end());
    for (; sorted < end; ++sorted) held += std::exp((all[sorted].logit - max) * inv_t);
    if (sorted >= count && held >= mass * total) break;
    if (std::exp((all[sorted - 1].logit - max) * inv_t) < min_weight) break;
  }
  all.resize(sorted);
  return all;
}

// How many of `sorted` survive top_k, top_p and min_p, applied in this order; each works on what
// the one before left.
size_t CountKept(const std::vector<Candidate>& sorted, const SamplingParams& params, double inv_t,
                 double total) {
  const double max = sorted[0].logit;
  const auto weight = [&](size_t i) { return std::exp((sorted[i].logit - max) * inv_t); };
  size_t kept = sorted.size();
  double kept_mass = total;
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < kept) {
    kept = static_cast<size_t>(params.top_k);
    kept_mass = 0;
    for (size_t i = 0; i < kept; ++i) kept_mass += weight(i);
  }
  if (params.top_p < 1) {
    double held = 0;
    size_t n = 0;
    while (n < kept && held < params.top_p * kept_mass) held += weight(n++);
    kept = std::max<size_t>(n, 1);
  }
  while (kept > 1 && weight(kept - 1) < params.min_p) --kept;
  return kept;
}

}  // namespace

absl::Status NotFinite(int64_t token_idx) {
  return absl::InternalError(
      absl::StrCat("the model's logits for new token ", token_idx, " are not finite"));
}

absl::StatusOr<int32_t> SampleToken(std::span<const float> logits, int32_t num_valid,
                                    const SamplingParams& params, int64_t token_idx) {
  std::vector<float> storage;
  const std::span<const float> row =
      Biased(logits.first(std::min<size_t>(logits.size(), num_valid)), params, storage);
  int32_t best = 0;
  bool nan = row.empty();
  for (size_t i = 0; i < row.size(); ++i) {
    nan |= std::isnan(row[i]);
    if (row[i] > row[best]) best = static_cast<int32_t>(i);
  }
  if (nan || !std::isfinite(row[best])) {
    return NotFinite(token_idx);
  }
  if (params.temperature <= 0) return best;

  const double max = row[best];
  const double inv_t = 1.0 / params.temperature;
  double total = 0;
  for (float logit : row) total += std::exp((logit - max) * inv_t);
  double u = RandomUniform(params.seed, static_cast<uint64_t>(token_idx));
  const bool filtered = params.top_k > 0 || params.top_p < 1 || params.min_p > 0;
  if (!filtered) {
    double held = 0;
    for (size_t i = 0; i < row.size(); ++i) {
      held += std::exp((row[i] - max) * inv_t);
      if (held > u * total) return static_cast<int32_t>(i);
    }
    return best;  // rounding left u at the very end
  }
  const size_t count = params.top_k > 0 ? static_cast<size_t>(params.top_k) : 1;
  const double mass = params.top_k > 0 ? 0.0 : params.top_p < 1 ? params.top_p : 1.0;
  const std::vector<Candidate> sorted =
      TopCandidates(row, max, inv_t, total, mass, count, params.top_k > 0 ? 0.0 : params.min_p);
  const size_t kept = CountKept(sorted, params, inv_t, total);
  double kept_total = 0;
  for (size_t i = 0; i < kept; ++i) kept_total += std::exp((sorted[i].logit - max) * inv_t);
  double held = 0;
  for (size_t i = 0; i < kept; ++i) {
    held += std::exp((sorted[i].logit - max) * inv_t);
    if (held > u * kept_total) return sorted[i].id;
  }
  return best;
}

Logprobs ComputeLogprobs(std::span<const float> logits, int32_t id, int32_t num_top) {
  float max = -std::numeric_limits<float>::infinity();
  for (float logit : logits) max = std::max(max, logit);
  double total = 0;
  for (float logit : logits) total += std::exp(static_cast<double>(logit) - max);
  const double log_total = max + std::log(total);
  const auto logprob = [&](float logit) { return static_cast<float>(logit - log_total); };
  Logprobs out;
  out.chosen = {.id = id, .logprob = logprob(logits[id])};
  if (num_top <= 0) return out;
  std::vector<Candidate> all(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) all[i] = {logits[i], static_cast<int32_t>(i)};
  const size_t n = std::min<size_t>(num_top, all.size());
  std::partial_sort(all.begin(), all.begin() + n, all.end());
  for (size_t i = 0; i < n; ++i) {
    out.top.push_back({.id = all[i].id, .logprob = logprob(all[i].logit)});
  }
  return out;
}

}  // namespace jevons

#include "cpu/reference_sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace jevons::reference {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

const SampleRow& RowOf(const SampleTokensArgs& args, int64_t r) {
  return *reinterpret_cast<const SampleRow*>(args.rows.row<uint8_t>(r));
}

std::vector<float> PlainLogits(const SampleTokensArgs& args, int64_t r) {
  const float* logits = args.logits.row<float>(r);
  return std::vector<float>(logits, logits + args.num_valid);
}

// fn(logit, entry) for the entries of row r that have a valid id.
template <typename Fn>
void ForEachEntry(const SampleList& list, int64_t r, std::vector<float>& logits, const Fn& fn) {
  if (!list.ids.present()) return;
  for (int32_t i = list.cu.ptr<int32_t>()[r]; i < list.cu.ptr<int32_t>()[r + 1]; ++i) {
    const int32_t id = list.ids.ptr<int32_t>()[i];
    if (id >= 0 && id < static_cast<int32_t>(logits.size())) fn(logits[id], i);
  }
}

std::vector<float> AdjustedLogits(const SampleTokensArgs& args, int64_t r) {
  const SampleRow& row = RowOf(args, r);
  std::vector<float> logits = PlainLogits(args, r);
  ForEachEntry(args.counts, r, logits, [&](float& logit, int32_t i) {
    logit = PenalizedLogit(logit, row, args.counts.values.ptr<int32_t>()[i]);
  });
  ForEachEntry(args.bias, r, logits,
               [&](float& logit, int32_t i) { logit += args.bias.values.ptr<float>()[i]; });
  if (!args.masks.present() || row.mask_row < 0 || row.mask_row >= args.masks.dim(0)) return logits;
  const int32_t* mask = args.masks.row<int32_t>(row.mask_row);
  for (size_t i = 0; i < logits.size(); ++i) {
    if ((static_cast<uint32_t>(mask[i / 32]) >> i % 32 & 1) == 0) logits[i] = -kInf;
  }
  return logits;
}

// Largest first, equal ones by lower id.
std::vector<int32_t> FallingIds(const std::vector<float>& logits) {
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  return ids;
}

bool HasNanOrInf(const std::vector<float>& logits) {
  return std::any_of(logits.begin(), logits.end(), [](float x) { return !(x < kInf); });
}

size_t CountKept(const std::vector<double>& weights, const SampleRow& row) {
  size_t kept = weights.size();
  if (row.top_k > 0) kept = std::min(kept, static_cast<size_t>(row.top_k));
  if (row.top_p < 1) {
    const double mass = std::accumulate(weights.begin(), weights.begin() + kept, 0.0);
    double held = 0;
    size_t n = 0;
    while (n < kept && held < row.top_p * mass) held += weights[n++];
    kept = n;
  }
  while (kept > 1 && weights[kept - 1] < row.min_p) --kept;
  return kept;
}

double LogTotal(const std::vector<float>& logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double total = 0;
  for (float logit : logits) total += std::exp(logit - largest);
  return largest + std::log(total);
}

int32_t Draw(const SampleTokensArgs& args, int64_t r) {
  const SampleRow& row = RowOf(args, r);
  const std::vector<int32_t> kept = SampleKeptIds(args, r);
  if (kept.empty()) return -1;
  if (row.temperature == 0) return kept[0];
  const std::vector<float> logits = AdjustedLogits(args, r);
  double best = -kInf;
  int32_t token = -1;
  for (int32_t id : kept) {
    const uint32_t word = DrawWords(row.seed, row.token_idx, id / 4, false).word[id % 4];
    const uint32_t fine = FineWord(row.seed, row.token_idx, id);
    const double sum = (static_cast<double>(logits[id]) - logits[kept[0]]) / row.temperature -
                       std::log(Exponential<double>(word, fine));
    if (token >= 0 && (sum < best || (sum == best && id > token))) continue;
    best = sum;
    token = id;
  }
  return token;
}

int32_t Score(const SampleTokensArgs& args, int64_t r) {
  const int32_t id = RowOf(args, r).score_id;
  if (id < 0 || id >= args.num_valid) return -1;
  const std::vector<float> logits = PlainLogits(args, r);
  const bool lost = HasNanOrInf(logits) || *std::max_element(logits.begin(), logits.end()) == -kInf;
  return lost ? -1 : id;
}

void SampleOne(const SampleTokensArgs& args, int64_t r) {
  const SampleRow& row = RowOf(args, r);
  const int32_t token = row.mode == SampleMode::kScore ? Score(args, r) : Draw(args, r);
  args.token.ptr<int32_t>()[r] = token;
  args.logprob.ptr<float>()[r] = kNan;
  if (token < 0) return;
  const std::vector<float> logits = PlainLogits(args, r);
  const double log_total = LogTotal(logits);
  args.logprob.ptr<float>()[r] = static_cast<float>(logits[token] - log_total);
  if (row.num_top <= 0 || !args.top_ids.present()) return;
  const std::vector<int32_t> order = FallingIds(logits);
  const int64_t num_top = std::min(int64_t{row.num_top}, args.top_ids.dim(1));
  for (int64_t j = 0; j < num_top; ++j) {
    const bool there = j < args.num_valid && logits[order[j]] > -kInf;
    args.top_ids.row<int32_t>(r)[j] = there ? order[j] : -1;
    args.top_logprobs.row<float>(r)[j] =
        there ? static_cast<float>(logits[order[j]] - log_total) : kNan;
  }
}

}  // namespace

std::vector<int32_t> SampleKeptIds(const SampleTokensArgs& args, int64_t r) {
  const SampleRow& row = RowOf(args, r);
  if (args.num_valid <= 0 || HasNanOrInf(PlainLogits(args, r))) return {};
  const std::vector<float> logits = AdjustedLogits(args, r);
  std::vector<int32_t> ids = FallingIds(logits);
  while (!ids.empty() && logits[ids.back()] == -kInf) ids.pop_back();
  if (ids.empty() || HasNanOrInf(logits)) return {};
  if (row.temperature == 0) return {ids[0]};
  std::vector<double> weights;
  for (int32_t id : ids) {
    weights.push_back(
        std::exp((static_cast<double>(logits[id]) - logits[ids[0]]) / row.temperature));
  }
  ids.resize(CountKept(weights, row));
  return ids;
}

void SampleTokens(const SampleTokensArgs& args) {
  for (int64_t r = 0; r < args.logits.dim(0); ++r) {
    if (RowOf(args, r).mode != SampleMode::kSkip) SampleOne(args, r);
  }
}

}  // namespace jevons::reference

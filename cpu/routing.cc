#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "cpu/rows.h"

namespace jevons::fast {
namespace {

constexpr double kMinusInf = -std::numeric_limits<double>::infinity();
// Tokens of one task; a token costs about a microsecond.
constexpr int64_t kTaskTokens = 16;

// Scores are kept in fp64: a weight of e^-17 would lose the tolerance in the fp32 difference to the
// largest logit. It also gives every instruction set the same choices.
struct RouteScratch {
  std::vector<double> score;
  std::vector<double> choice;
  std::vector<double> rating;
  std::vector<int32_t> kept_groups;
};

void Softmax(const float* logits, int64_t n, double* out) {
  const double largest = *std::max_element(logits, logits + n);
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    out[i] = std::exp(logits[i] - largest);
    sum += out[i];
  }
  for (int64_t i = 0; i < n; ++i) out[i] /= sum;
}

void Sigmoid(const float* logits, int64_t n, double* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = 1 / (1 + std::exp(-static_cast<double>(logits[i])));
}

double RateGroup(GroupScore how, const double* choice, int64_t size) {
  double first = kMinusInf;
  double second = kMinusInf;
  for (int64_t i = 0; i < size; ++i) {
    second = std::max(second, std::min(first, choice[i]));
    first = std::max(first, choice[i]);
  }
  return how == GroupScore::kTop2Sum ? first + second : first;
}

// Indices of the `count` largest values in falling order, equal ones by lower index.
void LargestFirst(const double* values, int64_t n, int64_t count, int32_t* out) {
  int64_t filled = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (filled == count && !(values[i] > values[out[count - 1]])) continue;
    int64_t at = filled < count ? filled++ : count - 1;
    for (; at > 0 && values[i] > values[out[at - 1]]; --at) out[at] = out[at - 1];
    out[at] = static_cast<int32_t>(i);
  }
}

void DropGroups(const RouteTopKArgs& args, RouteScratch& s) {
  const int64_t size = static_cast<int64_t>(s.choice.size()) / args.n_group;
  s.rating.resize(args.n_group);
  s.kept_groups.resize(args.topk_group);
  for (int64_t g = 0; g < args.n_group; ++g) {
    s.rating[g] = RateGroup(args.group_score, s.choice.data() + g * size, size);
  }
  LargestFirst(s.rating.data(), args.n_group, args.topk_group, s.kept_groups.data());
  for (int64_t g = 0; g < args.n_group; ++g) {
    const auto& kept = s.kept_groups;
    if (std::find(kept.begin(), kept.end(), g) != kept.end()) continue;
    std::fill_n(s.choice.begin() + g * size, size, kMinusInf);
  }
}

void RouteRow(const RouteTopKArgs& args, int64_t t, RouteScratch& s) {
  const int64_t n = args.logits.dim(1);
  const int64_t top_k = args.topk_idx.dim(1) - args.num_fixed;
  int32_t* ids = args.topk_idx.row<int32_t>(t);
  float* weights = args.topk_weights.row<float>(t);
  if (args.num_rows.present() && t >= args.num_rows.ptr<int32_t>()[0]) {
    std::fill_n(ids, args.topk_idx.dim(1), -1);
    std::fill_n(weights, args.topk_idx.dim(1), 0.0f);
    return;
  }
  std::iota(ids + top_k, ids + top_k + args.num_fixed, static_cast<int32_t>(args.logits.dim(1)));
  std::fill_n(weights + top_k, args.num_fixed, 1.0f);
  s.score.resize(n);
  const auto score = args.scoring == RouterScoring::kSoftmax ? Softmax : Sigmoid;
  score(args.logits.row<float>(t), n, s.score.data());
  s.choice = s.score;
  bool has_nan = false;
  for (int64_t e = 0; e < n; ++e) {
    if (args.bias.present()) s.choice[e] += args.bias.ptr<float>()[e];
    has_nan |= std::isnan(s.choice[e]);
  }
  if (has_nan) {
    std::iota(ids, ids + top_k, 0);
    std::fill_n(weights, top_k, std::numeric_limits<float>::quiet_NaN());
    return;
  }
  if (args.n_group > 1) DropGroups(args, s);
  LargestFirst(s.choice.data(), n, top_k, ids);
  double sum = 0;
  for (int64_t j = 0; j < top_k; ++j) sum += s.score[ids[j]];
  const double factor = args.normalize ? args.scale / (sum + 1e-20) : args.scale;
  for (int64_t j = 0; j < top_k; ++j) weights[j] = static_cast<float>(s.score[ids[j]] * factor);
}

}  // namespace

void RouteTopK(const RouteTopKArgs& args, ThreadPool& pool) {
  const int64_t num_tokens = args.logits.dim(0);
  pool.ParallelFor((num_tokens + kTaskTokens - 1) / kTaskTokens, [&](int64_t task, int) {
    thread_local RouteScratch scratch;
    const int64_t end = std::min(num_tokens, (task + 1) * kTaskTokens);
    for (int64_t t = task * kTaskTokens; t < end; ++t) RouteRow(args, t, scratch);
  });
}

// A counting sort by expert. Too small to share among threads.
void ExpertDispatch(const ExpertDispatchArgs& args, ThreadPool&) {
  const int64_t top_k = args.topk_idx.dim(1);
  const int64_t num_choices = args.topk_idx.dim(0) * top_k;
  const int64_t num_experts = args.plan.cu_rows.dim(0) - 1;
  const int32_t* topk_idx = args.topk_idx.ptr<int32_t>();
  int32_t* cu_rows = args.plan.cu_rows.ptr<int32_t>();
  int32_t* row_token = args.plan.row_token.ptr<int32_t>();
  int32_t* token_row = args.plan.token_row.ptr<int32_t>();

  // Entry e + 1 first counts expert e's rows, then is where its next row goes, and so ends as e +
  // 1's first row.
  std::fill_n(cu_rows, num_experts + 1, 0);
  for (int64_t i = 0; i < num_choices; ++i) {
    if (topk_idx[i] >= 0) ++cu_rows[topk_idx[i] + 1];
  }
  int32_t begin = 0;
  for (int64_t e = 0; e < num_experts; ++e) {
    const int32_t count = cu_rows[e + 1];
    cu_rows[e + 1] = begin;
    begin += count;
  }
  for (int64_t i = 0; i < num_choices; ++i) {
    if (topk_idx[i] < 0) {
      token_row[i] = -1;
      continue;
    }
    const int32_t row = cu_rows[topk_idx[i] + 1]++;
    row_token[row] = static_cast<int32_t>(i / top_k);
    token_row[i] = row;
  }
}

}  // namespace jevons::fast

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "cpu/reference_ops.h"

namespace jevons::reference {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

std::vector<double> Scores(const RouteTopKArgs& args, int64_t t) {
  const int64_t n = args.logits.dim(1);
  const float* logits = args.logits.row<float>(t);
  std::vector<double> s(logits, logits + n);
  if (args.scoring == RouterScoring::kSigmoid) {
    for (double& v : s) v = 1 / (1 + std::exp(-v));
    return s;
  }
  const double largest = *std::max_element(s.begin(), s.end());
  double sum = 0;
  for (double& v : s) {
    v = std::exp(v - largest);
    sum += v;
  }
  for (double& v : s) v /= sum;
  return s;
}

// Indices of `values`, largest first, equal ones by lower index.
std::vector<int32_t> FallingOrder(const std::vector<double>& values) {
  std::vector<int32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return values[a] > values[b]; });
  return order;
}

double RateGroup(GroupScore how, std::vector<double> members) {
  std::sort(members.begin(), members.end(), std::greater<>());
  return how == GroupScore::kTop2Sum ? members[0] + members[1] : members[0];
}

void MaskGroups(const RouteTopKArgs& args, std::vector<double>& choice) {
  const int64_t size = static_cast<int64_t>(choice.size()) / args.n_group;
  std::vector<double> rating;
  for (int64_t g = 0; g < args.n_group; ++g) {
    const auto begin = choice.begin() + g * size;
    rating.push_back(RateGroup(args.group_score, std::vector<double>(begin, begin + size)));
  }
  const std::vector<int32_t> order = FallingOrder(rating);
  for (int64_t i = args.topk_group; i < args.n_group; ++i) {
    std::fill_n(choice.begin() + order[i] * size, size, -kInf);
  }
}

std::vector<int32_t> Choose(const RouteTopKArgs& args, const std::vector<double>& choice) {
  std::vector<double> masked = choice;
  if (args.n_group > 1) MaskGroups(args, masked);
  return FallingOrder(masked);
}

void RouteRow(const RouteTopKArgs& args, int64_t t) {
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
  const std::vector<double> s = Scores(args, t);
  std::vector<double> choice = s;
  for (size_t e = 0; e < s.size() && args.bias.present(); ++e)
    choice[e] += args.bias.ptr<float>()[e];
  if (std::any_of(choice.begin(), choice.end(), [](double c) { return std::isnan(c); })) {
    std::iota(ids, ids + top_k, 0);
    std::fill_n(weights, top_k, std::numeric_limits<float>::quiet_NaN());
    return;
  }
  const std::vector<int32_t> order = Choose(args, choice);
  double sum = 0;
  for (int64_t j = 0; j < top_k; ++j) sum += s[order[j]];
  for (int64_t j = 0; j < top_k; ++j) {
    const double share = args.normalize ? s[order[j]] / (sum + 1e-20) : s[order[j]];
    ids[j] = order[j];
    weights[j] = static_cast<float>(share * args.scale);
  }
}

}  // namespace

void RouteTopK(const RouteTopKArgs& args) {
  for (int64_t t = 0; t < args.logits.dim(0); ++t) RouteRow(args, t);
}

void ExpertDispatch(const ExpertDispatchArgs& args) {
  const int64_t num_tokens = args.topk_idx.dim(0);
  const int64_t top_k = args.topk_idx.dim(1);
  const int64_t num_experts = args.plan.cu_rows.dim(0) - 1;
  const int32_t* topk_idx = args.topk_idx.ptr<int32_t>();
  int32_t* cu_rows = args.plan.cu_rows.ptr<int32_t>();
  std::fill_n(args.plan.token_row.ptr<int32_t>(), num_tokens * top_k, -1);
  int32_t row = 0;
  cu_rows[0] = 0;
  for (int64_t e = 0; e < num_experts; ++e) {
    for (int64_t i = 0; i < num_tokens * top_k; ++i) {
      if (topk_idx[i] != e) continue;
      args.plan.row_token.ptr<int32_t>()[row] = static_cast<int32_t>(i / top_k);
      args.plan.token_row.ptr<int32_t>()[i] = row++;
    }
    cu_rows[e + 1] = row;
  }
}

void ExpertCombine(const ExpertCombineArgs& args) {
  const int64_t top_k = args.topk_weights.dim(1);
  for (int64_t t = 0; t < args.out.dim(0); ++t) {
    for (int64_t i = 0; i < args.out.dim(1); ++i) {
      double sum = 0;
      for (int64_t j = 0; j < top_k; ++j) {
        const int32_t row = args.plan.token_row.row<int32_t>(t)[j];
        if (row < 0) continue;
        sum += static_cast<double>(args.topk_weights.row<float>(t)[j]) *
               args.expert_out.row<float>(row)[i];
      }
      if (args.shared.present()) sum += args.shared.row<float>(t)[i];
      args.out.row<float>(t)[i] = static_cast<float>(sum);
    }
  }
}

void RankDispatch(const RankDispatchArgs& args) {
  const int64_t num_tokens = args.topk_idx.dim(0);
  const int64_t top_k = args.topk_idx.dim(1);
  const int64_t per_row = std::min<int64_t>(top_k, args.slots_per_rank);
  const auto slot_of = [&](int64_t t, int64_t j) {
    const int32_t expert = args.topk_idx.row<int32_t>(t)[j];
    return expert < 0 ? -1 : args.slot_table.row<int32_t>(expert)[t % args.slot_table.dim(1)];
  };
  const auto fill = [](const TensorView& view) {
    std::fill_n(view.ptr<int32_t>(), view.num_elements(), -1);
  };
  fill(args.plan.return_row);
  if (args.capacity > 0) {
    fill(args.plan.send_token);
    fill(args.plan.send_slots);
  }
  const int64_t num_counted = args.choice_counts.present() ? args.choice_counts.dim(0) : 0;
  int32_t next_row = 0;
  int32_t next_result = 0;
  for (int32_t r = 0; r < args.num_ranks; ++r) {
    if (args.capacity > 0) next_row = r * args.capacity;
    const int32_t first_row = next_row;
    int32_t num_choices = 0;
    for (int64_t t = 0; t < num_tokens; ++t) {
      std::vector<int32_t> slots(top_k, -1);
      int32_t in_row = 0;
      for (int64_t j = 0; j < top_k; ++j) {
        if (slot_of(t, j) < 0 || slot_of(t, j) / args.slots_per_rank != r) continue;
        slots[j] = slot_of(t, j) % args.slots_per_rank;
        const int64_t masked = next_row * per_row + in_row;
        args.plan.return_row.row<int32_t>(t)[j] =
            args.capacity > 0 ? static_cast<int32_t>(masked) : next_result + num_choices;
        ++in_row;
        ++num_choices;
        const int32_t expert = args.topk_idx.row<int32_t>(t)[j];
        if (expert < num_counted) ++args.choice_counts.ptr<int64_t>()[expert];
      }
      if (in_row == 0) continue;
      args.plan.send_token.ptr<int32_t>()[next_row] = static_cast<int32_t>(t);
      std::copy(slots.begin(), slots.end(), args.plan.send_slots.row<int32_t>(next_row));
      ++next_row;
    }
    args.plan.counts.row<int32_t>(r)[0] = next_row - first_row;
    args.plan.counts.row<int32_t>(r)[1] = num_choices;
    next_result += num_choices;
  }
}

void ReturnRows(const ReturnRowsArgs& args) {
  std::vector<int32_t> rows;
  for (int64_t i = 0; i < args.token_row.dim(0); ++i) {
    for (int64_t j = 0; j < args.token_row.dim(1); ++j) {
      const int32_t row = args.token_row.row<int32_t>(i)[j];
      if (row >= 0) rows.push_back(row);
    }
    if (args.masked) rows.resize((i + 1) * args.row_idx.dim(0) / args.token_row.dim(0), -1);
  }
  std::copy(rows.begin(), rows.end(), args.row_idx.ptr<int32_t>());
}

void PackRows(const PackRowsArgs& args) {
  const Fp8Entry layout = {static_cast<int32_t>(args.x.dim(1)), 0};
  const std::vector<float> none(static_cast<size_t>(layout.r));
  for (int64_t i = 0; i < args.out.dim(0); ++i) {
    const int32_t token = args.row_idx.ptr<int32_t>()[i];
    WriteFp8Entry(token < 0 ? none.data() : args.x.row<float>(token), layout,
                  args.out.row<uint8_t>(i));
  }
}

void UnpackRows(const UnpackRowsArgs& args) {
  const Fp8Entry layout = {static_cast<int32_t>(args.out.dim(1)), 0};
  for (int64_t i = 0; i < args.out.dim(0); ++i) {
    ReadFp8Entry(args.x.row<uint8_t>(i), layout, args.out.row<float>(i));
  }
}

}  // namespace jevons::reference

#include "model/expert_parallel.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"

namespace jevons {
namespace {

// Columns of a slot table: tokens take turns in them, so replicas share as evenly as this allows.
constexpr int64_t kSlotTableWidth = 64;

// Every rank has the shared experts that are grouped in its own last slots.
std::vector<int32_t> SlotTable(const ExpertMap& map, int32_t rank, int32_t num_slots) {
  std::vector<int32_t> out;
  for (int32_t e = 0; e < map.num_experts(); ++e) {
    for (int64_t i = 0; i < kSlotTableWidth; ++i) {
      const int32_t slot = map.SlotFor(e, rank, i);
      out.push_back(slot / map.slots_per_rank() * num_slots + slot % map.slots_per_rank());
    }
  }
  for (int32_t slot = map.slots_per_rank(); slot < num_slots; ++slot) {
    out.insert(out.end(), kSlotTableWidth, rank * num_slots + slot);
  }
  return out;
}

int64_t Sum(const std::vector<int64_t>& values) {
  return std::accumulate(values.begin(), values.end(), int64_t{0});
}

void Fill(std::vector<int64_t>& values, int64_t value) {
  std::fill(values.begin(), values.end(), value);
}

}  // namespace

absl::StatusOr<std::vector<ExpertMap>> EvenMaps(const ModelConfig& config, int32_t num_ranks,
                                                int32_t num_redundant) {
  if (config.n_routed_experts == 0) return std::vector<ExpertMap>();
  const int32_t wanted = config.n_routed_experts + num_redundant;
  ASSIGN_OR_RETURN(const ExpertMap map, ExpertMap::Even(config.n_routed_experts, num_ranks,
                                                        (wanted + num_ranks - 1) / num_ranks));
  return std::vector<ExpertMap>(config.num_hidden_layers, map);
}

std::vector<int32_t> FilledSlots(std::span<const int32_t> slot_expert) {
  std::vector<int32_t> out(slot_expert.begin(), slot_expert.end());
  std::replace(out.begin(), out.end(), -1, 0);
  return out;
}

absl::StatusOr<std::unique_ptr<ExpertParallel>> ExpertParallel::Create(
    const ModelConfig& config, const RankGroup& group, const ModelRunnerOptions& options,
    Backend* backend, Workspace* work) {
  const int32_t grouped = NumGroupedSharedExperts(config, backend->traits());
  const int32_t num_slots = options.slots_per_rank + grouped;
  auto out =
      std::unique_ptr<ExpertParallel>(new ExpertParallel(group, options, num_slots, backend, work));
  const int32_t rank = group.communicator->info().rank;
  for (const ExpertMap& map : group.maps) {
    if (map.slots_per_rank() != options.slots_per_rank || map.num_ranks() != options.num_ranks) {
      return absl::InvalidArgumentError(absl::StrCat(
          "an expert map must have ", options.num_ranks, " ranks with ", options.slots_per_rank,
          " slots each, given ", map.num_ranks(), " with ", map.slots_per_rank()));
    }
    std::vector<int32_t> table = SlotTable(map, rank, num_slots);
    ASSIGN_OR_RETURN(DeviceTensor uploaded,
                     backend->Upload(TensorView(table.data(), DType::kI32,
                                                {map.num_experts() + grouped, kSlotTableWidth})));
    out->slot_tables_.push_back(std::move(uploaded));
  }
  const size_t n = static_cast<size_t>(options.num_ranks);
  for (std::vector<int64_t>* values :
       {&out->amounts_.rows_out, &out->amounts_.rows_in, &out->amounts_.choices_out,
        &out->amounts_.choices_in, &out->out_bytes_, &out->out_offsets_, &out->in_bytes_,
        &out->in_offsets_}) {
    values->resize(n);
  }
  out->host_counts_.resize(4 * n);
  out->taken_counts_.resize(int64_t{config.num_hidden_layers} * config.n_routed_experts);
  out->new_counts_ = out->taken_counts_;
  ASSIGN_OR_RETURN(out->choice_counts_, backend->Upload(TensorView(
                                            out->taken_counts_.data(), DType::kI64,
                                            {config.num_hidden_layers, config.n_routed_experts})));
  return out;
}

absl::Status ExpertParallel::BeginStep(int64_t num_tokens) {
  masked_ = false;
  if (options_.masked_capacity == 0) return absl::OkStatus();
  RETURN_IF_ERROR(group_.communicator->AllReduce(std::span(&num_tokens, 1), ReduceOp::kMax));
  masked_ = num_tokens <= options_.masked_capacity;
  return absl::OkStatus();
}

absl::Status ExpertParallel::SetMap(int32_t layer_idx, const ExpertMap& map) {
  std::vector<int32_t> table = SlotTable(map, group_.communicator->info().rank, num_slots_);
  const TensorView& device = slot_tables_[layer_idx].view;
  return backend_->Write(device,
                         TensorView(table.data(), DType::kI32, {device.dim(0), device.dim(1)}));
}

absl::StatusOr<std::span<const int64_t>> ExpertParallel::TakeChoiceCounts() {
  // Read alone would wait without end for a rank that is gone.
  RETURN_IF_ERROR(group_.communicator->Wait());
  const TensorView& counts = choice_counts_.view;
  RETURN_IF_ERROR(backend_->Read(
      TensorView(new_counts_.data(), DType::kI64, {counts.dim(0), counts.dim(1)}), counts));
  for (size_t i = 0; i < new_counts_.size(); ++i) {
    const int64_t before = std::exchange(taken_counts_[i], new_counts_[i]);
    new_counts_[i] -= before;
  }
  return std::span<const int64_t>(new_counts_);
}

absl::Status ExpertParallel::Run(int32_t layer_idx, const MlpWeights& experts,
                                 const RoutedTokens& tokens) {
  const int64_t num_tokens = tokens.topk_idx.dim(0);
  const int64_t top_k = tokens.topk_idx.dim(1);
  const int64_t capacity = masked_ ? options_.masked_capacity : 0;
  const int64_t num_send =
      masked_ ? num_ranks() * capacity : num_tokens * std::min(top_k, num_ranks());
  const ExchangePlan plan = {.counts = work_.counts.view.Slice(0, num_ranks()),
                             .send_token = work_.send_token.view.Slice(0, num_send),
                             .send_slots = work_.send_slots.view.Slice(0, num_send),
                             .return_row = work_.return_row.view.Slice(0, num_tokens)};
  const TensorView& counts = choice_counts_.view;
  RETURN_IF_ERROR(
      backend_->RankDispatch({.topk_idx = tokens.topk_idx,
                              .slot_table = slot_tables_[layer_idx].view,
                              .num_ranks = options_.num_ranks,
                              .slots_per_rank = num_slots_,
                              .capacity = static_cast<int32_t>(capacity),
                              .plan = plan,
                              .choice_counts = TensorView(counts.row<int64_t>(layer_idx),
                                                          counts.dtype, {counts.dim(1)})}));
  ASSIGN_OR_RETURN(const Received received, Send(plan, tokens.x));
  RETURN_IF_ERROR(RunExperts(experts, received));
  const TensorView returned = work_.returned.view.Slice(0, Sum(amounts_.choices_out));
  RETURN_IF_ERROR(
      Exchange("results", work_.results.view, amounts_.choices_in, returned, amounts_.choices_out));
  return backend_->ExpertCombine(
      {.expert_out = returned,
       .plan = {.cu_rows = {}, .row_token = {}, .token_row = plan.return_row},
       .topk_weights = tokens.topk_weights,
       .shared = tokens.shared,
       .out = tokens.out});
}

absl::StatusOr<ExpertParallel::Received> ExpertParallel::Send(const ExchangePlan& plan,
                                                              const TensorView& x) {
  if (masked_) {
    const int64_t per_row = std::min<int64_t>(plan.return_row.dim(1), num_slots_);
    Fill(amounts_.rows_out, options_.masked_capacity);
    Fill(amounts_.rows_in, options_.masked_capacity);
    Fill(amounts_.choices_out, options_.masked_capacity * per_row);
    Fill(amounts_.choices_in, options_.masked_capacity * per_row);
  } else {
    RETURN_IF_ERROR(ExchangeCounts());
  }
  const int64_t num_send = Sum(amounts_.rows_out);
  const TensorView send_x = work_.send_x.view.Slice(0, num_send);
  RETURN_IF_ERROR(
      backend_->GatherRows({.x = x, .row_idx = plan.send_token.Slice(0, num_send), .out = send_x}));
  RETURN_IF_ERROR(
      Exchange("tokens", send_x, amounts_.rows_out, work_.recv_x.view, amounts_.rows_in));
  RETURN_IF_ERROR(Exchange("choices", plan.send_slots, amounts_.rows_out, work_.recv_slots.view,
                           amounts_.rows_in));
  return Received{Sum(amounts_.rows_in), Sum(amounts_.choices_in)};
}

absl::Status ExpertParallel::ExchangeCounts() {
  const std::vector<int64_t> one(static_cast<size_t>(num_ranks()), 1);
  const TensorView all = work_.counts.view;
  RETURN_IF_ERROR(
      Exchange("counts", all.Slice(0, num_ranks()), one, all.Slice(num_ranks(), num_ranks()), one));
  // Read alone would wait without end for a rank that is gone.
  RETURN_IF_ERROR(group_.communicator->Wait());
  RETURN_IF_ERROR(
      backend_->Read(TensorView(host_counts_.data(), DType::kI32, {2 * num_ranks(), 2}), all));
  for (int64_t r = 0; r < num_ranks(); ++r) {
    const int32_t* out = &host_counts_[2 * r];
    const int32_t* in = &host_counts_[2 * (num_ranks() + r)];
    amounts_.rows_out[r] = out[0];
    amounts_.choices_out[r] = out[1];
    amounts_.rows_in[r] = in[0];
    amounts_.choices_in[r] = in[1];
    const int64_t most = int64_t{in[0]} * work_.recv_slots.view.dim(1);
    if (in[0] >= 0 && in[0] <= options_.max_tokens && in[1] >= in[0] && in[1] <= most) continue;
    return absl::InternalError(absl::StrCat("rank ", r, " announced ", in[0], " tokens with ",
                                            in[1], " choices; a rank sends at most ",
                                            options_.max_tokens, " tokens"));
  }
  return absl::OkStatus();
}

absl::Status ExpertParallel::RunExperts(const MlpWeights& experts, const Received& received) {
  const int64_t rows = received.num_rows;
  const int64_t choices = received.num_choices;
  const int64_t top_k = work_.recv_slots.view.dim(1);
  const DispatchPlan plan = {.cu_rows = work_.cu_rows.view,
                             .row_token = work_.row_token.view.Slice(0, rows * top_k),
                             .token_row = work_.token_row.view.Slice(0, rows)};
  RETURN_IF_ERROR(
      backend_->ExpertDispatch({.topk_idx = work_.recv_slots.view.Slice(0, rows), .plan = plan}));
  const TensorView act = work_.expert_act.view.Slice(0, choices);
  const TensorView expert_out = work_.expert_out.view.Slice(0, choices);
  GatedUpArgs up = {.x = work_.recv_x.view.Slice(0, rows),
                    .cu_rows = plan.cu_rows,
                    .row_idx = plan.row_token.Slice(0, choices),
                    .weight = experts.gate_up.get(),
                    .workspace = {},
                    .out = act};
  if (work_.expert_gate_up.view.present()) {
    up.workspace = work_.expert_gate_up.view.Slice(0, choices);
  }
  RETURN_IF_ERROR(backend_->GatedUp(up));
  RETURN_IF_ERROR(backend_->GroupedGemm({.x = act,
                                         .cu_rows = plan.cu_rows,
                                         .row_idx = {},
                                         .weight = experts.down.get(),
                                         .out = expert_out}));
  const int64_t width = masked_ && rows > 0 ? choices / rows : top_k;
  const TensorView row_idx = work_.result_row.view.Slice(0, rows * width);
  RETURN_IF_ERROR(
      backend_->ReturnRows({.token_row = plan.token_row, .masked = masked_, .row_idx = row_idx}));
  return backend_->GatherRows({.x = expert_out,
                               .row_idx = row_idx.Slice(0, choices),
                               .out = work_.results.view.Slice(0, choices)});
}

absl::Status ExpertParallel::Exchange(const char* what, const TensorView& from,
                                      const std::vector<int64_t>& num_out, const TensorView& to,
                                      const std::vector<int64_t>& num_in) {
  const int64_t row_bytes = from.dim(1) * DTypeBytes(from.dtype);
  int64_t out = 0;
  int64_t in = 0;
  for (int64_t r = 0; r < num_ranks(); ++r) {
    out_offsets_[r] = out;
    in_offsets_[r] = in;
    out_bytes_[r] = num_out[r] * row_bytes;
    in_bytes_[r] = num_in[r] * row_bytes;
    out += out_bytes_[r];
    in += in_bytes_[r];
  }
  const absl::Status status = group_.communicator->AllToAll({.send = from.data,
                                                             .send_offsets = out_offsets_,
                                                             .send_bytes = out_bytes_,
                                                             .recv = to.data,
                                                             .recv_offsets = in_offsets_,
                                                             .recv_bytes = in_bytes_});
  if (status.ok()) return status;
  return absl::UnavailableError(
      absl::StrCat("exchange of ", what, " between ranks: ", status.message()));
}

}  // namespace jevons

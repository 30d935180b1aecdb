#include "model/expert_parallel.h"

#include <algorithm>
#include <numeric>
#include <string>
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

absl::Status BetweenRanks(const char* what, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::UnavailableError(
      absl::StrCat("exchange of ", what, " between ranks: ", status.message()));
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
       {&out->out_bytes_, &out->out_offsets_, &out->in_bytes_, &out->in_offsets_}) {
    values->resize(n);
  }
  for (Part& part : out->parts_) {
    Amounts& a = part.amounts;
    for (auto* values : {&a.rows_out, &a.rows_in, &a.choices_out, &a.choices_in}) values->resize(n);
  }
  for (int32_t i = 0; i < out->num_parts_; ++i) out->Place(i);
  out->host_counts_.resize(4 * n);
  out->taken_counts_.resize(int64_t{config.num_hidden_layers} * config.n_routed_experts);
  out->new_counts_ = out->taken_counts_;
  ASSIGN_OR_RETURN(out->choice_counts_, backend->Upload(TensorView(
                                            out->taken_counts_.data(), DType::kI64,
                                            {config.num_hidden_layers, config.n_routed_experts})));
  return out;
}

absl::Status ExpertParallel::BeginStep(int64_t num_tokens) {
  if (options_.masked_capacity == 0 && !options_.splits_steps()) return absl::OkStatus();
  RETURN_IF_ERROR(group_.communicator->AllReduce(std::span(&num_tokens, 1), ReduceOp::kMax));
  masked_ = options_.masked_capacity > 0 && num_tokens <= options_.masked_capacity;
  capacity_ = masked_ ? num_tokens : 0;
  num_parts_ = options_.splits_steps() && num_tokens >= options_.min_split_tokens ? 2 : 1;
  for (int32_t i = 0; i < num_parts_; ++i) Place(i);
  return absl::OkStatus();
}

void ExpertParallel::Place(int32_t part_idx) {
  const auto place = [&](const DeviceTensor& tensor) {
    const int64_t rows = tensor.view.dim(0) / num_parts_;
    return tensor.view.Slice(part_idx * rows, rows);
  };
  Part& part = parts_[part_idx];
  part.plan = {.counts = work_.counts.view.Slice(0, num_ranks()),
               .send_token = place(work_.send_token),
               .send_slots = place(work_.send_slots),
               .return_row = place(work_.return_row)};
  part.send_x = place(work_.send_x);
  part.recv_slots = place(work_.recv_slots);
  if (packs()) part.recv_packed = place(work_.recv_packed);
  part.recv_x = place(work_.recv_x);
  part.result_row = place(work_.result_row);
  part.results = place(work_.results);
  part.returned = place(work_.returned);
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

absl::Status ExpertParallel::Send(int32_t part_idx, int32_t layer_idx, const RoutedTokens& tokens) {
  Part& part = parts_[part_idx];
  const int64_t num_tokens = tokens.topk_idx.dim(0);
  const int64_t top_k = tokens.topk_idx.dim(1);
  const int64_t num_send =
      masked_ ? num_ranks() * part_capacity() : num_tokens * std::min(top_k, num_ranks());
  const ExchangePlan plan = {.counts = part.plan.counts,
                             .send_token = part.plan.send_token.Slice(0, num_send),
                             .send_slots = part.plan.send_slots.Slice(0, num_send),
                             .return_row = part.plan.return_row.Slice(0, num_tokens)};
  const TensorView& counts = choice_counts_.view;
  RETURN_IF_ERROR(
      backend_->RankDispatch({.topk_idx = tokens.topk_idx,
                              .slot_table = slot_tables_[layer_idx].view,
                              .num_ranks = options_.num_ranks,
                              .slots_per_rank = num_slots_,
                              .capacity = static_cast<int32_t>(part_capacity()),
                              .plan = plan,
                              .choice_counts = TensorView(counts.row<int64_t>(layer_idx),
                                                          counts.dtype, {counts.dim(1)})}));
  RETURN_IF_ERROR(FinishExchange());
  RETURN_IF_ERROR(SetAmounts(part));
  const Amounts& amounts = part.amounts;
  const int64_t num_rows = Sum(amounts.rows_out);
  RETURN_IF_ERROR(
      Exchange({"choices", plan.send_slots, amounts.rows_out, part.recv_slots, amounts.rows_in}));
  const TensorView send_x = part.send_x.Slice(0, num_rows);
  const TensorView row_idx = plan.send_token.Slice(0, num_rows);
  RETURN_IF_ERROR(packs() ? backend_->PackRows({tokens.x, row_idx, send_x})
                          : backend_->GatherRows({tokens.x, row_idx, send_x}));
  const Transfer rows = {"tokens",         send_x,
                         amounts.rows_out, packs() ? part.recv_packed : part.recv_x,
                         amounts.rows_in,  masked_ ? row_idx : TensorView()};
  const bool is_beside = num_parts_ > 1 || (options_.exchange_overlap != ExchangeOverlap::kOff &&
                                            tokens.shared.present());
  return is_beside ? StartExchange(part_idx, rows) : Exchange(rows);
}

absl::Status ExpertParallel::Compute(int32_t part_idx, const MlpWeights& experts) {
  const Part& part = parts_[part_idx];
  RETURN_IF_ERROR(FinishExchange(part_idx));
  RETURN_IF_ERROR(RunExperts(experts, part));
  RETURN_IF_ERROR(FinishExchange());
  const Transfer results = {"results",
                            part.results,
                            part.amounts.choices_in,
                            part.returned,
                            part.amounts.choices_out,
                            masked_ ? part.result_row : TensorView()};
  return num_parts_ > 1 ? StartExchange(part_idx, results) : Exchange(results);
}

absl::Status ExpertParallel::Combine(int32_t part_idx, const RoutedTokens& tokens) {
  const Part& part = parts_[part_idx];
  RETURN_IF_ERROR(FinishExchange(part_idx));
  return backend_->CombineAndNorm(
      {.combine = {.expert_out = part.returned.Slice(0, Sum(part.amounts.choices_out)),
                   .plan = {.cu_rows = {},
                            .row_token = {},
                            .token_row = part.plan.return_row.Slice(0, tokens.out.dim(0))},
                   .topk_weights = tokens.topk_weights,
                   .shared = tokens.shared,
                   .out = tokens.out},
       .norm = tokens.norm});
}

void ExpertParallel::Abandon(const absl::Status& error) {
  if (under_way_ == nullptr) return;
  group_.communicator->Abort(std::string(error.message()));
  FinishExchange().IgnoreError();
}

absl::Status ExpertParallel::SetAmounts(Part& part) {
  if (!masked_) return ExchangeCounts(part.amounts);
  const int64_t per_row = std::min<int64_t>(part.plan.return_row.dim(1), num_slots_);
  Fill(part.amounts.rows_out, part_capacity());
  Fill(part.amounts.rows_in, part_capacity());
  Fill(part.amounts.choices_out, part_capacity() * per_row);
  Fill(part.amounts.choices_in, part_capacity() * per_row);
  return absl::OkStatus();
}

absl::Status ExpertParallel::ExchangeCounts(Amounts& amounts) {
  const std::vector<int64_t> one(static_cast<size_t>(num_ranks()), 1);
  const TensorView all = work_.counts.view;
  RETURN_IF_ERROR(Exchange(
      {"counts", all.Slice(0, num_ranks()), one, all.Slice(num_ranks(), num_ranks()), one}));
  // Read alone would wait without end for a rank that is gone.
  RETURN_IF_ERROR(group_.communicator->Wait());
  RETURN_IF_ERROR(
      backend_->Read(TensorView(host_counts_.data(), DType::kI32, {2 * num_ranks(), 2}), all));
  for (int64_t r = 0; r < num_ranks(); ++r) {
    const int32_t* out = &host_counts_[2 * r];
    const int32_t* in = &host_counts_[2 * (num_ranks() + r)];
    amounts.rows_out[r] = out[0];
    amounts.choices_out[r] = out[1];
    amounts.rows_in[r] = in[0];
    amounts.choices_in[r] = in[1];
    const int64_t most = int64_t{in[0]} * work_.recv_slots.view.dim(1);
    if (in[0] >= 0 && in[0] <= max_part_tokens() && in[1] >= in[0] && in[1] <= most) continue;
    return absl::InternalError(absl::StrCat("rank ", r, " announced ", in[0], " tokens with ",
                                            in[1], " choices; a rank sends at most ",
                                            max_part_tokens(), " tokens"));
  }
  return absl::OkStatus();
}

absl::Status ExpertParallel::RunExperts(const MlpWeights& experts, const Part& part) {
  const int64_t rows = Sum(part.amounts.rows_in);
  const int64_t choices = Sum(part.amounts.choices_in);
  const int64_t top_k = work_.recv_slots.view.dim(1);
  const TensorView x = part.recv_x.Slice(0, rows);
  if (packs()) RETURN_IF_ERROR(backend_->UnpackRows({part.recv_packed.Slice(0, rows), x}));
  const DispatchPlan plan = {.cu_rows = work_.cu_rows.view,
                             .row_token = work_.row_token.view.Slice(0, rows * top_k),
                             .token_row = work_.token_row.view.Slice(0, rows)};
  RETURN_IF_ERROR(
      backend_->ExpertDispatch({.topk_idx = part.recv_slots.Slice(0, rows), .plan = plan}));
  const TensorView act = work_.expert_act.view.Slice(0, choices);
  const TensorView expert_out = work_.expert_out.view.Slice(0, choices);
  GatedUpArgs up = {.x = x,
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
  const TensorView row_idx = part.result_row.Slice(0, rows * width);
  RETURN_IF_ERROR(
      backend_->ReturnRows({.token_row = plan.token_row, .masked = masked_, .row_idx = row_idx}));
  return backend_->GatherRows({.x = expert_out,
                               .row_idx = row_idx.Slice(0, choices),
                               .out = part.results.Slice(0, choices)});
}

AllToAllArgs ExpertParallel::ArgsOf(const Transfer& transfer) {
  const int64_t row_bytes = transfer.from.dim(1) * DTypeBytes(transfer.from.dtype);
  int64_t out = 0;
  int64_t in = 0;
  for (int64_t r = 0; r < num_ranks(); ++r) {
    out_offsets_[r] = out;
    in_offsets_[r] = in;
    out_bytes_[r] = transfer.num_out[r] * row_bytes;
    in_bytes_[r] = transfer.num_in[r] * row_bytes;
    out += out_bytes_[r];
    in += in_bytes_[r];
  }
  return {.send = transfer.from.data,
          .send_offsets = out_offsets_,
          .send_bytes = out_bytes_,
          .recv = transfer.to.data,
          .recv_offsets = in_offsets_,
          .recv_bytes = in_bytes_,
          .row_keys = transfer.row_keys.present() ? transfer.row_keys.row<int32_t>(0) : nullptr,
          .row_bytes = row_bytes};
}

absl::Status ExpertParallel::Exchange(const Transfer& transfer) {
  return BetweenRanks(transfer.what, group_.communicator->AllToAll(ArgsOf(transfer)));
}

absl::Status ExpertParallel::StartExchange(int32_t part_idx, const Transfer& transfer) {
  RETURN_IF_ERROR(
      BetweenRanks(transfer.what, group_.communicator->StartAllToAll(ArgsOf(transfer))));
  under_way_ = transfer.what;
  part_under_way_ = part_idx;
  return absl::OkStatus();
}

absl::Status ExpertParallel::FinishExchange(int32_t part_idx) {
  return part_idx == part_under_way_ ? FinishExchange() : absl::OkStatus();
}

absl::Status ExpertParallel::FinishExchange() {
  if (under_way_ == nullptr) return absl::OkStatus();
  const char* const what = std::exchange(under_way_, nullptr);
  return BetweenRanks(what, group_.communicator->FinishAllToAll());
}

}  // namespace jevons

// The experts of a model spread over the ranks of a group: tokens go where their experts are, and
// the results come back.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "model/config.h"
#include "model/model_weights.h"
#include "model/workspace.h"
#include "ops/backend.h"
#include "parallel/communicator.h"
#include "parallel/expert_map.h"

namespace jevons {

// A rank's place in a group. Without a communicator the model has all experts itself.
struct RankGroup {
  Communicator* communicator = nullptr;
  std::vector<ExpertMap> maps;  // of each layer; those of dense layers are not used

  bool present() const { return communicator != nullptr; }
};

// The same map for every layer: `num_redundant` slots more than experts, rounded up so that every
// rank has as many. INVALID_ARGUMENT as ExpertMap::Even.
absl::StatusOr<std::vector<ExpertMap>> EvenMaps(const ModelConfig& config, int32_t num_ranks,
                                                int32_t num_redundant);

// The experts to load for a rank's slots: an empty slot (-1) holds some expert that no token is sent
// to.
std::vector<int32_t> FilledSlots(std::span<const int32_t> slot_expert);

// The routed experts of one layer, with their rows and places.
struct RoutedTokens {
  TensorView x;             // [num_tokens, hidden], what the experts read
  TensorView topk_idx;      // i32 [num_tokens, top_k]
  TensorView topk_weights;  // f32 [num_tokens, top_k]
  TensorView shared;        // [num_tokens, hidden] or absent: added last
  TensorView out;           // f32 [num_tokens, hidden], undefined afterwards
  RmsNormArgs norm;         // of what follows, with `out` as its delta
};

// All ranks run the same layers in the same order, each with its own tokens, of which it may have
// none. Nothing that is sent is rounded, a row of an expert does not depend on the rows beside it,
// and each token's results are added in its own order: the bits are those of one rank. With
// ExchangePrecision::kFp8 what experts read is rounded, whichever rank serves: the bits are those of
// any group.
//
// Bytes that leave and reach a rank in a layer, contiguous: for each rank 8 of counts; for each row
// of ExchangePlan top_k i32 and hidden activations, or PackedRowBytes of them; for each choice hidden
// activations back. In a step that is cut in two each half has counts, and a row is of one half.
// Masked: no counts, and for each rank C rows of min(top_k, slots) choices each, whatever is chosen. C
// is the number of rows of the rank that has most in this step; in each half its half, rounded up.
//
// A layer has three stages, each run for the parts of the step in turn: Send, Compute, Combine. One
// exchange is under way at most, of whichever part: what comes between two stages of a part runs beside
// it. All ranks have the same parts.
//
// Used by the thread of its ModelRunner.
class ExpertParallel {
 public:
  // `group` and `work` outlive it; `work` is planned for these options.
  static absl::StatusOr<std::unique_ptr<ExpertParallel>> Create(const ModelConfig& config,
                                                                const RankGroup& group,
                                                                const ModelRunnerOptions& options,
                                                                Backend* backend, Workspace* work);

  // Before the layers of a step, with the number of rows of this rank.
  absl::Status BeginStep(int64_t num_tokens);
  // What this step moves has sizes that follow from its capacity: it can be recorded for each.
  bool masked() const { return masked_; }
  // Of a masked step: the number of rows of the rank that has most.
  int64_t capacity() const { return capacity_; }
  // Into how many parts the step is cut, each of at most (max_tokens + 1) / 2 rows where there are two.
  int32_t num_parts() const { return num_parts_; }

  // Tokens of the part to the ranks of their experts.
  absl::Status Send(int32_t part_idx, int32_t layer_idx, const RoutedTokens& tokens);
  // What this rank's experts give for the tokens that came, back to where they are from.
  absl::Status Compute(int32_t part_idx, const MlpWeights& experts);
  // tokens.out = what came back, each with its weight, and the shared experts.
  absl::Status Combine(int32_t part_idx, const RoutedTokens& tokens);
  // After an error in the layers: nothing is under way any more. Breaks the group where something was.
  void Abandon(const absl::Status& error);

  // Between two steps, on all ranks: the layer's tokens go by this map from now on. It must be like
  // the one before in experts, ranks and slots.
  absl::Status SetMap(int32_t layer_idx, const ExpertMap& map);

  // [num_layers, n_routed_experts] how often this rank's tokens have chosen each expert since the last
  // call. Waits for the steps that are queued. Valid until the next call.
  absl::StatusOr<std::span<const int64_t>> TakeChoiceCounts();

 private:
  ExpertParallel(const RankGroup& group, const ModelRunnerOptions& options, int32_t num_slots,
                 Backend* backend, Workspace* work)
      : group_(group), options_(options), num_slots_(num_slots), backend_(backend), work_(*work) {}

  // Elements for and from each rank.
  struct Amounts {
    std::vector<int64_t> rows_out, rows_in, choices_out, choices_in;
  };
  // What of a part lives from one of its stages to the next.
  struct Part {
    ExchangePlan plan;
    Amounts amounts;
    // Of the workspace.
    TensorView send_x, recv_slots, recv_packed, recv_x, result_row, results, returned;
  };
  bool packs() const { return options_.exchange_precision == ExchangePrecision::kFp8; }
  void Place(int32_t part_idx);
  absl::Status SetAmounts(Part& part);
  absl::Status ExchangeCounts(Amounts& amounts);
  absl::Status RunExperts(const MlpWeights& experts, const Part& part);
  // Rows of `from` to the ranks, `num_out` each, and `num_in` of each to `to`.
  struct Transfer {
    const char* what;
    TensorView from;
    std::span<const int64_t> num_out;
    TensorView to;
    std::span<const int64_t> num_in;
    TensorView row_keys = {};  // of AllToAllArgs; absent: all rows travel
  };
  AllToAllArgs ArgsOf(const Transfer& transfer);
  absl::Status Exchange(const Transfer& transfer);
  absl::Status StartExchange(int32_t part_idx, const Transfer& transfer);
  // Of the part, or of whichever is under way.
  absl::Status FinishExchange(int32_t part_idx);
  absl::Status FinishExchange();
  int64_t max_part_tokens() const { return (options_.max_tokens + num_parts_ - 1) / num_parts_; }
  int64_t part_capacity() const { return (capacity_ + num_parts_ - 1) / num_parts_; }
  int64_t num_ranks() const { return options_.num_ranks; }

  const RankGroup& group_;
  const ModelRunnerOptions options_;
  const int32_t num_slots_;  // of a rank, with the shared experts that are groups behind the others
  Backend* const backend_;
  Workspace& work_;
  std::vector<DeviceTensor> slot_tables_;  // by layer
  DeviceTensor choice_counts_;             // i64 [num_layers, n_routed_experts], since the start
  std::vector<int64_t> taken_counts_, new_counts_;
  bool masked_ = false;  // this step's layout
  int64_t capacity_ = 0;
  int32_t num_parts_ = 1;
  Part parts_[2];
  const char* under_way_ = nullptr;  // what; null: no exchange
  int32_t part_under_way_ = 0;
  std::vector<int32_t> host_counts_;
  std::vector<int64_t> out_bytes_, out_offsets_, in_bytes_, in_offsets_;
};

}  // namespace jevons

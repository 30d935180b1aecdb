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
  TensorView out;           // f32 [num_tokens, hidden]
};

// All ranks run the same layers in the same order, each with its own tokens, of which it may have
// none. Nothing that is sent is rounded, a row of an expert does not depend on the rows beside it,
// and each token's results are added in its own order: the bits are those of one rank.
//
// Bytes that leave and reach a rank in a layer, contiguous: for each rank 8 of counts; for each row
// of ExchangePlan hidden activations and top_k i32; for each choice hidden activations back.
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
  // What this step moves has sizes that are known before it: it can be recorded.
  bool masked() const { return masked_; }
  absl::Status Run(int32_t layer_idx, const MlpWeights& experts, const RoutedTokens& tokens);

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

  // Rows that this rank has got of the others, and how much of what goes to and comes from whom.
  struct Received {
    int64_t num_rows = 0;
    int64_t num_choices = 0;
  };
  // Elements for and from each rank.
  struct Amounts {
    std::vector<int64_t> rows_out, rows_in, choices_out, choices_in;
  };
  absl::StatusOr<Received> Send(const ExchangePlan& plan, const TensorView& x);
  absl::Status ExchangeCounts();
  absl::Status RunExperts(const MlpWeights& experts, const Received& received);
  // Sends rows of `from` to the ranks, `num_out` each, and gets `num_in` each to `to`.
  absl::Status Exchange(const char* what, const TensorView& from,
                        const std::vector<int64_t>& num_out, const TensorView& to,
                        const std::vector<int64_t>& num_in);
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
  Amounts amounts_;
  std::vector<int32_t> host_counts_;
  std::vector<int64_t> out_bytes_, out_offsets_, in_bytes_, in_offsets_;
};

}  // namespace jevons

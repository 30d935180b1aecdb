// Holds what a rank exchanges in each MoE layer against the formula of docs/expert-parallel.md.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "gtest/gtest.h"
#include "model/model_weights.h"
#include "model/workspace.h"
#include "parallel/communicator.h"

namespace jevons {

// Passes all on for one of at most eight ranks whose runner has `options`. Contiguous steps are not
// checked where the host cannot read what is sent.
class FormulaCommunicator : public Communicator {
 public:
  FormulaCommunicator(std::unique_ptr<Communicator> inner, const ModelConfig& config,
                      const ModelRunnerOptions& options, const BackendTraits& traits)
      : inner_(std::move(inner)), options_(options), traits_(traits) {
    const int32_t grouped = NumGroupedSharedExperts(config, traits);
    top_k_ = config.num_experts_per_tok + grouped;
    results_per_row_ = std::min(top_k_, options.slots_per_rank + grouped);
    row_bytes_ = config.hidden_size * DTypeBytes(traits.activation);
    const bool packs = options.exchange_precision == ExchangePrecision::kFp8;
    token_bytes_ = packs ? PackedRowBytes(config.hidden_size) : row_bytes_;
    has_shared_ = config.n_shared_experts > grouped;
  }
  ~FormulaCommunicator() override {
    EXPECT_EQ(call_in_layer_, 0);
    if (!traits_.host_memory && options_.masked_capacity == 0) return;
    EXPECT_GT(num_layers_, 0);
    EXPECT_EQ(overlap() == ExchangeOverlap::kBatches, num_split_layers_ > 0);
    EXPECT_LT(num_split_layers_, num_layers_);
    // Tokens, or tokens and results of both halves.
    const bool shared_beside = has_shared_ && overlap() != ExchangeOverlap::kOff;
    const int64_t num_whole_layers = num_layers_ - num_split_layers_;
    EXPECT_EQ(num_started_, 4 * num_split_layers_ + (shared_beside ? num_whole_layers : 0));
  }

  // From now on no masked step makes a call where steps are recorded.
  void ExpectRecorded() { all_recorded_ = traits_.records_steps; }

  std::string Description() const override { return inner_->Description(); }
  RankInfo info() const override { return inner_->info(); }
  absl::StatusOr<void*> ReceiveMemory(int64_t bytes) override {
    return inner_->ReceiveMemory(bytes);
  }
  absl::Status AllToAll(const AllToAllArgs& args) override {
    const absl::Status status = inner_->AllToAll(args);
    if (is_checked()) Check(args);
    return status;
  }
  absl::Status StartAllToAll(const AllToAllArgs& args) override {
    if (is_checked()) {
      ++num_started_;
      Check(args);
    }
    return inner_->StartAllToAll(args);
  }
  absl::Status FinishAllToAll() override { return inner_->FinishAllToAll(); }
  absl::Status AllGather(const void* send, int64_t bytes, void* recv) override {
    return inner_->AllGather(send, bytes, recv);
  }
  absl::Status Broadcast(void* data, int64_t bytes, int32_t root) override {
    return inner_->Broadcast(data, bytes, root);
  }
  // The number of tokens of the rank that has most, before a step.
  absl::Status AllReduce(std::span<int64_t> values, ReduceOp op) override {
    const absl::Status status = inner_->AllReduce(values, op);
    BeginStep(values[0]);
    return status;
  }
  absl::Status Barrier(absl::Duration timeout) override { return inner_->Barrier(timeout); }
  absl::Status Wait() override { return inner_->Wait(); }
  absl::Status WaitUntil(absl::FunctionRef<absl::StatusOr<bool>()> is_done) override {
    return inner_->WaitUntil(is_done);
  }
  void Abort(const std::string& reason) override { inner_->Abort(reason); }

 private:
  enum class What { kCounts, kChoices, kTokens, kResults };
  struct Expected {
    What what;
    int32_t part = 0;
  };
  struct Counts {
    int32_t rows = 0;
    int32_t choices = 0;
  };

  ExchangeOverlap overlap() const { return options_.exchange_overlap; }
  bool is_checked() const { return masked_ || traits_.host_memory; }

  void BeginStep(int64_t most_tokens) {
    masked_ = options_.masked_capacity > 0 && most_tokens <= options_.masked_capacity;
    num_parts_ = options_.splits_steps() && most_tokens >= options_.min_split_tokens ? 2 : 1;
    if (!masked_) return;
    const int32_t rows = static_cast<int32_t>((most_tokens + num_parts_ - 1) / num_parts_);
    const Counts counts = {rows, rows * results_per_row_};
    for (int32_t part = 0; part < 2; ++part) {
      std::fill_n(sent_[part], info().world_size, counts);
      std::fill_n(got_[part], info().world_size, counts);
    }
  }

  Expected Next() {
    using enum What;
    static constexpr Expected kWhole[] = {{kCounts}, {kChoices}, {kTokens}, {kResults}};
    static constexpr Expected kSplit[] = {{kCounts, 0},  {kChoices, 0}, {kTokens, 0},
                                          {kCounts, 1},  {kChoices, 1}, {kTokens, 1},
                                          {kResults, 0}, {kResults, 1}};
    const std::span<const Expected> calls =
        num_parts_ == 2 ? std::span<const Expected>(kSplit) : std::span<const Expected>(kWhole);
    // A masked step has none to tell.
    if (masked_ && calls[call_in_layer_].what == kCounts) ++call_in_layer_;
    const Expected next = calls[call_in_layer_++];
    if (call_in_layer_ == calls.size()) {
      call_in_layer_ = 0;
      ++num_layers_;
      num_split_layers_ += num_parts_ - 1;
    }
    return next;
  }

  void Check(const AllToAllArgs& args) {
    EXPECT_FALSE(masked_ && all_recorded_) << "a masked step was not recorded";
    const Expected next = Next();
    for (int32_t r = 0; r < info().world_size; ++r) {
      Counts& sent = sent_[next.part][r];
      Counts& got = got_[next.part][r];
      switch (next.what) {
        case What::kCounts:
          EXPECT_EQ(args.send_bytes[r], 8);
          std::memcpy(&sent, static_cast<const char*>(args.send) + args.send_offsets[r], 8);
          std::memcpy(&got, static_cast<const char*>(args.recv) + args.recv_offsets[r], 8);
          break;
        case What::kChoices:
          EXPECT_EQ(args.send_bytes[r], sent.rows * 4 * top_k_);
          break;
        case What::kTokens:
          EXPECT_EQ(args.send_bytes[r], sent.rows * token_bytes_);
          break;
        case What::kResults:
          EXPECT_EQ(args.send_bytes[r], got.choices * row_bytes_);
          EXPECT_EQ(args.recv_bytes[r], sent.choices * row_bytes_);
          break;
      }
    }
  }

  const std::unique_ptr<Communicator> inner_;
  const ModelRunnerOptions options_;
  const BackendTraits traits_;
  int32_t top_k_ = 0;
  int32_t results_per_row_ = 0;  // in a masked step
  int64_t row_bytes_ = 0;
  int64_t token_bytes_ = 0;
  bool has_shared_ = false;  // experts that are computed apart
  bool all_recorded_ = false;
  bool masked_ = false;
  int32_t num_parts_ = 1;
  size_t call_in_layer_ = 0;
  int64_t num_layers_ = 0;
  int64_t num_split_layers_ = 0;
  int64_t num_started_ = 0;
  Counts sent_[2][8], got_[2][8];
};

}  // namespace jevons

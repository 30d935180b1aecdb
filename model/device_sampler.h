// Tokens from logits that stay on the device.
#pragma once

#include <array>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "base/status.h"
#include "model/sampler.h"
#include "ops/backend.h"

namespace jevons {

// What a row of logits is wanted for.
struct SampleRequest {
  const SamplingParams* params = nullptr;  // outlives the call
  int64_t token_idx = 0;                   // the number of new tokens before this one
  int32_t score_id = -1;                   // >= 0: no draw, this id is scored
  int32_t num_top = 0;                     // in [0, DeviceSampler::kMaxTop]
};

// `chosen` is the drawn or scored id. A row whose logits are not finite is lost: a drawn id is then
// -1, the log-probability NaN and `top` empty. `top` holds finite ones alone, so it may be shorter
// than was asked for.
using SampleResult = Logprobs;

// Used by one thread at a time. All memory is taken in Create.
class DeviceSampler {
 public:
  static constexpr int32_t kMaxTop = 20;
  static constexpr int32_t kMaxBias = 1024;  // entries of one row

  static absl::StatusOr<std::unique_ptr<DeviceSampler>> Create(Backend* backend, int32_t max_rows,
                                                               int32_t num_valid_ids);

  // Sends the requests of a call with `num_rows` rows, of which those behind the requests are
  // padding.
  absl::Status Write(std::span<const SampleRequest> requests, int64_t num_rows);
  // The op on logits [num_rows, vocab]; may be recorded.
  absl::Status Run(const TensorView& logits);
  // Queues the way of the last Run's results to the host.
  absl::Status Queue();
  // Waits for what was queued first and is not taken yet: a result for each request, valid until
  // the next Write. Whatever comes back, it is taken.
  absl::StatusOr<std::span<const SampleResult>> Take();
  // Whether Take would wait no more.
  absl::StatusOr<bool> Done() { return calls_[oldest_].outputs->Done(); }
  // Write may be called while fewer are queued.
  static constexpr int kMaxQueued = 2;

  // Device memory i32 [max_rows]: what the last Run drew, by row.
  TensorView drawn() const { return Parts(outputs_.view.data).token; }

 private:
  DeviceSampler(Backend* backend, int32_t max_rows, int32_t num_valid_ids)
      : backend_(backend), max_rows_(max_rows), num_valid_ids_(num_valid_ids) {}

  // A call whose results are on their way.
  struct Call {
    std::unique_ptr<Readback> outputs;
    std::vector<SampleResult> results;  // as far as the requests tell
    int64_t size = 0;                   // of the outputs that are read
  };
  Call& NextCall() { return calls_[(oldest_ + num_queued_) % kMaxQueued]; }

  // The parts of outputs_ of a call with all rows.
  struct Outputs {
    TensorView token, logprob, top_ids, top_logprobs;
  };
  Outputs Parts(void* base) const;

  Backend* const backend_;
  const int32_t max_rows_;
  const int32_t num_valid_ids_;
  DeviceTensor rows_, bias_cu_, bias_ids_, bias_values_, list_scratch_, outputs_;
  std::vector<SampleRow> host_rows_;
  std::vector<int32_t> host_bias_cu_, host_bias_ids_;
  std::vector<float> host_bias_values_;
  std::array<Call, kMaxQueued> calls_;
  int oldest_ = 0;
  int num_queued_ = 0;
};

}  // namespace jevons

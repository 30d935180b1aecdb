#include "model/device_sampler.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace jevons {
namespace {

absl::StatusOr<DeviceTensor> NewTensor(Backend& backend, DType dtype, int64_t size) {
  DeviceTensor out;
  ASSIGN_OR_RETURN(out.buffer, backend.Allocate(size * DTypeBytes(dtype)));
  out.view = TensorView(out.buffer->data(), dtype, {size});
  return out;
}

SampleRow MakeRow(const SampleRequest& request) {
  const SamplingParams& params = *request.params;
  return {.mode = request.score_id >= 0 ? SampleMode::kScore : SampleMode::kDraw,
          .score_id = request.score_id,
          .temperature = params.temperature,
          .top_k = params.top_k,
          .top_p = params.top_p,
          .min_p = params.min_p,
          .num_top = std::clamp(request.num_top, 0, DeviceSampler::kMaxTop),
          .seed = params.seed,
          .token_idx = request.token_idx};
}

template <typename T>
TensorView HostView(std::vector<T>& values, DType dtype, int64_t size) {
  return TensorView(values.data(), dtype, {size});
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceSampler>> DeviceSampler::Create(Backend* backend,
                                                                     int32_t max_rows,
                                                                     int32_t num_valid_ids) {
  auto out = std::unique_ptr<DeviceSampler>(new DeviceSampler(backend, max_rows, num_valid_ids));
  const int64_t rows = max_rows;
  const int64_t entries = rows * kMaxBias;
  ASSIGN_OR_RETURN(out->rows_, NewTensor(*backend, DType::kU8, rows * sizeof(SampleRow)));
  ASSIGN_OR_RETURN(out->bias_cu_, NewTensor(*backend, DType::kI32, rows + 1));
  ASSIGN_OR_RETURN(out->bias_ids_, NewTensor(*backend, DType::kI32, entries));
  ASSIGN_OR_RETURN(out->bias_values_, NewTensor(*backend, DType::kF32, entries));
  ASSIGN_OR_RETURN(out->list_scratch_, NewTensor(*backend, DType::kF32, entries));
  ASSIGN_OR_RETURN(out->outputs_, NewTensor(*backend, DType::kI32, rows * (2 + 2 * kMaxTop)));
  out->host_rows_.resize(rows);
  out->host_bias_cu_.resize(rows + 1);
  out->host_bias_ids_.reserve(entries);
  out->host_bias_values_.reserve(entries);
  for (Call& call : out->calls_) {
    ASSIGN_OR_RETURN(call.outputs, backend->NewReadback(out->outputs_.view.num_elements() *
                                                        DTypeBytes(DType::kI32)));
  }
  return out;
}

DeviceSampler::Outputs DeviceSampler::Parts(void* base) const {
  const int64_t rows = max_rows_;
  int32_t* at = static_cast<int32_t*>(base);
  return {.token = TensorView(at, DType::kI32, {rows}),
          .logprob = TensorView(at + rows, DType::kF32, {rows}),
          .top_ids = TensorView(at + 2 * rows, DType::kI32, {rows, kMaxTop}),
          .top_logprobs = TensorView(at + (2 + kMaxTop) * rows, DType::kF32, {rows, kMaxTop})};
}

absl::Status DeviceSampler::Write(std::span<const SampleRequest> requests, int64_t num_rows) {
  CHECK(num_queued_ < kMaxQueued);
  Call& call = NextCall();
  call.results.assign(requests.size(), {});
  // Tokens and log-probabilities come first.
  call.size = 2 * int64_t{max_rows_};
  std::fill_n(host_rows_.begin(), num_rows, SampleRow{.mode = SampleMode::kSkip});
  host_bias_ids_.clear();
  host_bias_values_.clear();
  host_bias_cu_[0] = 0;
  for (int64_t r = 0; r < num_rows; ++r) {
    if (r < static_cast<int64_t>(requests.size())) {
      const SampleRequest& request = requests[r];
      host_rows_[r] = MakeRow(request);
      call.results[r].chosen.id = request.score_id;
      call.results[r].top.resize(host_rows_[r].num_top);
      if (host_rows_[r].num_top > 0) call.size = outputs_.view.num_elements();
      const auto& biases = request.params->logit_bias;
      if (biases.size() > kMaxBias) {
        return absl::InvalidArgumentError(
            absl::StrCat("a row has at most ", kMaxBias, " biases, given ", biases.size()));
      }
      for (const auto& [id, bias] : biases) {
        if (request.score_id >= 0) break;
        host_bias_ids_.push_back(id);
        host_bias_values_.push_back(bias);
      }
    }
    host_bias_cu_[r + 1] = static_cast<int32_t>(host_bias_ids_.size());
  }
  const int64_t row_bytes = num_rows * static_cast<int64_t>(sizeof(SampleRow));
  RETURN_IF_ERROR(backend_->Write(rows_.view.Slice(0, row_bytes),
                                  TensorView(host_rows_.data(), DType::kU8, {row_bytes})));
  RETURN_IF_ERROR(backend_->Write(bias_cu_.view.Slice(0, num_rows + 1),
                                  HostView(host_bias_cu_, DType::kI32, num_rows + 1)));
  const int64_t entries = static_cast<int64_t>(host_bias_ids_.size());
  if (entries == 0) return absl::OkStatus();
  RETURN_IF_ERROR(backend_->Write(bias_ids_.view.Slice(0, entries),
                                  HostView(host_bias_ids_, DType::kI32, entries)));
  return backend_->Write(bias_values_.view.Slice(0, entries),
                         HostView(host_bias_values_, DType::kF32, entries));
}

absl::Status DeviceSampler::Run(const TensorView& logits) {
  const int64_t rows = logits.dim(0);
  const Outputs out = Parts(outputs_.view.data);
  return backend_->SampleTokens(
      {.logits = logits,
       .num_valid = num_valid_ids_,
       .rows = TensorView(rows_.view.data, DType::kU8, {rows, sizeof(SampleRow)}),
       .bias = {bias_ids_.view, bias_values_.view, bias_cu_.view.Slice(0, rows + 1)},
       .counts = {},
       .masks = {},
       .list_scratch = list_scratch_.view,
       .token = out.token.Slice(0, rows),
       .logprob = out.logprob.Slice(0, rows),
       .top_ids = out.top_ids.Slice(0, rows),
       .top_logprobs = out.top_logprobs.Slice(0, rows)});
}

absl::Status DeviceSampler::Queue() {
  Call& call = NextCall();
  RETURN_IF_ERROR(call.outputs->Start(outputs_.view.Slice(0, call.size)));
  ++num_queued_;
  return absl::OkStatus();
}

absl::StatusOr<std::span<const SampleResult>> DeviceSampler::Take() {
  CHECK(num_queued_ > 0);
  Call& call = calls_[oldest_];
  oldest_ = (oldest_ + 1) % kMaxQueued;
  --num_queued_;
  ASSIGN_OR_RETURN(const void* outputs, call.outputs->Wait());
  const Outputs out = Parts(const_cast<void*>(outputs));
  for (size_t r = 0; r < call.results.size(); ++r) {
    SampleResult& result = call.results[r];
    const int32_t token = out.token.ptr<int32_t>()[r];
    // A scored id stays what it is where its row is lost.
    result.chosen = {result.chosen.id >= 0 ? result.chosen.id : token, out.logprob.ptr<float>()[r]};
    for (size_t i = 0; i < result.top.size(); ++i) {
      result.top[i] = {out.top_ids.row<int32_t>(static_cast<int64_t>(r))[i],
                       out.top_logprobs.row<float>(static_cast<int64_t>(r))[i]};
    }
    // Where fewer ids have a finite logit than were asked for, or the row is lost.
    if (token < 0) result.top.clear();
    while (!result.top.empty() && result.top.back().id < 0) result.top.pop_back();
  }
  return std::span<const SampleResult>(call.results);
}

}  // namespace jevons

#include "model/model_runner.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace jevons {
namespace {

// Keys of RunStep: a step's is its number of rows, on which its parts and its capacity depend alone;
// that of a Logits or Sample call is its number of rows and this.
constexpr int64_t kLogitsKey = int64_t{1} << 32;
constexpr int64_t kSampleKey = int64_t{2} << 32;

// Bytes of a tensor that shares its memory with others.
int64_t Aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// The largest size below `size`; 0 at the end.
int64_t PaddedBelow(int64_t size) {
  int64_t below = size - 1;
  while (below > 0 && PaddedStepRows(below) >= size) --below;
  return below > 0 ? PaddedStepRows(below) : 0;
}

}  // namespace

// Powers of two up to 8, then eighths of a power of two, so that padding is at most an eighth; from
// 1024 on multiples of 128.
int64_t PaddedStepRows(int64_t num_rows) {
  int64_t unit = 1;
  if (num_rows <= 8) {
    while (unit < num_rows) unit *= 2;
    return unit;
  }
  while (num_rows > 16 * unit && unit < 128) unit *= 2;
  return (num_rows + unit - 1) / unit * unit;
}

std::vector<KvLayerSpec> KvLayers(const ModelConfig& config, DType dtype) {
  const Fp8Entry fp8 = {config.kv_lora_rank, config.qk_rope_head_dim};
  const int32_t entry_dim = dtype == DType::kU8 ? fp8.bytes() : config.kv_entry_dim();
  return std::vector<KvLayerSpec>(config.num_hidden_layers,
                                  {.entry_dim = entry_dim, .dtype = dtype});
}

absl::StatusOr<std::unique_ptr<ModelRunner>> ModelRunner::Create(const ModelConfig& config,
                                                                 ModelWeights weights,
                                                                 Backend* backend,
                                                                 const ModelRunnerOptions& options,
                                                                 RankGroup group) {
  auto runner = std::unique_ptr<ModelRunner>(
      new ModelRunner(config, std::move(weights), backend, options, std::move(group)));
  runner->softmax_scale_ = static_cast<float>(SoftmaxScale(config));
  std::vector<float> table = RopeTable(config, options.max_positions);
  ASSIGN_OR_RETURN(runner->cos_sin_,
                   backend->Upload(TensorView(table.data(), DType::kF32,
                                              {options.max_positions, config.qk_rope_head_dim})));
  ASSIGN_OR_RETURN(const DType kv_dtype, FindKvDType(options.kv_cache, backend->traits()));
  ASSIGN_OR_RETURN(runner->cache_, KvCache::Create(*backend, KvLayers(config, kv_dtype),
                                                   options.num_blocks, options.block_tokens));
  RETURN_IF_ERROR(runner->Allocate());
  if (runner->group_.present() && config.n_routed_experts > 0) {
    ASSIGN_OR_RETURN(runner->experts_, ExpertParallel::Create(config, runner->group_, options,
                                                              backend, &runner->work_));
    runner->held_.resize(config.num_hidden_layers);
    for (int32_t i = 0; i < config.num_hidden_layers; ++i) {
      if (config.IsMoeLayer(i)) runner->held_[i] = runner->OwnSlots(runner->group_.maps[i]);
    }
  }
  if (backend->traits().samples) {
    const int32_t num_valid = options.num_valid_ids > 0 ? options.num_valid_ids : config.vocab_size;
    ASSIGN_OR_RETURN(runner->sampler_,
                     DeviceSampler::Create(backend, options.max_logits_rows, num_valid));
  }
  return runner;
}

absl::Status ModelRunner::Allocate() {
  const BackendTraits traits = backend_->traits();
  const std::vector<PlannedTensor> plan = PlanWorkspace(config_, options_, traits, work_);
  ASSIGN_OR_RETURN(char* next_received, ReceiveMemory(plan));
  for (const PlannedTensor& planned : plan) {
    TensorView& view = planned.tensor->view;
    view = planned.width > 0 ? TensorView(nullptr, planned.dtype, {planned.num_rows, planned.width})
                             : TensorView(nullptr, planned.dtype, {planned.num_rows});
    if (planned.receives && next_received != nullptr) {
      view.data = next_received;
      next_received += Aligned(planned.bytes());
      continue;
    }
    ASSIGN_OR_RETURN(planned.tensor->buffer, backend_->Allocate(planned.bytes()));
    view.data = planned.tensor->buffer->data();
  }
  host_arrays_.resize(work_.step_arrays.view.num_elements());
  host_rows_.resize(options_.max_logits_rows);
  if (!traits.host_memory) host_logits_.resize(work_.logits.view.num_elements());
  return absl::OkStatus();
}

absl::StatusOr<char*> ModelRunner::ReceiveMemory(std::span<const PlannedTensor> plan) {
  int64_t bytes = 0;
  for (const PlannedTensor& planned : plan)
    bytes += planned.receives ? Aligned(planned.bytes()) : 0;
  if (bytes == 0 || !group_.present()) return nullptr;
  ASSIGN_OR_RETURN(void* const data, group_.communicator->ReceiveMemory(bytes));
  return static_cast<char*>(data);
}

absl::Status ModelRunner::CheckStep(const StepInput& input) const {
  const auto check = [](const char* what, int64_t value, int64_t limit) {
    if (value <= limit) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("a step has at most ", limit, " ", what, ", given ", value));
  };
  RETURN_IF_ERROR(
      check("tokens", static_cast<int64_t>(input.token_ids.size()), options_.max_tokens));
  RETURN_IF_ERROR(
      check("sequences", static_cast<int64_t>(input.context_lens.size()), options_.max_num_seqs));
  return check("blocks a sequence", input.max_blocks, options_.max_sequence_blocks());
}

int64_t ModelRunner::Padded(int64_t num_rows, int64_t max_rows) const {
  if (!backend_->traits().records_steps) return num_rows;
  return std::min(PaddedStepRows(num_rows), max_rows);
}

absl::StatusOr<int64_t> ModelRunner::BeginStep(int64_t num_rows) {
  if (experts_ == nullptr) return num_rows;
  RETURN_IF_ERROR(experts_->BeginStep(num_rows));
  // Where a rank had fewer rows than the capacity, there would be a recording for each pair of them.
  const bool has_all = experts_->masked() && backend_->traits().records_steps;
  return has_all ? experts_->capacity() : num_rows;
}

absl::StatusOr<std::span<const ModelRunner::Step>> ModelRunner::WriteParts(const StepInput& input,
                                                                           int64_t num_tokens) {
  const int32_t num_parts = experts_ != nullptr ? experts_->num_parts() : 1;
  const int64_t part_tokens = (num_tokens + num_parts - 1) / num_parts;
  int64_t offset = 0;
  for (int32_t i = 0; i < num_parts; ++i) {
    const int64_t begin = i * part_tokens;
    const int64_t end = std::min(begin + part_tokens, num_tokens);
    Step& part = parts_[i];
    part.part_idx = i;
    part.first_row = begin;
    part.num_tokens = end - begin;
    ASSIGN_OR_RETURN(
        offset, WriteStep(num_parts > 1 ? cuts_[i].Cut(input, begin, end) : input, offset, part));
  }
  return std::span<const Step>(parts_, num_parts);
}

absl::StatusOr<int64_t> ModelRunner::WriteStep(const StepInput& input, int64_t offset, Step& step) {
  const int64_t begin = offset;
  const int64_t used = static_cast<int64_t>(input.token_ids.size());
  const int64_t num_seqs = static_cast<int64_t>(input.context_lens.size());
  const bool pads = backend_->traits().records_steps;
  const int64_t seqs = pads ? options_.max_num_seqs : num_seqs;
  const int64_t width = options_.max_sequence_blocks();
  // The places depend on the padded sizes alone.
  const auto place = [&](DType dtype, std::initializer_list<int64_t> shape, auto* from,
                         int64_t count, auto padding) {
    using T = std::decay_t<decltype(*from)>;
    TensorView view(work_.step_arrays.view.ptr<uint8_t>() + offset, dtype, shape);
    T* to = reinterpret_cast<T*>(host_arrays_.data() + offset);
    std::copy_n(from, count, to);
    std::fill(to + count, to + view.num_elements(), static_cast<T>(padding));
    offset += view.num_elements() * static_cast<int64_t>(sizeof(T));
    return view;
  };
  const int64_t t = step.num_tokens;
  step.slot_mapping = place(DType::kI64, {t}, input.slot_mapping.data(), used, -1);
  step.token_ids = place(DType::kI32, {t}, input.token_ids.data(), used, 0);
  step.positions = place(DType::kI32, {t}, input.positions.data(), used, 0);
  step.cu_seqlens_q = place(DType::kI32, {seqs + 1}, input.cu_seqlens_q.data(), num_seqs + 1, used);
  step.context_lens = place(DType::kI32, {seqs}, input.context_lens.data(), num_seqs, 0);
  step.block_tables =
      TensorView(work_.step_arrays.view.ptr<uint8_t>() + offset, DType::kI32, {seqs, width});
  for (int64_t s = 0; s < num_seqs; ++s) {
    std::copy_n(input.block_tables.data() + s * input.max_blocks, input.max_blocks,
                reinterpret_cast<int32_t*>(host_arrays_.data() + offset) + s * width);
  }
  const int64_t bytes = offset + num_seqs * width * static_cast<int64_t>(sizeof(int32_t)) - begin;
  RETURN_IF_ERROR(backend_->Write(work_.step_arrays.view.Slice(begin, bytes),
                                  TensorView(host_arrays_.data() + begin, DType::kU8, {bytes})));
  // The next part's begin with 8 bytes each.
  return (offset + seqs * width * static_cast<int64_t>(sizeof(int32_t)) + 7) / 8 * 8;
}

absl::Status ModelRunner::Run(const StepInput& input) {
  RETURN_IF_ERROR(CheckStep(input));
  last_num_tokens_ = static_cast<int64_t>(input.token_ids.size());
  if (last_num_tokens_ == 0 && experts_ == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(const int64_t num_rows,
                   BeginStep(Padded(last_num_tokens_, options_.max_tokens)));
  ASSIGN_OR_RETURN(const std::span<const Step> parts, WriteParts(input, num_rows));
  return RunLayers(parts);
}

absl::Status ModelRunner::RunLayers(std::span<const Step> parts) {
  const int64_t num_rows = parts.back().first_row + parts.back().num_tokens;
  // What ranks exchange may have sizes that depend on the choices.
  const bool is_recorded = experts_ == nullptr || experts_->masked();
  // A replay makes no call that would see a broken group.
  if (is_recorded && experts_ != nullptr) {
    RETURN_IF_ERROR(group_.communicator->WaitUntil([] { return true; }));
  }
  const absl::Status status =
      is_recorded ? backend_->RunStep(num_rows, [&] { return Layers(parts); }) : Layers(parts);
  if (!status.ok() && experts_ != nullptr) experts_->Abandon(status);
  return status;
}

absl::Status ModelRunner::ReplaceExperts(int32_t layer_idx, const ExpertMap& map,
                                         MlpWeights& experts) {
  RETURN_IF_ERROR(experts_->SetMap(layer_idx, map));
  group_.maps[layer_idx] = map;
  held_[layer_idx] = OwnSlots(map);
  if (experts.gate_up == nullptr) return absl::OkStatus();
  MlpWeights& present = weights_.layers[layer_idx].moe.experts;
  if (backend_->traits().host_memory) {
    std::swap(present, experts);
    return absl::OkStatus();
  }
  // Recorded steps name those that are there.
  RETURN_IF_ERROR(backend_->CopyWeight(*experts.gate_up, *present.gate_up));
  RETURN_IF_ERROR(backend_->CopyWeight(*experts.down, *present.down));
  return group_.communicator->Wait();
}

void ModelRunner::Halt() {
  backend_->ForgetSteps();
  experts_ = nullptr;
  sampler_ = nullptr;
  work_ = {};
  cache_ = {};
  cos_sin_ = {};
}

void ModelRunner::Hold(int32_t layer_idx, std::vector<int32_t> slot_expert, MlpWeights experts) {
  weights_.layers[layer_idx].moe.experts = std::move(experts);
  held_[layer_idx] = std::move(slot_expert);
}

std::vector<int32_t> ModelRunner::OwnSlots(const ExpertMap& map) const {
  const auto own = map.experts_of_rank(group_.communicator->info().rank);
  return {own.begin(), own.end()};
}

absl::Status ModelRunner::WarmUp() {
  RETURN_IF_ERROR(PrepareExperts());
  if (!backend_->traits().records_steps) return absl::OkStatus();
  // The largest write of a step, so that a backend's memory for writes grows in none.
  RETURN_IF_ERROR(backend_->Write(
      work_.step_arrays.view,
      TensorView(host_arrays_.data(), DType::kU8, {work_.step_arrays.view.dim(0)})));
  // Once for the memory, once for the recording.
  for (int pass = 0; pass < 2; ++pass) {
    for (int64_t t = options_.max_tokens; t > 0; t = PaddedBelow(t)) {
      RETURN_IF_ERROR(WarmUpStep(t));
    }
    for (int64_t n = options_.max_logits_rows; n > 0 && samples(); n = PaddedBelow(n)) {
      std::fill_n(host_rows_.begin(), n, 0);
      RETURN_IF_ERROR(backend_->Write(work_.row_idx.view.Slice(0, n),
                                      TensorView(host_rows_.data(), DType::kI32, {n})));
      RETURN_IF_ERROR(sampler_->Write({}, n));
      RETURN_IF_ERROR(ComputeSamples(n));
    }
  }
  return absl::OkStatus();
}

absl::Status ModelRunner::PrepareExperts() {
  for (const LayerWeights& layer : weights_.layers) {
    const MlpWeights& experts = layer.moe.experts;
    if (experts.down == nullptr) continue;
    RETURN_IF_ERROR(backend_->PrepareProducts(*experts.gate_up, work_.token_row.view.dim(0)));
    RETURN_IF_ERROR(backend_->PrepareProducts(*experts.down, work_.expert_act.view.dim(0)));
  }
  return absl::OkStatus();
}

absl::Status ModelRunner::WarmUpStep(int64_t num_tokens) {
  const std::vector<int32_t> no_queries = {0};
  ASSIGN_OR_RETURN(const int64_t num_rows, BeginStep(num_tokens));
  ASSIGN_OR_RETURN(const std::span<const Step> parts,
                   WriteParts({.cu_seqlens_q = no_queries}, num_rows));
  return RunLayers(parts);
}

absl::StatusOr<int64_t> ModelRunner::WriteRows(std::span<const int32_t> rows) {
  const int64_t num_rows = static_cast<int64_t>(rows.size());
  if (num_rows > options_.max_logits_rows) {
    return absl::InvalidArgumentError(
        absl::StrCat("at most ", options_.max_logits_rows, " rows of logits, given ", num_rows));
  }
  for (int32_t row : rows) {
    if (row >= 0 && row < last_num_tokens_) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("a row of logits must be in [0, ", last_num_tokens_, "), given ", row));
  }
  const int64_t padded = Padded(num_rows, options_.max_logits_rows);
  std::copy(rows.begin(), rows.end(), host_rows_.begin());
  std::fill(host_rows_.begin() + num_rows, host_rows_.begin() + padded, 0);
  RETURN_IF_ERROR(backend_->Write(work_.row_idx.view.Slice(0, padded),
                                  TensorView(host_rows_.data(), DType::kI32, {padded})));
  return padded;
}

absl::Status ModelRunner::ComputeLogits(int64_t num_rows) {
  const TensorView hidden = work_.hidden.view.Slice(0, num_rows);
  RETURN_IF_ERROR(backend_->GatherRows(
      {.x = work_.norm.view, .row_idx = work_.row_idx.view.Slice(0, num_rows), .out = hidden}));
  return backend_->Linear({.x = hidden,
                           .weight = weights_.head.get(),
                           .bias = {},
                           .out = work_.logits.view.Slice(0, num_rows)});
}

absl::Status ModelRunner::ComputeSamples(int64_t num_rows) {
  return backend_->RunStep(kSampleKey + num_rows, [&]() -> absl::Status {
    RETURN_IF_ERROR(ComputeLogits(num_rows));
    return sampler_->Run(work_.logits.view.Slice(0, num_rows));
  });
}

absl::StatusOr<std::span<const SampleResult>> ModelRunner::Sample(
    std::span<const int32_t> rows, std::span<const SampleRequest> requests) {
  if (rows.empty()) return std::span<const SampleResult>();
  RETURN_IF_ERROR(QueueSamples(rows, requests));
  return TakeSamples();
}

absl::Status ModelRunner::QueueSamples(std::span<const int32_t> rows,
                                       std::span<const SampleRequest> requests) {
  CHECK(sampler_ != nullptr && !rows.empty() && rows.size() == requests.size());
  ASSIGN_OR_RETURN(const int64_t padded, WriteRows(rows));
  RETURN_IF_ERROR(sampler_->Write(requests, padded));
  RETURN_IF_ERROR(ComputeSamples(padded));
  return sampler_->Queue();
}

absl::StatusOr<std::span<const SampleResult>> ModelRunner::TakeSamples() {
  // The device may wait for another rank: what waits for it alone has no deadline.
  if (group_.present()) {
    RETURN_IF_ERROR(group_.communicator->WaitUntil([this] { return sampler_->Done(); }));
  }
  return sampler_->Take();
}

absl::StatusOr<TensorView> ModelRunner::Logits(std::span<const int32_t> rows) {
  const int64_t num_rows = static_cast<int64_t>(rows.size());
  if (num_rows == 0) return work_.logits.view.Slice(0, 0);
  ASSIGN_OR_RETURN(const int64_t padded, WriteRows(rows));
  RETURN_IF_ERROR(backend_->RunStep(kLogitsKey + padded, [&] { return ComputeLogits(padded); }));
  const TensorView logits = work_.logits.view.Slice(0, num_rows);
  if (backend_->traits().host_memory) return logits;
  const TensorView host(host_logits_.data(), DType::kF32, {num_rows, config_.vocab_size});
  RETURN_IF_ERROR(backend_->Read(host, logits));
  return host;
}

}  // namespace jevons

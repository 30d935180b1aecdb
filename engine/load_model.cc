#include <algorithm>
#include <filesystem>
#include <limits>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/log.h"
#include "base/strings.h"
#include "cpu/cpu_backend.h"
#include "cuda/cuda_backend.h"
#include "engine/load_parts.h"
#include "engine/loaded_model.h"
#include "engine/no_tokenizer.h"
#include "model/model_size.h"
#include "model/tensor_specs.h"
#include "scheduler/block_manager.h"

namespace jevons {
namespace {

absl::Status CheckRange(absl::string_view flag, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(flag, " must be in [", low, ", ", high, "], given ", value));
}

absl::Status NoCublasLt(const EngineOptions& options, absl::string_view backend) {
  return absl::InvalidArgumentError(absl::StrCat("cublaslt-rows ", options.cublaslt_rows,
                                                 " needs backend cuda, given ", backend));
}

// Bytes of the KV cache where the user named none; weights are loaded already.
int64_t AffordableKvBytes(const LoadedModel& model, const ModelRunnerOptions& runner,
                          int64_t moving_bytes) {
  const int64_t available = model.backend->AvailableBytes();
  const BackendTraits traits = model.backend->traits();
  if (traits.host_memory) return available / 4 / model.options.num_ranks;
  return available - ReserveBytes(available) - moving_bytes -
         WorkspaceBytes(model.config, runner, traits);
}

// Each rank takes what all have room for.
absl::Status AgreeOnMemory(Communicator& group, EngineOptions& options) {
  int64_t limits[] = {options.max_model_len, options.kv_cache_tokens};
  RETURN_IF_ERROR(group.AllReduce(limits, ReduceOp::kMin));
  options.max_model_len = static_cast<int32_t>(limits[0]);
  options.kv_cache_tokens = limits[1];
  return absl::OkStatus();
}

// Fills max_model_len and kv_cache_tokens where they are 0, and the number of blocks. `group` is null
// where no other rank need agree.
absl::Status ResolveMemory(int32_t slots_per_rank, int64_t moving_bytes, Communicator* group,
                           LoadedModel& model) {
  EngineOptions& options = model.options;
  const bool len_given = options.max_model_len > 0;
  RETURN_IF_ERROR(ResolveModelLen(model.config, options));
  if (options.kv_cache_tokens == 0) {
    const BackendTraits traits = model.backend->traits();
    ASSIGN_OR_RETURN(const DType dtype, FindKvDType(options.kv_cache, traits));
    const int64_t bytes_per_token = KvBytesPerToken(KvLayers(model.config, dtype));
    ModelRunnerOptions runner = RunnerOptions(options, traits, 0, 0);
    runner.slots_per_rank = slots_per_rank;
    const int64_t affordable = AffordableKvBytes(model, runner, moving_bytes) / bytes_per_token;
    const int64_t useful = int64_t{options.max_num_seqs} * options.max_model_len;
    options.kv_cache_tokens = std::clamp<int64_t>(std::min(affordable, useful), kKvBlockTokens,
                                                  std::numeric_limits<int32_t>::max() / 2);
  }
  if (group != nullptr) RETURN_IF_ERROR(AgreeOnMemory(*group, options));
  model.num_blocks = static_cast<int32_t>(BlocksFor(options.kv_cache_tokens));
  options.kv_cache_tokens = int64_t{model.num_blocks} * kKvBlockTokens;
  if (!len_given && options.max_model_len > options.kv_cache_tokens) {
    options.max_model_len = static_cast<int32_t>(options.kv_cache_tokens);
  }
  return absl::OkStatus();
}

// Being refused is better than being killed in the middle of loading.
absl::Status CheckWeightsFit(int64_t bytes, const Backend& backend) {
  const int64_t available = backend.AvailableBytes();
  if (!backend.traits().host_memory || available == 0 || bytes <= available) {
    return absl::OkStatus();
  }
  return absl::ResourceExhaustedError(absl::StrFormat(
      "the weights take at least %.2f GB, but %.2f GB of memory are available to this process",
      static_cast<double>(bytes) / 1e9, static_cast<double>(available) / 1e9));
}

absl::StatusOr<ModelWeights> LoadWeights(const ModelConfig& config, const Checkpoint& checkpoint,
                                         const EngineOptions& options, const RankGroup& group,
                                         Backend& backend) {
  std::vector<std::vector<int32_t>> experts;
  for (const ExpertMap& map : group.maps) {
    experts.push_back(FilledSlots(map.experts_of_rank(group.communicator->info().rank)));
  }
  RETURN_IF_ERROR(CheckWeightsFit(LeastWeightBytes(config, experts), backend));
  const absl::Time start = absl::Now();
  ASSIGN_OR_RETURN(ModelWeights out, LoadModelWeights(config, checkpoint, backend, experts,
                                                      options.activation_precision));
  LogInfo("weights_loaded",
          {{"gigabytes", absl::StrFormat("%.2f", static_cast<double>(out.matrix_bytes) / 1e9)},
           {"seconds", absl::StrFormat("%.1f", absl::ToDoubleSeconds(absl::Now() - start))}});
  return out;
}

std::vector<int32_t> EndIds(const ModelConfig& config, const ChatFormat& chat_format) {
  std::set<int32_t> ids(config.eos_token_ids.begin(), config.eos_token_ids.end());
  ids.insert(chat_format.turn_end_ids().begin(), chat_format.turn_end_ids().end());
  return std::vector<int32_t>(ids.begin(), ids.end());
}

// Weights, memory, runner: all that is not in `out` yet.
absl::Status Load(const Checkpoint& checkpoint, absl::Duration patience, LoadedModel& out) {
  const ModelConfig& config = out.config;
  RETURN_IF_ERROR(CheckActivationPrecision(config, out.options));
  RankGroup group = {.communicator = out.communicator.get(), .maps = {}};
  if (out.in_group()) {
    ASSIGN_OR_RETURN(group.maps,
                     EvenMaps(config, out.options.num_ranks, out.options.num_redundant_experts));
  }
  const int32_t slots_per_rank = group.maps.empty() ? 0 : group.maps[0].slots_per_rank();
  // Before the weights, which take their time.
  RETURN_IF_ERROR(FindKvDType(out.options.kv_cache, out.backend->traits()).status());
  const absl::Time start = absl::Now();
  ASSIGN_OR_RETURN(ModelWeights weights,
                   LoadWeights(config, checkpoint, out.options, group, *out.backend));
  out.load_seconds_per_byte = absl::ToDoubleSeconds(absl::Now() - start) /
                              static_cast<double>(std::max<int64_t>(weights.matrix_bytes, 1));
  out.limits.vocab_size = config.vocab_size;
  out.limits.num_tokens = std::min(config.vocab_size, out.tokenizer->num_tokens());
  Communicator* others = nullptr;
  if (out.options.rank_transport != RankTransport::kThreads) others = out.communicator.get();
  // Free memory means something once all have their weights.
  if (others != nullptr) RETURN_IF_ERROR(others->Barrier(patience));
  const int64_t moving_bytes = out.in_group() ? MovingBytes(weights, out.options) : 0;
  RETURN_IF_ERROR(ResolveMemory(slots_per_rank, moving_bytes, others, out));
  ModelRunnerOptions runner =
      RunnerOptions(out.options, out.backend->traits(), out.num_blocks, out.limits.num_tokens);
  runner.slots_per_rank = slots_per_rank;
  ASSIGN_OR_RETURN(out.runner, ModelRunner::Create(config, std::move(weights), out.backend.get(),
                                                   runner, std::move(group)));
  RETURN_IF_ERROR(out.runner->WarmUp());
  out.limits.max_model_len = out.options.max_model_len;
  out.limits.kv_cache_tokens = out.options.kv_cache_tokens;
  if (out.in_group() && out.options.balance_interval_steps > 0) {
    EngineOptions beside = out.options;
    beside.num_threads = 1;
    beside.cublaslt_rows = 0;
    ASSIGN_OR_RETURN(out.packer, MakeBackend(beside));
  }
  return absl::OkStatus();
}

}  // namespace

int32_t LoadedModel::num_expert_slots() const {
  if (!in_group() || runner == nullptr) return 0;
  for (const std::vector<int32_t>& held : runner->held()) {
    if (!held.empty()) return static_cast<int32_t>(held.size());
  }
  return 0;
}

absl::Status CheckOptions(const EngineOptions& o) {
  if (o.cublaslt_rows > 0 && o.backend == BackendKind::kCpu) return NoCublasLt(o, "cpu");
  if (o.rank_transport == RankTransport::kNccl && o.backend == BackendKind::kCpu) {
    return absl::InvalidArgumentError("transport nccl joins GPUs, given backend cpu");
  }
  if (o.exchange_by == ExchangeBy::kKernels && o.backend != BackendKind::kCuda &&
      o.rank_transport != RankTransport::kNccl) {
    return absl::InvalidArgumentError(
        "exchange-by kernels is for ranks on GPUs: transport nccl, or processes with backend cuda");
  }
  // Threads move host memory.
  if (o.rank_transport == RankTransport::kThreads && o.backend == BackendKind::kCuda &&
      o.num_ranks > 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        o.num_ranks, " ranks with backend cuda need transport nccl or processes, given threads"));
  }
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
  RETURN_IF_ERROR(CheckRange("threads", o.num_threads, 0, 1024));
  RETURN_IF_ERROR(CheckRange("max-num-seqs", o.max_num_seqs, 1, 1024));
  RETURN_IF_ERROR(
      CheckRange("max-num-batched-tokens", o.max_num_batched_tokens, o.max_num_seqs, 65536));
  RETURN_IF_ERROR(CheckRange("max-prefill-chunk-tokens", o.max_prefill_chunk_tokens, 0, 65536));
  RETURN_IF_ERROR(CheckRange("max-model-len", o.max_model_len, 0, kMax));
  RETURN_IF_ERROR(CheckRange("kv-cache-tokens", o.kv_cache_tokens, 0, kMax));
  RETURN_IF_ERROR(CheckRange("max-queued-requests", o.max_queued_requests, 1, 1'000'000));
  RETURN_IF_ERROR(CheckRange("ranks", o.num_ranks, 1, 256));
  RETURN_IF_ERROR(CheckRange("cublaslt-rows", o.cublaslt_rows, 0, 65536));
  RETURN_IF_ERROR(CheckRange("balance-interval-steps", o.balance_interval_steps, 0, kMax));
  return CheckRange("redundant-experts", o.num_redundant_experts, 0, 65536);
}

absl::Status CheckActivationPrecision(const ModelConfig& config, const EngineOptions& options) {
  if (options.activation_precision == ActivationPrecision::kExact || config.stores_fp8) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      "activation-precision fp8 is for checkpoints with FP8 weights, given one without");
}

absl::Status ResolveModelLen(const ModelConfig& config, EngineOptions& options) {
  if (options.max_model_len > config.max_position_embeddings) {
    return absl::InvalidArgumentError(
        absl::StrCat("max-model-len must be at most the model's max_position_embeddings, ",
                     config.max_position_embeddings, ", given ", options.max_model_len));
  }
  if (options.max_model_len == 0) options.max_model_len = config.max_position_embeddings;
  return absl::OkStatus();
}

ModelRunnerOptions RunnerOptions(const EngineOptions& options, const BackendTraits& traits,
                                 int32_t num_blocks, int32_t num_valid_ids) {
  // Steps of decoding and short prompts. What is padded must fit too.
  const int32_t masked = options.num_ranks > 1 && !traits.host_memory
                             ? std::min(static_cast<int32_t>(PaddedStepRows(options.max_num_seqs)),
                                        options.max_num_batched_tokens)
                             : 0;
  const int32_t max_rows =
      traits.samples ? std::max(kMaxLogitsRows, options.max_num_seqs) : kMaxLogitsRows;
  return {.max_tokens = options.max_num_batched_tokens,
          .max_num_seqs = options.max_num_seqs,
          .max_positions = options.max_model_len,
          .max_logits_rows = std::min(max_rows, options.max_num_batched_tokens),
          .num_valid_ids = num_valid_ids,
          .num_blocks = num_blocks,
          .block_tokens = kKvBlockTokens,
          .kv_cache = options.kv_cache,
          .num_ranks = options.num_ranks,
          .masked_capacity = masked,
          .exchange_overlap = options.exchange_overlap,
          .exchange_precision = options.exchange_precision};
}

int64_t MovingBytes(const ModelWeights& weights, const EngineOptions& options) {
  if (options.balance_interval_steps == 0) return 0;
  int64_t most = 0;
  for (const LayerWeights& layer : weights.layers) {
    const MlpWeights& experts = layer.moe.experts;
    if (experts.down != nullptr)
      most = std::max(most, experts.gate_up->bytes() + experts.down->bytes());
  }
  return most;
}

int64_t ReserveBytes(int64_t free_bytes) { return std::max<int64_t>(free_bytes, 0) / 16; }

absl::StatusOr<OpenedModel> OpenModel(const EngineOptions& options) {
  RETURN_IF_ERROR(CheckOptions(options));
  const std::string& folder = options.model_folder;
  if (!std::filesystem::is_directory(folder)) {
    return absl::NotFoundError(absl::StrCat("model: no folder ", folder));
  }
  OpenedModel out;
  out.options = options;
  if (options.model_name.empty()) {
    out.options.model_name = std::filesystem::weakly_canonical(folder).filename().string();
  }
  ASSIGN_OR_RETURN(out.config, LoadModelConfig(folder));
  ASSIGN_OR_RETURN(out.checkpoint, Checkpoint::Open(folder));
  RETURN_IF_ERROR(CheckTensors(out.config, *out.checkpoint));
  if (StoredHeadDiffers(out.config, *out.checkpoint)) {
    LogWarning(
        "stored_head_ignored",
        {{"why", "tie_word_embeddings is true and lm_head.weight differs from the embedding"}});
  }
  return out;
}

absl::StatusOr<LoadedModel> LoadRank(const OpenedModel& model, const EngineOptions& options,
                                     std::unique_ptr<Backend> backend,
                                     std::unique_ptr<Communicator> communicator,
                                     absl::Duration patience) {
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatFormat> chat_format;
  if (std::filesystem::exists(options.model_folder + "/tokenizer.json")) {
    ASSIGN_OR_RETURN(tokenizer, Tokenizer::Load(options.model_folder));
    ASSIGN_OR_RETURN(chat_format, ChatFormat::Load(options.model_folder, *tokenizer));
  }
  ASSIGN_OR_RETURN(
      LoadedModel out,
      LoadModel(options, model.config, *model.checkpoint, std::move(tokenizer),
                std::move(chat_format), std::move(backend), std::move(communicator), patience));
  out.reopen = [folder = options.model_folder] { return Checkpoint::Open(folder); };
  return out;
}

EngineOptions WithThreads(const EngineOptions& options) {
  EngineOptions out = options;
  if (out.num_threads == 0) out.num_threads = std::max(UsableCpus() / options.num_ranks, 1);
  return out;
}

absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const EngineOptions& options) {
  const bool cuda =
      options.backend == BackendKind::kCuda || options.rank_transport == RankTransport::kNccl ||
      (options.backend == BackendKind::kAuto && options.num_ranks == 1 && NumCudaDevices() > 0);
  if (cuda) {
    // The exchanges of a group put kernels of their own between those of a step.
    const bool alone = options.rank_transport == RankTransport::kThreads;
    return CreateCudaBackend({.device = options.device,
                              .early_launches = alone,
                              .cublaslt_rows = options.cublaslt_rows});
  }
  if (options.cublaslt_rows > 0) return NoCublasLt(options, "auto, which is cpu here");
  ASSIGN_OR_RETURN(const CpuTarget target, ParseCpuTarget(options.cpu_target));
  return CreateCpuBackend({.num_threads = options.num_threads, .target = target});
}

absl::StatusOr<LoadedModel> LoadModel(const EngineOptions& options) {
  return LoadModel(options, nullptr, absl::ZeroDuration());
}

absl::StatusOr<LoadedModel> LoadModel(const EngineOptions& options,
                                      std::unique_ptr<Communicator> communicator,
                                      absl::Duration patience) {
  ASSIGN_OR_RETURN(const OpenedModel model, OpenModel(options));
  const EngineOptions resolved = WithThreads(model.options);
  ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend, MakeBackend(resolved));
  ASSIGN_OR_RETURN(communicator, ConnectBackend(std::move(communicator), resolved, *backend));
  return LoadRank(model, resolved, std::move(backend), std::move(communicator), patience);
}

absl::StatusOr<LoadedModel> LoadModel(const EngineOptions& options, const ModelConfig& config,
                                      const Checkpoint& checkpoint,
                                      std::unique_ptr<Tokenizer> tokenizer,
                                      std::unique_ptr<ChatFormat> chat_format,
                                      std::unique_ptr<Communicator> communicator,
                                      absl::Duration patience) {
  RETURN_IF_ERROR(CheckOptions(options));
  const EngineOptions resolved = WithThreads(options);
  ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend, MakeBackend(resolved));
  ASSIGN_OR_RETURN(communicator, ConnectBackend(std::move(communicator), resolved, *backend));
  return LoadModel(resolved, config, checkpoint, std::move(tokenizer), std::move(chat_format),
                   std::move(backend), std::move(communicator), patience);
}

absl::StatusOr<LoadedModel> LoadModel(const EngineOptions& options, const ModelConfig& config,
                                      const Checkpoint& checkpoint,
                                      std::unique_ptr<Tokenizer> tokenizer,
                                      std::unique_ptr<ChatFormat> chat_format,
                                      std::unique_ptr<Backend> backend,
                                      std::unique_ptr<Communicator> communicator,
                                      absl::Duration patience) {
  RETURN_IF_ERROR(CheckOptions(options));
  LoadedModel out;
  out.config = config;
  out.options = options;
  out.backend = std::move(backend);
  out.tokenizer =
      tokenizer ? std::move(tokenizer) : std::make_unique<NoTokenizer>(config.vocab_size);
  out.chat_format = chat_format ? std::move(chat_format) : std::make_unique<NoChatFormat>();
  out.end_ids = EndIds(config, *out.chat_format);
  out.communicator = std::move(communicator);
  const absl::Status status = Load(checkpoint, patience, out);
  if (status.ok()) return out;
  // The others may wait for it on their devices.
  if (out.in_group() && !out.backend->traits().host_memory) {
    out.communicator->Abort(std::string(status.message()));
  }
  return status;
}

}  // namespace jevons

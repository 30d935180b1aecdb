// Everything that one served model consists of, ready to run.
#pragma once

#include <functional>
#include <memory>

#include "base/status.h"
#include "engine/engine.h"
#include "model/checkpoint.h"
#include "model/model_runner.h"
#include "ops/backend.h"
#include "parallel/device_group.h"
#include "parallel/thread_communicator.h"

namespace jevons {

// Rows of logits that are held at once: a long scored prompt goes through in slices. A device that
// samples holds one for each sequence at least, so that a step of decoding is one call.
inline constexpr int32_t kMaxLogitsRows = 64;

struct LoadedModel {
  bool in_group() const { return communicator != nullptr; }
  // Of each MoE layer of a rank of a group; else 0.
  int32_t num_expert_slots() const;

  ModelConfig config;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatFormat> chat_format;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Communicator> communicator;  // null without a group; may queue among the ops
  std::unique_ptr<ModelRunner> runner;         // uses `backend` and `communicator`
  EngineOptions options;                       // resolved
  std::vector<int32_t> end_ids;                // of the model's files and its chat template, rising
  GenerationLimits limits;
  int32_t num_blocks = 0;
  // Opens the checkpoint once more, on any thread; empty where that cannot be.
  std::function<absl::StatusOr<std::unique_ptr<Checkpoint>>()> reopen;
  double load_seconds_per_byte = 0;  // of packed weights
  // Packs weights beside the engine's thread, on its device; null where experts stay where they are.
  std::unique_ptr<Backend> packer;
};

// Breaks the model's group, if it has one, and waits until its device has come to the end of what was
// queued, so that nothing touches what belongs to a step. INTERNAL where the device has failed, or
// does not come to its end in time.
absl::Status SettleDevice(LoadedModel& model);

// SettleDevice; then the model has no group, no cache and nothing recorded, but its weights. What packs
// beside the engine must have ended.
absl::Status LeaveGroup(LoadedModel& model);

// The member for the data of `backend`: `host` itself, or one over NCCL beside it where the data is on
// a device. Null stays null. `cancelled` as in NcclOptions.
absl::StatusOr<std::unique_ptr<Communicator>> ConnectBackend(
    std::unique_ptr<Communicator> host, const EngineOptions& options, const Backend& backend,
    const std::function<bool()>& cancelled = {});

// Gives a model that has left its group another one, of which it is a member with the experts that it
// holds: ranks tell each other what they hold, and what none holds any more is read. All ranks of
// `group` call it, each waits up to `patience` for the others to have read. The cache is empty
// afterwards. After an error of the group's the model may leave it and be given another; after any
// other it is of no further use. `group` is taken once the model uses it.
absl::Status Regroup(LoadedModel& model, std::unique_ptr<Communicator>& group,
                     absl::Duration patience);

// From a checkpoint folder. A folder without tokenizer.json loads: prompts are then token ids
// alone.
absl::StatusOr<LoadedModel> LoadModel(const EngineOptions& options);
// The same of one rank of a group. Ranks that load at the same time, over another transport than threads,
// wait up to `patience` for each other to have their weights, and agree on max_model_len and
// kv_cache_tokens.
absl::StatusOr<LoadedModel> LoadModel(const EngineOptions& options,
                                      std::unique_ptr<Communicator> communicator,
                                      absl::Duration patience);

// From tensors that the caller provides (a bench, a test); `tokenizer` may be null.
absl::StatusOr<LoadedModel> LoadModel(const EngineOptions& options, const ModelConfig& config,
                                      const Checkpoint& checkpoint,
                                      std::unique_ptr<Tokenizer> tokenizer,
                                      std::unique_ptr<ChatFormat> chat_format,
                                      std::unique_ptr<Communicator> communicator = nullptr,
                                      absl::Duration patience = absl::ZeroDuration());

// The models of a group of ranks in this process, by rank. Their communicators are members of one of the
// two; those of `devices` must end at the same time.
struct LoadedGroup {
  std::unique_ptr<ThreadGroup> threads;
  std::unique_ptr<DeviceGroup> devices;
  std::vector<LoadedModel> models;
};
// With transport nccl rank r is on device r: FAILED_PRECONDITION where there are fewer devices,
// UNIMPLEMENTED in a build without CUDA or NCCL, else the error of the first rank that failed.
absl::StatusOr<LoadedGroup> LoadModelGroup(const EngineOptions& options);
// The same from tensors that the caller provides, without a tokenizer. With transport nccl ranks read
// them at the same time.
absl::StatusOr<LoadedGroup> LoadModelGroup(const EngineOptions& options, const ModelConfig& config,
                                           const Checkpoint& checkpoint);

// The same on a backend that the caller has made; options.backend says nothing then.
absl::StatusOr<LoadedModel> LoadModel(const EngineOptions& options, const ModelConfig& config,
                                      const Checkpoint& checkpoint,
                                      std::unique_ptr<Tokenizer> tokenizer,
                                      std::unique_ptr<ChatFormat> chat_format,
                                      std::unique_ptr<Backend> backend,
                                      std::unique_ptr<Communicator> communicator = nullptr,
                                      absl::Duration patience = absl::ZeroDuration());

// FAILED_PRECONDITION with both numbers where this host has fewer GPUs than `num_ranks`; UNIMPLEMENTED
// in a build without CUDA.
absl::Status CheckDevices(int32_t num_ranks);
// Each option within its range.
absl::Status CheckOptions(const EngineOptions& options);
// INVALID_ARGUMENT for an activation_precision that a model without FP8 weights has no use for.
absl::Status CheckActivationPrecision(const ModelConfig& config, const EngineOptions& options);
// Fills max_model_len where it is 0; INVALID_ARGUMENT beyond what the model's positions allow.
absl::Status ResolveModelLen(const ModelConfig& config, EngineOptions& options);
ModelRunnerOptions RunnerOptions(const EngineOptions& options, const BackendTraits& traits,
                                 int32_t num_blocks, int32_t num_valid_ids);
// Of a group's device for experts that move: those of a layer are there twice meanwhile.
int64_t MovingBytes(const ModelWeights& weights, const EngineOptions& options);
// Of a device's memory beside the weights: for the driver, recorded steps and small tables.
int64_t ReserveBytes(int64_t free_bytes);

// Engine::Create for what is loaded already.
std::unique_ptr<Engine> StartEngine(LoadedModel model, const Clock* clock);
std::unique_ptr<Engine> StartEngine(LoadedGroup group, const Clock* clock);

}  // namespace jevons

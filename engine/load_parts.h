// What loading one model and loading those of a group share.
#pragma once

#include <memory>

#include "base/status.h"
#include "engine/loaded_model.h"

namespace jevons {

// A checkpoint folder that has passed its checks.
struct OpenedModel {
  EngineOptions options;  // with the model's name
  ModelConfig config;
  std::unique_ptr<Checkpoint> checkpoint;
};
absl::StatusOr<OpenedModel> OpenModel(const EngineOptions& options);

// num_threads where it is 0: a rank's share of the CPUs.
EngineOptions WithThreads(const EngineOptions& options);

// The backend of a rank, on the calling thread. `options` are of WithThreads.
absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const EngineOptions& options);

// With the folder's tokenizer and template.
absl::StatusOr<LoadedModel> LoadRank(const OpenedModel& model, const EngineOptions& options,
                                     std::unique_ptr<Backend> backend,
                                     std::unique_ptr<Communicator> communicator,
                                     absl::Duration patience);

}  // namespace jevons

#include <atomic>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "cuda/cuda_backend.h"
#include "engine/load_parts.h"
#include "engine/loaded_model.h"

namespace jevons {
namespace {

// For the others to have their weights.
constexpr absl::Duration kLoadTime = absl::Minutes(30);

using LoadFn = absl::FunctionRef<absl::StatusOr<LoadedModel>(
    const EngineOptions& options, std::unique_ptr<Backend> backend,
    std::unique_ptr<Communicator> communicator)>;

// One rank after the other.
absl::StatusOr<LoadedGroup> LoadThreads(const EngineOptions& options, LoadFn load) {
  LoadedGroup out;
  out.threads = std::make_unique<ThreadGroup>(options.num_ranks);
  EngineOptions of_rank = options;
  for (int32_t r = 0; r < options.num_ranks; ++r) {
    ASSIGN_OR_RETURN(std::unique_ptr<Communicator> communicator, out.threads->Join(r));
    ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend, MakeBackend(of_rank));
    ASSIGN_OR_RETURN(LoadedModel model, load(of_rank, std::move(backend), std::move(communicator)));
    // What the first rank found room for is what every rank has.
    of_rank.max_model_len = model.options.max_model_len;
    of_rank.kv_cache_tokens = model.options.kv_cache_tokens;
    out.models.push_back(std::move(model));
  }
  return out;
}

absl::StatusOr<LoadedModel> LoadDevice(EngineOptions options, int32_t rank, DeviceGroup& group,
                                       LoadFn load) {
  options.device = rank;
  ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend, MakeBackend(options));
  ASSIGN_OR_RETURN(std::unique_ptr<Communicator> communicator,
                   group.Join(rank, rank, backend->queue()));
  return load(options, std::move(backend), std::move(communicator));
}

// All ranks at the same time: what they do on their devices they do together.
absl::StatusOr<LoadedGroup> LoadDevices(const EngineOptions& options, LoadFn load) {
  RETURN_IF_ERROR(CheckDevices(options.num_ranks));
  LoadedGroup out;
  out.devices = std::make_unique<DeviceGroup>(
      options.num_ranks, CommunicatorOptions{.exchange_by = options.exchange_by});
  std::vector<absl::StatusOr<LoadedModel>> models(static_cast<size_t>(options.num_ranks));
  std::atomic<int32_t> first_failed = -1;
  std::vector<std::thread> threads;
  for (int32_t r = 0; r < options.num_ranks; ++r) {
    threads.emplace_back([&, r] {
      models[r] = LoadDevice(options, r, *out.devices, load);
      if (models[r].ok()) return;
      int32_t none = -1;
      first_failed.compare_exchange_strong(none, r);
      out.devices->Abort(std::string(models[r].status().message()));
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (first_failed >= 0) {
    const absl::Status& status = models[first_failed].status();
    return absl::Status(status.code(),
                        absl::StrCat("rank ", first_failed.load(), ": ", status.message()));
  }
  for (absl::StatusOr<LoadedModel>& model : models) out.models.push_back(*std::move(model));
  return out;
}

absl::StatusOr<LoadedGroup> LoadGroup(const EngineOptions& options, LoadFn load) {
  const EngineOptions resolved = WithThreads(options);
  return options.rank_transport == RankTransport::kNccl ? LoadDevices(resolved, load)
                                                        : LoadThreads(resolved, load);
}

}  // namespace

absl::Status CheckDevices(int32_t num_ranks) {
  const int32_t found = NumCudaDevices();
  if (found >= num_ranks) return absl::OkStatus();
  if (found == 0) {
    // A build without CUDA says so.
    const absl::Status status = CreateCudaBackend({}).status();
    if (absl::IsUnimplemented(status)) return status;
  }
  return absl::FailedPreconditionError(
      absl::StrCat(num_ranks, " ranks over nccl need a GPU each, found ", found));
}

absl::StatusOr<LoadedGroup> LoadModelGroup(const EngineOptions& options) {
  ASSIGN_OR_RETURN(const OpenedModel model, OpenModel(options));
  return LoadGroup(
      model.options, [&](const EngineOptions& of_rank, std::unique_ptr<Backend> backend,
                         std::unique_ptr<Communicator> communicator) {
        return LoadRank(model, of_rank, std::move(backend), std::move(communicator), kLoadTime);
      });
}

absl::StatusOr<LoadedGroup> LoadModelGroup(const EngineOptions& options, const ModelConfig& config,
                                           const Checkpoint& checkpoint) {
  RETURN_IF_ERROR(CheckOptions(options));
  return LoadGroup(options, [&](const EngineOptions& of_rank, std::unique_ptr<Backend> backend,
                                std::unique_ptr<Communicator> communicator) {
    return LoadModel(of_rank, config, checkpoint, nullptr, nullptr, std::move(backend),
                     std::move(communicator), kLoadTime);
  });
}

}  // namespace jevons

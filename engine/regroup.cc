// A loaded model that gets another group.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/log.h"
#include "base/mutex.h"
#include "engine/expert_reader.h"
#include "parallel/held_experts.h"
#include "parallel/nccl_communicator.h"

namespace jevons {
namespace {

// For what is queued behind an exchange that was aborted: steps of other work.
constexpr absl::Duration kSettleTime = absl::Seconds(5);
constexpr absl::Duration kPoll = absl::Milliseconds(1);

// What each rank holds of a MoE layer.
using HeldByRank = std::vector<std::vector<int32_t>>;

// Waits for all that is queued, in which nothing waits for another rank any more.
absl::Status AwaitDevice(Backend& backend) {
  const SteadyTime end = SteadyDeadline(kSettleTime);
  while (true) {
    const absl::StatusOr<bool> done = backend.Done();
    if (!done.ok()) {
      return absl::InternalError(absl::StrCat("the device failed: ", done.status().message()));
    }
    if (*done) return absl::OkStatus();
    if (std::chrono::steady_clock::now() >= end) {
      return absl::InternalError(absl::StrCat("the device failed: its work does not end within ",
                                              absl::FormatDuration(kSettleTime)));
    }
    absl::SleepFor(kPoll);
  }
}

// AllGather of host memory through the backend's.
absl::Status GatherValues(std::vector<int32_t>& sent, std::vector<int32_t>& got, Backend& backend,
                          Communicator& group) {
  const auto view = [](std::vector<int32_t>& values) {
    return TensorView(values.data(), DType::kI32, {static_cast<int64_t>(values.size())});
  };
  ASSIGN_OR_RETURN(const DeviceTensor from, backend.Upload(view(sent)));
  ASSIGN_OR_RETURN(const DeviceTensor to, backend.Upload(view(got)));
  absl::Status gathered = group.AllGather(
      from.view.data, static_cast<int64_t>(sent.size() * sizeof(int32_t)), to.view.data);
  if (gathered.ok()) gathered = group.Wait();
  if (gathered.ok()) return backend.Read(view(got), to.view);
  // What was queued may touch the buffers until then.
  RETURN_IF_ERROR(AwaitDevice(backend));
  return gathered;
}

// By MoE layer.
absl::StatusOr<std::vector<HeldByRank>> GatherHeld(const HeldByRank& own,
                                                   const std::vector<int32_t>& layers,
                                                   Backend& backend, Communicator& group) {
  int64_t num_slots = 0;
  for (int32_t layer : layers) {
    num_slots = std::max(num_slots, static_cast<int64_t>(own[layer].size()));
  }
  RETURN_IF_ERROR(group.AllReduce(std::span(&num_slots, 1), ReduceOp::kMax));
  std::vector<int32_t> sent;
  for (int32_t layer : layers) {
    sent.insert(sent.end(), own[layer].begin(), own[layer].end());
    sent.resize(sent.size() + num_slots - own[layer].size(), -1);
  }
  const auto num_ranks = static_cast<size_t>(group.info().world_size);
  std::vector<int32_t> got(num_ranks * sent.size());
  RETURN_IF_ERROR(GatherValues(sent, got, backend, group));
  std::vector<HeldByRank> out(layers.size(), HeldByRank(num_ranks));
  for (size_t r = 0; r < num_ranks; ++r) {
    for (size_t i = 0; i < layers.size(); ++i) {
      const auto begin = got.begin() + static_cast<int64_t>(r * sent.size()) + i * num_slots;
      out[i][r].assign(begin, begin + num_slots);
    }
  }
  return out;
}

// By MoE layer, all with as many slots.
absl::StatusOr<std::vector<ExpertMap>> MapsOfHeld(int32_t num_experts,
                                                  std::vector<HeldByRank>& held) {
  std::vector<ExpertMap> out;
  int32_t num_slots = 0;
  for (const HeldByRank& layer : held) {
    ASSIGN_OR_RETURN(ExpertMap map, MapOfHeld(num_experts, layer));
    num_slots = std::max(num_slots, map.slots_per_rank());
    out.push_back(std::move(map));
  }
  for (size_t i = 0; i < held.size(); ++i) {
    if (out[i].slots_per_rank() == num_slots) continue;
    for (std::vector<int32_t>& own : held[i]) own.resize(num_slots, -1);
    ASSIGN_OR_RETURN(out[i], MapOfHeld(num_experts, held[i]));
  }
  return out;
}

// Whether this rank's slots of the layer change: then it holds others from now on.
absl::StatusOr<bool> HoldSlots(LoadedModel& model, int32_t layer,
                               std::span<const int32_t> slot_expert, ExpertReader& reader) {
  const std::vector<int32_t> held = model.runner->held()[layer];
  if (std::equal(held.begin(), held.end(), slot_expert.begin(), slot_expert.end())) return false;
  // A device need not have room for them twice: all of the layer is read.
  if (!model.backend->traits().host_memory) model.runner->Hold(layer, held, {});
  ASSIGN_OR_RETURN(MlpWeights experts, reader.Read(layer, slot_expert));
  model.runner->Hold(layer, {slot_expert.begin(), slot_expert.end()}, std::move(experts));
  return true;
}

// A runner of the model as it is, in its group.
absl::Status MakeRunner(LoadedModel& model, std::vector<ExpertMap> maps) {
  ModelRunnerOptions options = RunnerOptions(model.options, model.backend->traits(),
                                             model.num_blocks, model.limits.num_tokens);
  if (!maps.empty()) options.slots_per_rank = maps[0].slots_per_rank();
  ModelWeights weights = model.runner->TakeWeights();
  model.runner.reset();
  auto runner =
      ModelRunner::Create(model.config, std::move(weights), model.backend.get(), options,
                          {.communicator = model.communicator.get(), .maps = std::move(maps)});
  if (absl::IsResourceExhausted(runner.status())) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a cache of ", model.options.kv_cache_tokens,
                     " tokens does not fit beside the experts of lost ranks, ",
                     options.slots_per_rank, " a layer: ", runner.status().message()));
  }
  ASSIGN_OR_RETURN(model.runner, std::move(runner));
  return model.runner->WarmUp();
}

}  // namespace

absl::Status SettleDevice(LoadedModel& model) {
  if (model.in_group()) model.communicator->Abort("the ranks form another group");
  return AwaitDevice(*model.backend);
}

absl::Status LeaveGroup(LoadedModel& model) {
  RETURN_IF_ERROR(SettleDevice(model));
  // Before the communicator, which waits for what holds its calls.
  model.runner->Halt();
  model.communicator.reset();
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Communicator>> ConnectBackend(
    std::unique_ptr<Communicator> host, const EngineOptions& options, const Backend& backend,
    const std::function<bool()>& cancelled) {
  if (host == nullptr || backend.traits().host_memory) return host;
  return CreateNcclCommunicator(std::move(host), {.device = options.device,
                                                  .stream = backend.queue(),
                                                  .exchange_by = options.exchange_by,
                                                  .cancelled = cancelled});
}

absl::Status Regroup(LoadedModel& model, std::unique_ptr<Communicator>& group,
                     absl::Duration patience) {
  const RankInfo info = group->info();
  std::vector<int32_t> layers;
  for (int32_t i = 0; i < model.config.num_hidden_layers; ++i) {
    if (model.config.IsMoeLayer(i)) layers.push_back(i);
  }
  std::vector<ExpertMap> maps;
  int32_t num_changed = 0;
  if (!layers.empty()) {
    ASSIGN_OR_RETURN(std::vector<HeldByRank> held,
                     GatherHeld(model.runner->held(), layers, *model.backend, *group));
    ASSIGN_OR_RETURN(const std::vector<ExpertMap> of_layers,
                     MapsOfHeld(model.config.n_routed_experts, held));
    maps.assign(model.config.num_hidden_layers, of_layers[0]);
    ExpertReader reader(&model, model.backend.get());
    for (size_t i = 0; i < layers.size(); ++i) {
      maps[layers[i]] = of_layers[i];
      ASSIGN_OR_RETURN(
          const bool changed,
          HoldSlots(model, layers[i], of_layers[i].experts_of_rank(info.rank), reader));
      num_changed += changed ? 1 : 0;
    }
  }
  RETURN_IF_ERROR(group->Barrier(patience));
  LogInfo("regrouped",
          {{"ranks", info.world_size}, {"place", info.rank}, {"layers_changed", num_changed}});
  model.options.num_ranks = info.world_size;
  model.communicator = std::move(group);
  return MakeRunner(model, std::move(maps));
}

}  // namespace jevons

#include "engine/process_rank.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "cpu/cpu_backend.h"
#include "cuda/cuda_backend.h"
#include "engine/engine_group.h"
#include "engine/load_parts.h"
#include "model/checkpoint_fingerprint.h"
#include "parallel/gloo_communicator.h"

namespace jevons {
namespace {

constexpr absl::Duration kJoinTime = absl::Seconds(30);
// Ranks that are left come at once, but for the layer that they compute.
constexpr absl::Duration kRejoinTime = absl::Seconds(10);
// Then nobody computes. As long as a rank may be silent in a group that forms.
constexpr absl::Duration kReconnectTime = absl::Seconds(4);

GlooOptions MakeGlooOptions(const ProcessRankOptions& options) {
  GlooOptions out;
  out.rendezvous.listen_host = options.listen_host;
  out.rendezvous.timeout = kJoinTime;
  for (const GroupFact& fact : options.facts) {
    absl::StrAppend(&out.rendezvous.fingerprint, fact.name, " ", fact.value, "; ");
  }
  return out;
}

// What computes the same bits at all ranks.
absl::StatusOr<GroupFact> ArithmeticFact(const EngineOptions& options) {
  if (options.backend == BackendKind::kCuda) {
    ASSIGN_OR_RETURN(std::string arch, CudaDeviceArch(options.device));
    return GroupFact{"the device's architecture", std::move(arch)};
  }
  ASSIGN_OR_RETURN(std::string target, UseCpuTarget(options.cpu_target));
  return GroupFact{"the instruction set", std::move(target)};
}

// A device has no memory left when it has served: what lost ranks held needs slots that are there.
void WarnOfFewSlots(const LoadedModel& model) {
  const EngineOptions& options = model.options;
  const int32_t num_experts = model.config.n_routed_experts;
  if (model.backend->traits().host_memory || num_experts == 0 || options.num_ranks == 1) return;
  const int32_t others = options.num_ranks - 1;
  const int32_t enough = options.num_ranks * ((num_experts + others - 1) / others) - num_experts;
  if (options.num_redundant_experts >= enough) return;
  LogWarning("a_lost_rank_may_leave_no_room",
             {{"redundant_experts", options.num_redundant_experts}, {"enough", enough}});
}

// The place of a rank outside its group. While it loads it agrees with itself; afterwards every call says
// that there is no group.
class OutsideGroup : public Communicator {
 public:
  explicit OutsideGroup(const RankInfo& info) : info_(info) {}

  void EndLoading() { status_ = absl::AbortedError("this rank has not joined the others yet"); }

  std::string Description() const override { return "no group"; }
  RankInfo info() const override { return info_; }
  absl::Status AllToAll(const AllToAllArgs&) override { return status_; }
  absl::Status AllGather(const void*, int64_t, void*) override { return status_; }
  absl::Status Broadcast(void*, int64_t, int32_t) override { return status_; }
  absl::Status AllReduce(std::span<int64_t>, ReduceOp) override { return status_; }
  absl::Status Barrier(absl::Duration) override { return status_; }
  absl::Status Wait() override { return status_; }
  void Abort(const std::string&) override {}

 private:
  const RankInfo info_;
  absl::Status status_;
};

}  // namespace

absl::StatusOr<std::vector<GroupFact>> GroupFacts(const EngineOptions& options) {
  RETURN_IF_ERROR(CheckOptions(options));
  ASSIGN_OR_RETURN(GroupFact arithmetic, ArithmeticFact(options));
  ASSIGN_OR_RETURN(std::string checkpoint, CheckpointFingerprint(options.model_folder));
  return std::vector<GroupFact>{
      {"the checkpoint", std::move(checkpoint)},
      {"the backend", options.backend == BackendKind::kCuda ? "cuda" : "cpu"},
      std::move(arithmetic),
      {"--max-num-seqs", absl::StrCat(options.max_num_seqs)},
      {"--max-num-batched-tokens", absl::StrCat(options.max_num_batched_tokens)},
      {"--max-model-len", absl::StrCat(options.max_model_len)},
      {"--kv-cache-tokens", absl::StrCat(options.kv_cache_tokens)},
      {"--kv-cache-dtype", std::string(KvCacheTypeName(options.kv_cache))},
      {"--activation-precision",
       std::string(ActivationPrecisionName(options.activation_precision))},
      {"--redundant-experts", absl::StrCat(options.num_redundant_experts)},
      {"--overlap-exchange", std::string(ExchangeOverlapName(options.exchange_overlap))},
      {"--exchange-precision", std::string(ExchangePrecisionName(options.exchange_precision))},
      {"--exchange-by", std::string(ExchangeByName(options.exchange_by))},
      {"--cublaslt-rows", absl::StrCat(options.cublaslt_rows)},
      {"--balance-interval-steps", absl::StrCat(options.balance_interval_steps)}};
}

absl::StatusOr<LoadedModel> LoadProcessRank(const ProcessRankOptions& options) {
  GlooOptions gloo = MakeGlooOptions(options);
  gloo.rendezvous.info = {.rank = options.rank, .world_size = options.engine.num_ranks};
  gloo.rendezvous.leader = options.rendezvous;
  ASSIGN_OR_RETURN(std::unique_ptr<Communicator> communicator, CreateGlooCommunicator(gloo));
  ASSIGN_OR_RETURN(LoadedModel out,
                   LoadModel(options.engine, std::move(communicator), options.load_timeout));
  RETURN_IF_ERROR(out.communicator->Barrier(options.load_timeout));
  if (options.rank == 0) WarnOfFewSlots(out);
  return out;
}

absl::StatusOr<LoadedModel> LoadReturningRank(const ProcessRankOptions& options,
                                              const GroupShape& shape) {
  EngineOptions engine = options.engine;
  engine.max_model_len = shape.max_model_len;
  engine.kv_cache_tokens = shape.kv_cache_tokens;
  // With as many slots as the others have nothing has to be read once it is among them.
  ASSIGN_OR_RETURN(const OpenedModel model, OpenModel(engine));
  engine = WithThreads(model.options);
  engine.num_redundant_experts =
      std::max(shape.num_slots * engine.num_ranks - model.config.n_routed_experts, 0);
  auto outside = std::make_unique<OutsideGroup>(
      RankInfo{.rank = options.rank, .world_size = engine.num_ranks});
  OutsideGroup* const group = outside.get();
  ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend, MakeBackend(engine));
  ASSIGN_OR_RETURN(LoadedModel out, LoadRank(model, engine, std::move(backend), std::move(outside),
                                             options.load_timeout));
  out.options.num_redundant_experts = options.engine.num_redundant_experts;
  group->EndLoading();
  return out;
}

JoinGroup JoinerOf(const ProcessRankOptions& options) {
  return [options](const Membership& membership, const std::function<bool()>& cancelled)
             -> absl::StatusOr<std::unique_ptr<Communicator>> {
    const auto place = std::find(membership.ranks.begin(), membership.ranks.end(), options.rank);
    if (place == membership.ranks.end()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "rank ", options.rank, " is not in the group any more: ", membership.reason));
    }
    GlooOptions gloo = MakeGlooOptions(options);
    gloo.rendezvous.info = {.rank = static_cast<int32_t>(place - membership.ranks.begin()),
                            .world_size = static_cast<int32_t>(membership.ranks.size())};
    gloo.rendezvous.leader = membership.rendezvous;
    gloo.rendezvous.timeout = kRejoinTime;
    gloo.rendezvous.cancelled = cancelled;
    gloo.connect_timeout = kReconnectTime;
    absl::StrAppend(&gloo.rendezvous.fingerprint, "epoch ", membership.epoch);
    return CreateGlooCommunicator(gloo);
  };
}

std::unique_ptr<Engine> StartEngine(LoadedModel first, std::unique_ptr<RemoteRanks> others,
                                    const Clock* clock, JoinGroup join) {
  return std::make_unique<EngineGroup>(std::move(first), std::move(others), clock, std::move(join));
}

}  // namespace jevons

#include "server/cmd_ranks.h"

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "server/rank_follower.h"

namespace jevons {

void AddRanks(CLI::App& cmd, RankFlags& flags) {
  cmd.add_option("--ranks", flags.place.ranks,
                 "Ranks that share the experts of the model; threads, sequences, batch, KV cache "
                 "and queue are then those of each rank")
      ->check(InRange<int64_t>(1, 256))
      ->default_str("1");
  cmd.add_option(
         "--transport", flags.transport,
         "How the ranks reach each other. threads: all in this process; processes: one each, over "
         "TCP, started here unless there is a --rank or a launcher's environment, with --backend "
         "cuda on a GPU each and over NCCL too; nccl: all in this process, rank r on GPU r")
      ->check(CLI::IsMember({"threads", "processes", "nccl"}))
      ->capture_default_str();
  cmd.add_option("--rank", flags.place.rank, "Which rank this process is; needs --leader")
      ->check(InRange<int64_t>(0, 255));
  cmd.add_option(
      "--leader", flags.place.leader,
      "HOST:PORT where rank 0 listens for the other ranks; keep it on a trusted network");
  cmd.add_option("--device", flags.device,
                 "Which GPU this process takes with --backend cuda; default: its rank among the "
                 "launcher's on this host, else 0")
      ->check(InRange<int64_t>(0, 255));
  cmd.add_option("--redundant-experts", flags.redundant_experts,
                 "Expert slots of the group beside one for each expert; rounded up to as many for "
                 "each rank")
      ->check(InRange<int64_t>(0, 65536))
      ->capture_default_str();
  cmd.add_option(
         "--balance-interval-steps", flags.balance_interval_steps,
         "Steps between looks at the experts' load, after which ranks may change experts; 0: never")
      ->check(InRange<int64_t>(0, 2147483647))
      ->capture_default_str();
  cmd.add_option(
         "--overlap-exchange", flags.overlap_exchange,
         "What is computed while ranks exchange tokens: nothing, shared experts, or one half "
         "of a large step beside the other. The tokens are the same")
      ->check(CLI::IsMember({"off", "shared", "batches"}))
      ->capture_default_str();
  cmd.add_option(
         "--exchange-precision", flags.exchange_precision,
         "exact: ranks send what experts read as it is, and the tokens are those of one rank; fp8: "
         "rounded to 8 bits on every rank, half or a quarter of the bytes, and the tokens are "
         "those "
         "of any group with fp8, but not of one rank")
      ->check(CLI::IsMember({"exact", "fp8"}))
      ->capture_default_str();
  cmd.add_option(
         "--exchange-by", flags.exchange_by,
         "How tokens travel between GPUs. calls: by NCCL's; kernels: every GPU stores them in "
         "the others' memory, which it must reach over NVLink or within one host. The tokens "
         "are the same")
      ->check(CLI::IsMember({"calls", "kernels"}))
      ->capture_default_str();
  cmd.add_option("--join-seconds", flags.join_seconds,
                 "How long ranks wait for each other at start")
      ->check(InRange<int64_t>(1, 86400))
      ->capture_default_str();
  cmd.add_option("--load-seconds", flags.load_seconds,
                 "How long ranks wait for each other to load their weights")
      ->check(InRange<int64_t>(1, 86400))
      ->capture_default_str();
  cmd.add_option("--rank-timeout-ms", flags.rank_timeout_ms,
                 "A rank that is silent for longer is lost, and the others go on without it")
      ->check(InRange<int64_t>(500, 600'000))
      ->capture_default_str();
  cmd.add_option("--restart-seconds", flags.restart_seconds,
                 "With transport processes: a rank that was started here and is lost is started "
                 "again after so many seconds, longer each time; 0: never")
      ->check(InRange<int64_t>(0, 300))
      ->capture_default_str();
}

namespace {

// What a process is told of its GPU. Those that it starts itself are told theirs.
absl::Status CheckDeviceFlag(const RankFlags& flags, const EngineOptions& engine,
                             const RankPlace& place) {
  if (!flags.device) return absl::OkStatus();
  const std::string given = absl::StrCat("--device ", *flags.device);
  if (engine.backend != BackendKind::kCuda) {
    return absl::InvalidArgumentError(absl::StrCat(given, " needs --backend cuda"));
  }
  if (engine.rank_transport == RankTransport::kNccl) {
    return absl::InvalidArgumentError(
        absl::StrCat(given, " does not fit --transport nccl, where rank r takes GPU r"));
  }
  if (place.world_size > 1 && place.leader.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        given, " is of one process, and this one starts ", place.world_size, " ranks"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<GroupOptions> ResolveRanks(const RankFlags& flags, const Environment& environment,
                                          EngineOptions& engine) {
  engine.num_redundant_experts = flags.redundant_experts;
  engine.balance_interval_steps = flags.balance_interval_steps;
  for (const auto overlap :
       {ExchangeOverlap::kOff, ExchangeOverlap::kShared, ExchangeOverlap::kBatches}) {
    if (ExchangeOverlapName(overlap) == flags.overlap_exchange) engine.exchange_overlap = overlap;
  }
  if (flags.exchange_precision == "fp8") engine.exchange_precision = ExchangePrecision::kFp8;
  if (flags.exchange_by == "kernels") engine.exchange_by = ExchangeBy::kKernels;
  engine.num_ranks = flags.place.ranks.value_or(1);
  if (flags.transport != "processes") {
    if (flags.transport == "nccl") engine.rank_transport = RankTransport::kNccl;
    RETURN_IF_ERROR(CheckDeviceFlag(flags, engine, {.world_size = engine.num_ranks}));
    engine.device = flags.device.value_or(0);
    if (!flags.place.rank && flags.place.leader.empty()) return GroupOptions();
    return absl::InvalidArgumentError("--rank and --leader need --transport processes");
  }
  engine.rank_transport = RankTransport::kProcesses;
  GroupOptions out;
  ASSIGN_OR_RETURN(out.place, FindRankPlace(flags.place, environment.launcher));
  engine.num_ranks = out.place.world_size;
  RETURN_IF_ERROR(CheckDeviceFlag(flags, engine, out.place));
  engine.device = flags.device.value_or(out.place.local_rank);
  out.version = environment.version;
  out.arguments = environment.arguments;
  out.join_timeout = absl::Seconds(flags.join_seconds);
  out.load_timeout = absl::Seconds(flags.load_seconds);
  out.silence = absl::Milliseconds(flags.rank_timeout_ms);
  out.restart_pause = absl::Seconds(flags.restart_seconds);
  return out;
}

absl::Status RunFollower(const EngineOptions& engine, const GroupOptions& group) {
  SetLogRank(group.place.rank);
  return RunRankFollower({.engine = engine,
                          .rank = group.place.rank,
                          .leader = group.place.leader,
                          .version = group.version,
                          .join_timeout = group.join_timeout,
                          .load_timeout = group.load_timeout});
}

}  // namespace jevons

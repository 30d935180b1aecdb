#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "base/clock.h"
#include "base/log.h"
#include "engine/engine.h"
#include "server/background.h"
#include "server/cmd.h"
#include "server/cmd_ranks.h"
#include "server/engine_host.h"
#include "server/library_logs.h"
#include "server/server.h"
#include "server/signals.h"

namespace jevons {
namespace {

constexpr int64_t kMaxCount = 2147483647;
constexpr absl::Duration kPoll = absl::Milliseconds(100);
constexpr absl::Duration kAbortTime = absl::Seconds(2);

struct ServeFlags {
  Environment environment;
  EngineOptions engine;
  RankFlags ranks;
  ServerOptions server;
  std::string overlap = "auto";
  std::string prefix_cache = "on";
  int32_t drain_seconds = 300;
  int32_t stall_seconds = 30;
};

// One line for programs and, where the model can chat, one to copy into a second terminal.
void PrintReady(const Environment& environment, const Engine& engine, const Server& server) {
  const EngineOptions& o = engine.options();
  const GenerationLimits& limits = engine.limits();
  std::printf(
      "jevons %s ready listen=%s model=%s backend=\"%s\" threads=%d max_num_seqs=%d "
      "max_num_batched_tokens=%d max_prefill_chunk_tokens=%d max_model_len=%d kv_cache_tokens=%lld "
      "kv_cache_dtype=%s prefix_cache=%s max_queued_requests=%d\n",
      environment.version.c_str(), server.address().c_str(), o.model_name.c_str(),
      engine.backend_description().c_str(), o.num_threads, o.max_num_seqs, o.max_num_batched_tokens,
      o.max_prefill_chunk_tokens, limits.max_model_len,
      static_cast<long long>(limits.kv_cache_tokens), KvCacheTypeName(o.kv_cache).data(),
      o.prefix_cache == PrefixCaching::kOn ? "on" : "off", o.max_queued_requests);
  if (engine.chat_format().has_template()) {
    const bool by_default = server.address() == ServerOptions().listen;
    const std::string connect = by_default ? "" : absl::StrCat(" --connect ", server.address());
    std::printf("\nTalk to it:  %s chat%s \"What is 347 * 86?\"\n\n", environment.program.c_str(),
                connect.c_str());
  }
  std::fflush(stdout);
}

void Stop(const StopSignals& signals, Server& server, absl::Duration patience) {
  LogInfo("draining", {{"seconds", absl::ToInt64Seconds(patience)}});
  absl::Time end = absl::InfiniteFuture();
  const Background drain([&] { server.Drain(patience); });
  while (!drain.done()) {
    if (signals.Wait(kPoll)) {
      LogWarning("stopping_at_once");
      server.AbortAll();
      end = std::min(end, absl::Now() + kAbortTime);
    }
    if (absl::Now() >= end) std::_Exit(kExitError);
  }
}

int RunServe(const ServeFlags& flags) {
  if (flags.engine.max_num_batched_tokens < flags.engine.max_num_seqs) {
    return FailUsage(absl::StrCat("--max-num-batched-tokens must be at least --max-num-seqs, ",
                                  flags.engine.max_num_seqs, ", given ",
                                  flags.engine.max_num_batched_tokens));
  }
  RouteLibraryLogs();
  EngineOptions options = flags.engine;
  const auto group = ResolveRanks(flags.ranks, flags.environment, options);
  if (!group.ok()) return FailUsage(std::string(group.status().message()));
  if (group->place.rank > 0) return ExitCode(RunFollower(options, *group));
  const StopSignals signals;
  const RealClock clock;
  const auto wait = [&] {
    if (signals.Wait(kPoll)) std::_Exit(kExitError);
  };
  const auto host = EngineHost::Create(options, *group, &clock, wait);
  if (!host.ok()) return Fail(host.status());
  Engine& engine = (*host)->engine();
  ServerOptions server_options = flags.server;
  server_options.stall_time = absl::Seconds(flags.stall_seconds);
  auto server = Server::Start(server_options, &engine);
  if (!server.ok()) return Fail(server.status());
  PrintReady(flags.environment, engine, **server);
  while (engine.failure().ok() && !signals.Wait(kPoll)) continue;
  const absl::Status failure = engine.failure();
  Stop(signals, **server, absl::Seconds(flags.drain_seconds));
  LogInfo("stopped");
  return ExitCode(failure);
}

}  // namespace

void AddServe(CLI::App& app, const Environment& environment, CommandRun& run) {
  const auto flags = std::make_shared<ServeFlags>();
  CLI::App& cmd = *app.add_subcommand("serve", "Serve a model over gRPC");
  flags->environment = environment;
  EngineOptions& engine = flags->engine;
  engine.cpu_target = environment.cpu_target;
  cmd.add_option("--model", engine.model_folder, "Checkpoint folder")->required();
  cmd.add_option("--listen", flags->server.listen, "HOST:PORT; port 0 takes a free one")
      ->capture_default_str();
  AddBackend(cmd, engine);
  cmd.add_option("--max-num-seqs", engine.max_num_seqs, "Sequences that run at the same time")
      ->check(InRange<int64_t>(1, 1024))
      ->capture_default_str();
  cmd.add_option("--max-num-batched-tokens", engine.max_num_batched_tokens,
                 "Tokens of one step, at least --max-num-seqs")
      ->check(InRange<int64_t>(1, 65536))
      ->capture_default_str();
  cmd.add_option("--max-model-len", engine.max_model_len,
                 "Tokens of prompt and answer; 0: what model and KV cache allow")
      ->check(InRange<int64_t>(0, kMaxCount))
      ->capture_default_str();
  cmd.add_option(
         "--kv-cache-tokens", engine.kv_cache_tokens,
         "Tokens of the whole KV cache; 0: what is useful, at most a quarter of free memory")
      ->check(InRange<int64_t>(0, kMaxCount))
      ->capture_default_str();
  AddKvCacheDType(cmd, engine);
  AddActivationPrecision(cmd, engine);
  AddCublasLtRows(cmd, engine);
  cmd.add_option("--threads", engine.num_threads, "0: the CPUs that the process may use")
      ->check(InRange<int64_t>(0, 1024))
      ->capture_default_str();
  cmd.add_option("--max-prefill-chunk-tokens", engine.max_prefill_chunk_tokens,
                 "Prompt tokens of one sequence in one step; 0: no limit of its own")
      ->check(InRange<int64_t>(0, 65536))
      ->capture_default_str();
  cmd.add_option(
         "--overlap", flags->overlap,
         "auto: a device is given its next step before the last one's tokens are read; off: "
         "after. The tokens are the same")
      ->check(CLI::IsMember({"auto", "off"}))
      ->capture_default_str();
  cmd.add_option(
         "--prefix-cache", flags->prefix_cache,
         "on: a prompt that begins as an earlier one is computed from where they part, if the KV "
         "cache still holds what was before. The tokens are the same")
      ->check(CLI::IsMember({"on", "off"}))
      ->capture_default_str();
  cmd.add_option("--max-queued-requests", engine.max_queued_requests, "More are refused")
      ->check(InRange<int64_t>(1, 1'000'000))
      ->capture_default_str();
  cmd.add_option("--max-message-mb", flags->server.max_message_mb, "Largest request in MiB")
      ->check(InRange<int64_t>(1, 2047))
      ->capture_default_str();
  cmd.add_option("--drain-seconds", flags->drain_seconds,
                 "How long accepted requests may go on after SIGTERM; a second signal ends at once")
      ->check(InRange<int64_t>(0, 86400))
      ->capture_default_str();
  cmd.add_option("--stall-seconds", flags->stall_seconds,
                 "A rank with work that makes no step for so long is reported as not progressing")
      ->check(InRange<int64_t>(1, 86400))
      ->capture_default_str();
  cmd.add_option("--model-name", engine.model_name, "Name for clients; default: the folder's");
  AddRanks(cmd, flags->ranks);
  cmd.callback([&run, flags] {
    flags->engine.overlap = flags->overlap == "off" ? StepOverlap::kOff : StepOverlap::kAuto;
    flags->engine.prefix_cache =
        flags->prefix_cache == "off" ? PrefixCaching::kOff : PrefixCaching::kOn;
    run = [flags] { return RunServe(*flags); };
  });
}

}  // namespace jevons

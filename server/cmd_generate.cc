#include <unistd.h>

#include <cstdio>
#include <limits>
#include <memory>
#include <optional>
#include <random>

#include "base/clock.h"
#include "engine/engine.h"
#include "server/cmd.h"
#include "server/cmd_input.h"
#include "server/cmd_ranks.h"
#include "server/engine_host.h"
#include "server/error_text.h"
#include "server/generate_output.h"
#include "server/library_logs.h"
#include "server/prompt.h"

namespace jevons {
namespace {

constexpr absl::Duration kPoll = absl::Milliseconds(10);

struct GenerateFlags {
  Environment environment;
  EngineOptions engine;
  RankFlags ranks;
  std::string prompt;
  std::string prompt_ids;
  std::string messages;
  std::string effort;
  bool trust_content = false;
  int32_t max_tokens = 0;
  std::optional<float> temperature;
  std::optional<int32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;
  bool ignore_eos = false;
  std::optional<int32_t> logprobs;
  bool json = false;
  bool score = false;
};

// Thinking goes to stderr, dimmed on a terminal; the answer to stdout.
class StreamPrinter {
 public:
  void Print(const StreamDelta& delta) {
    if (delta.text.empty()) return;
    std::FILE* out = delta.channel == Channel::kThinking ? stderr : stdout;
    if (out == stdout) EndThinking();
    if (out == stderr && !thinking_) {
      thinking_ = true;
      if (dims_) std::fputs("\033[2m", stderr);
    }
    std::fwrite(delta.text.data(), 1, delta.text.size(), out);
    std::fflush(out);
  }
  void Finish() {
    EndThinking();
    std::fputs("\n", stdout);
    std::fflush(stdout);
  }

 private:
  void EndThinking() {
    if (!thinking_) return;
    thinking_ = false;
    std::fputs(dims_ ? "\033[0m\n" : "\n", stderr);
  }

  const bool dims_ = isatty(STDERR_FILENO) != 0;
  bool thinking_ = false;
};

absl::StatusOr<std::vector<int32_t>> ReadIds(const std::string& argument) {
  if (argument.empty() || argument.front() != '@') return ParseIds(argument);
  ASSIGN_OR_RETURN(const std::string text, ReadFileOrStdin(argument.substr(1)));
  return ParseIds(text);
}

absl::StatusOr<std::vector<int32_t>> BuildPrompt(const GenerateFlags& flags,
                                                 const PromptBuilder& prompts) {
  if (!flags.prompt_ids.empty()) return ReadIds(flags.prompt_ids);
  if (flags.messages.empty()) {
    return prompts.FromText(flags.prompt, PromptBuilder::Bos::kAsTrained);
  }
  ASSIGN_OR_RETURN(nlohmann::ordered_json conversation, ReadConversation(flags.messages));
  if (!flags.effort.empty()) {
    conversation["reasoning_effort"] = flags.effort;
    conversation["thinking"] = flags.effort != "none";
  }
  ASSIGN_OR_RETURN(PromptBuilder::Rendered rendered,
                   prompts.FromConversation(conversation, {.trust_content = flags.trust_content}));
  return std::move(rendered.ids);
}

absl::StatusOr<GenerationRequest> BuildRequest(const GenerateFlags& flags,
                                               const PromptBuilder& prompts) {
  GenerationRequest out;
  ASSIGN_OR_RETURN(out.prompt_ids, BuildPrompt(flags, prompts));
  out.max_new_tokens = flags.score ? 1 : flags.max_tokens;
  out.sampling = prompts.DefaultSampling();
  out.sampling.temperature = flags.temperature.value_or(out.sampling.temperature);
  out.sampling.top_k = flags.top_k.value_or(out.sampling.top_k);
  out.sampling.top_p = flags.top_p.value_or(out.sampling.top_p);
  out.sampling.min_p = flags.min_p.value_or(out.sampling.min_p);
  std::random_device device;
  out.sampling.seed = flags.seed.value_or(uint64_t{device()} << 32 | device());
  out.stop = flags.stop;
  out.ignore_eos = flags.ignore_eos;
  out.num_logprobs = flags.logprobs.value_or(-1);
  if (flags.score) out.num_prompt_logprobs = 0;
  return out;
}

absl::Status Generate(const GenerateFlags& flags, const EngineOptions& options,
                      const GroupOptions& group) {
  if (group.place.rank > 0) return RunFollower(options, group);
  const RealClock clock;
  ASSIGN_OR_RETURN(const std::unique_ptr<EngineHost> host,
                   EngineHost::Create(options, group, &clock, [] { absl::SleepFor(kPoll); }));
  Engine* const engine = &host->engine();
  const PromptBuilder prompts(engine);
  ASSIGN_OR_RETURN(GenerationRequest request, BuildRequest(flags, prompts));
  GenerationResult result;
  result.prompt_ids = request.prompt_ids;
  result.seed = request.sampling.seed;
  ASSIGN_OR_RETURN(const std::shared_ptr<TokenStream> stream, engine->Submit(std::move(request)));
  StreamPrinter printer;
  const bool streams = !flags.json && !flags.score;
  while (result.end.reason == FinishReason::kNone) {
    std::optional<StreamChunk> chunk = stream->WaitChunk(absl::Hours(1));
    if (!chunk) continue;
    if (streams) printer.Print(chunk->delta);
    result.Add(*std::move(chunk));
  }
  if (streams) printer.Finish();
  RETURN_IF_ERROR(result.end.error);
  const LogprobMode mode = flags.logprobs ? LogprobMode::kPrint : LogprobMode::kOmit;
  if (flags.score) {
    std::printf("%s\n", ScoreJson(result).c_str());
  } else if (flags.json) {
    std::printf("%s\n", ResultJson(result, mode).c_str());
  }
  return absl::OkStatus();
}

int RunGenerate(const GenerateFlags& flags) {
  if (!flags.effort.empty() && flags.messages.empty()) {
    return FailUsage("--effort needs --messages: a plain prompt has no chat template");
  }
  RouteLibraryLogs();
  EngineOptions options = flags.engine;
  const auto group = ResolveRanks(flags.ranks, flags.environment, options);
  if (!group.ok()) return FailUsage(std::string(group.status().message()));
  return ExitCode(Generate(flags, options, *group));
}

void AddSampling(CLI::App& cmd, GenerateFlags& flags) {
  constexpr float kMaxFloat = std::numeric_limits<float>::max();
  cmd.add_option("--temperature", flags.temperature,
                 "0 is greedy; default: the model's own, else 1")
      ->check(InRange<float>(0, kMaxFloat));
  cmd.add_option("--top-k", flags.top_k, "0: all; default: the model's own, else 0")
      ->check(InRange<int64_t>(0, std::numeric_limits<int32_t>::max()));
  cmd.add_option("--top-p", flags.top_p, "Default: the model's own, else 1")
      ->check(InRange<float>(std::numeric_limits<float>::min(), 1));
  cmd.add_option("--min-p", flags.min_p, "Default: 0")->check(InRange<float>(0, 1));
  cmd.add_option("--seed", flags.seed, "Default: drawn")
      ->check(InRange<uint64_t>(0, std::numeric_limits<uint64_t>::max()));
}

}  // namespace

void AddGenerate(CLI::App& app, const Environment& environment, CommandRun& run) {
  const auto flags = std::make_shared<GenerateFlags>();
  CLI::App& cmd = *app.add_subcommand("generate", "Generate once, without a server");
  flags->environment = environment;
  flags->engine.cpu_target = environment.cpu_target;
  flags->engine.max_num_seqs = 1;
  cmd.add_option("--model", flags->engine.model_folder, "Checkpoint folder")->required();
  CLI::Option_group& input = *cmd.add_option_group("prompt", "Exactly one of these");
  input.add_option("--prompt", flags->prompt, "Raw text");
  input.add_option("--prompt-ids", flags->prompt_ids, "1,2,3 or @FILE; @- is stdin");
  input.add_option("--messages", flags->messages,
                   "JSON file: a list of messages, or an object with messages, tools, "
                   "reasoning_effort and other arguments of the template; - is stdin");
  input.require_option(1);
  cmd.add_option("--max-tokens", flags->max_tokens, "Most new tokens; default: as many as fit")
      ->check(InRange<int64_t>(1, 1'000'000'000));
  cmd.add_flag("--ignore-eos", flags->ignore_eos, "End tokens do not end the answer");
  cmd.add_flag("--trust-content", flags->trust_content,
               "Control tokens spelled in messages become control tokens; with --messages");
  cmd.add_option("--effort", flags->effort, "How much the model thinks; with --messages")
      ->check(CLI::IsMember({"none", "low", "medium", "high", "max"}));
  AddSampling(cmd, *flags);
  AddBackend(cmd, flags->engine);
  AddKvCacheDType(cmd, flags->engine);
  AddActivationPrecision(cmd, flags->engine);
  AddCublasLtRows(cmd, flags->engine);
  cmd.add_option("--stop", flags->stop, "The answer ends before this text; may be given often");
  cmd.add_option("--logprobs", flags->logprobs,
                 "With --json: this many alternatives for each token")
      ->check(InRange<int64_t>(0, GenerationLimits().max_logprobs));
  cmd.add_flag("--json", flags->json, "Print one JSON object");
  cmd.add_flag("--score", flags->score,
               "Print the log-probability of each token of the prompt after the first");
  AddRanks(cmd, flags->ranks);
  cmd.callback([&run, flags] { run = [flags] { return RunGenerate(*flags); }; });
}

}  // namespace jevons

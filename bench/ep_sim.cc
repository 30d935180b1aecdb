// DeepSeek-V3 on 8 to 144 GPUs, by arithmetic: tables, published figures beside the simulated ones,
// charts. docs/expert-parallel.md says what goes in and what comes out.
#include <cstdio>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_format.h"
#include "bench/ep_sim_checks.h"
#include "bench/ep_sim_machines.h"
#include "bench/ep_sim_sweeps.h"
#include "nlohmann/json.hpp"

namespace jevons::ep_sim {
namespace {

using Json = nlohmann::ordered_json;

constexpr int32_t kRanks[] = {8, 16, 32, 48, 64, 72, 96, 144};
constexpr int32_t kBatches[] = {1, 2, 4, 8, 16, 32, 64, 128, 256};
constexpr int32_t kPrompts[] = {1, 2, 4, 8};

struct Flags {
  std::string kernels = "published";
  std::string transport = "low-latency";
  Send dispatch = Send::kPerChoice;
  bool fp8 = false;
  bool padded = false;
  bool one_batch = false;
  double redundancy = 0.125;
  double imbalance = 1.15;
  int64_t context = 2048;
  std::string json;
  std::string plot;
};

// "" writes nothing.
class JsonLines {
 public:
  explicit JsonLines(const std::string& path) : used_(!path.empty()) {
    if (used_) file_.open(path);
  }
  void Add(const Json& row) {
    if (used_) file_ << row.dump() << '\n';
  }
  // After the last row.
  bool Close() {
    if (used_) file_.close();
    return !used_ || file_.good();
  }

 private:
  const bool used_;
  std::ofstream file_;
};

Deployment DeploymentOf(const Flags& flags, const Gpu& gpu, int32_t ranks) {
  Deployment d = Baseline(gpu, ranks);
  if (flags.kernels == "predicted") d.kernels = PredictedKernels();
  if (flags.transport == "forwarding") d.transport = Forwarding();
  if (flags.transport == "nccl") d.transport = Nccl();
  d.dispatch = flags.dispatch;
  if (flags.fp8) d.dispatch_value_bytes = kFp8RowBytes;
  if (flags.padded) d.sizes = Sizes::kPadded;
  if (flags.one_batch) d.overlap = Overlap::kNone;
  d.slots_per_rank = SlotsPerRank(V3Shape(), ranks, flags.redundancy);
  d.imbalance = flags.imbalance;
  return d;
}

Json Row(const Deployment& d, const Step& step, const absl::StatusOr<Outcome>& outcome) {
  Json row = {{"name", step.prefill ? "prefill" : "decode"},
              {"gpu", d.gpu.name},
              {"gpus", d.num_ranks},
              {"sequences_per_gpu", step.num_seqs},
              {"tokens_per_sequence", step.tokens_per_seq},
              {"context", step.context}};
  if (!outcome.ok()) {
    row["refused"] = std::string(outcome.status().message());
    return row;
  }
  const StepTime& time = outcome->time;
  row.update({{"tokens_per_second_per_gpu", outcome->tokens_per_second},
              {"step_us", time.seconds * 1e6},
              {"two_batches", outcome->two_batches},
              {"dispatch_us", time.dispatch * 1e6},
              {"combine_us", time.combine * 1e6},
              {"exposed_us", time.exposed * 1e6},
              {"exposed_share", time.exposed_share()},
              {"binds", time.binds},
              {"memory_bytes", time.memory.total()}});
  for (int32_t i = 0; i < kNumParts; ++i) {
    row[std::string(PartName(static_cast<Part>(i))) + "_us"] = time.parts[i] * 1e6;
  }
  return row;
}

// "2,754 31n": tokens a second and GPU, what exchanges leave exposed in percent, what binds.
std::string Cell(const absl::StatusOr<Outcome>& outcome) {
  if (!outcome.ok()) return "-";
  const StepTime& time = outcome->time;
  return absl::StrFormat("%.0f %2.0f%c%c", outcome->tokens_per_second, 100 * time.exposed_share(),
                         time.binds[0], outcome->two_batches ? '2' : ' ');
}

void PrintGrid(const Flags& flags, const Gpu& gpu, bool prefill, std::span<const int32_t> columns,
               JsonLines& json) {
  std::printf("\n%s, %s: tokens a second and GPU, exposed %%, what binds (first letter)\n",
              gpu.name.c_str(), prefill ? "prompts of 4,096" : "decode");
  std::printf("%4s", "GPUs");
  for (const int32_t seqs : columns) std::printf(" %12d", seqs);
  std::printf("\n");
  for (const int32_t ranks : kRanks) {
    const Deployment d = DeploymentOf(flags, gpu, ranks);
    std::printf("%4d", ranks);
    for (const int32_t seqs : columns) {
      Step step = {.prefill = prefill, .num_seqs = seqs, .context = flags.context};
      if (prefill) {
        step.tokens_per_seq = 4096;
        step.context = 0;
      }
      const absl::StatusOr<Outcome> outcome = Best(d, step);
      std::printf(" %12s", Cell(outcome).c_str());
      json.Add(Row(d, step, outcome));
    }
    std::printf("\n");
  }
}

void PrintChoices(JsonLines& json) {
  const std::vector<Place> places = ChoicePlaces();
  std::printf("\nOne choice changed: tokens a second and GPU, and over the base\n%-34s", "");
  for (const Place& place : places) std::printf(" %17s", place.name.c_str());
  std::printf("\n");
  const std::vector<Choice> choices = Choices();
  for (const Choice& choice : choices) {
    std::printf("%-34s", choice.name.c_str());
    for (size_t i = 0; i < places.size(); ++i) {
      const absl::StatusOr<Outcome>& base = choices[0].outcomes[i];
      const absl::StatusOr<Outcome>& outcome = choice.outcomes[i];
      std::string cell = "-";
      Json row = {{"name", "choice"}, {"choice", choice.name}, {"place", places[i].name}};
      if (outcome.ok() && base.ok()) {
        const double ratio = outcome->tokens_per_second / base->tokens_per_second;
        cell = absl::StrFormat("%.0f (%.2f)", outcome->tokens_per_second, ratio);
        row["tokens_per_second_per_gpu"] = outcome->tokens_per_second;
        row["over_base"] = ratio;
      } else if (!outcome.ok()) {
        row["refused"] = std::string(outcome.status().message());
      }
      std::printf(" %17s", cell.c_str());
      json.Add(row);
    }
    std::printf("\n");
  }
}

absl::Status PrintChecks(JsonLines& json) {
  ASSIGN_OR_RETURN(const std::vector<Check> checks, PublishedChecks());
  std::printf("\nAgainst published figures (*: a rate was taken from this point)\n");
  std::printf("%-56s %-20s %-9s %9s %9s %7s\n", "", "source", "", "published", "here", "error");
  for (const Check& check : checks) {
    std::printf("%-56s %-20s %-9s %9.4g %9.4g %+6.0f%%%s\n", check.name.c_str(),
                check.source.c_str(), check.unit.c_str(), check.published, check.predicted,
                100 * check.error(), check.is_input ? "*" : "");
    json.Add({{"name", "check"},
              {"check", check.name},
              {"source", check.source},
              {"unit", check.unit},
              {"published", check.published},
              {"predicted", check.predicted},
              {"error", check.error()},
              {"is_input", check.is_input}});
  }
  return absl::OkStatus();
}

absl::Status Run(const Flags& flags) {
  JsonLines json(flags.json);
  for (const Gpu& gpu : {H100(), H200(), H800()}) {
    PrintGrid(flags, gpu, false, kBatches, json);
    PrintGrid(flags, gpu, true, kPrompts, json);
  }
  PrintChoices(json);
  RETURN_IF_ERROR(PrintChecks(json));
  if (!json.Close()) return absl::UnavailableError("cannot write " + flags.json);
  if (flags.plot.empty()) return absl::OkStatus();
  std::ofstream plot(flags.plot);
  plot << RenderSvg(ChartsTitle(), Charts());
  plot.close();
  return plot.good() ? absl::OkStatus() : absl::UnavailableError("cannot write " + flags.plot);
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app("Step time of DeepSeek-V3 on 8 to 144 GPUs that share its experts, by arithmetic");
  const std::map<std::string, Send> sends = {
      {"per-choice", Send::kPerChoice}, {"per-rank", Send::kPerRank}, {"per-node", Send::kPerNode}};
  app.add_option("--kernels", flags.kernels,
                 "Rates that others published, or that ours should have")
      ->check(CLI::IsMember({"published", "predicted"}));
  app.add_option("--transport", flags.transport, "What carries the rows")
      ->check(CLI::IsMember({"low-latency", "forwarding", "nccl"}));
  app.add_option("--dispatch", flags.dispatch, "How often a token is sent to the experts")
      ->transform(CLI::CheckedTransformer(sends));
  app.add_flag("--fp8", flags.fp8, "Rows to the experts in FP8");
  app.add_flag("--padded", flags.padded, "Exchanges of the largest size that may be needed");
  app.add_flag("--one-batch", flags.one_batch, "No overlap");
  app.add_option("--redundancy", flags.redundancy, "Replicas as a part of the experts")
      ->check(CLI::Range(0.0, 4.0));
  app.add_option("--imbalance", flags.imbalance, "Rows of the busiest rank over the mean")
      ->check(CLI::Range(1.0, 256.0));
  app.add_option("--context", flags.context, "Tokens cached before a decode step")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--json", flags.json, "Write all rows as JSON lines");
  app.add_option("--plot", flags.plot, "Write the charts as SVG");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = Run(flags);
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return 1;
}

}  // namespace
}  // namespace jevons::ep_sim

int main(int argc, char** argv) { return jevons::ep_sim::Main(argc, argv); }

// Lets groups of ranks suffer for some minutes. The exit code is 0 where every promise held.
#include <cstdio>
#include <fstream>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "tests/chaos/chaos.h"
#include "tests/support/network_lab.h"

namespace jevons {
namespace {

struct Flags {
  ChaosOptions chaos;
  double minutes = 10;
  double silence_seconds = 20;
  double mean_pause_seconds = 4;
  int rank_timeout_ms = 3000;
  std::string faults = "all";
  bool network = false;
  std::string out;
};

void AddFlags(CLI::App& app, Flags& flags) {
  app.add_option("--jevons", flags.chaos.binary, "The binary to run")->capture_default_str();
  app.add_option("--seed", flags.chaos.seed, "Of everything that is drawn")->capture_default_str();
  app.add_option("--minutes", flags.minutes)->capture_default_str();
  app.add_option("--ranks", flags.chaos.num_ranks)->capture_default_str();
  app.add_option("--clients", flags.chaos.num_clients)->capture_default_str();
  app.add_option("--max-losses", flags.chaos.max_losses, "Ranks that a group loses before it ends")
      ->capture_default_str();
  app.add_option("--faults", flags.faults, "short-stops: such as a group must not lose anything by")
      ->check(CLI::IsMember({"none", "short-stops", "all"}))
      ->capture_default_str();
  app.add_option("--rank-timeout-ms", flags.rank_timeout_ms)->capture_default_str();
  app.add_option("--mean-pause-seconds", flags.mean_pause_seconds, "Between two faults")
      ->capture_default_str();
  app.add_option("--silence-seconds", flags.silence_seconds, "Without a request, in each group")
      ->capture_default_str();
  app.add_flag("--network", flags.network,
               "Each rank on a network of its own, which fails too; needs root or user namespaces");
  app.add_option("--log", flags.chaos.log, "File for what the ranks log; else stderr");
  app.add_option("--out", flags.out, "File that gets one line of JSON more");
}

absl::Status Run(Flags& flags) {
  flags.chaos.duration = absl::Minutes(flags.minutes);
  flags.chaos.silence = absl::Seconds(flags.silence_seconds);
  flags.chaos.mean_pause = absl::Seconds(flags.mean_pause_seconds);
  flags.chaos.rank_timeout = absl::Milliseconds(flags.rank_timeout_ms);
  flags.chaos.faults = flags.faults == "none"          ? ChaosFaults::kNone
                       : flags.faults == "short-stops" ? ChaosFaults::kShortStops
                                                       : ChaosFaults::kAll;
  std::unique_ptr<NetworkLab> lab;
  if (flags.network) {
    ASSIGN_OR_RETURN(lab, NetworkLab::Create(flags.chaos.num_ranks, flags.chaos.seed));
    flags.chaos.lab = lab.get();
  }
  ChaosReport report;
  const absl::Time start = absl::Now();
  const absl::Status status = RunChaos(flags.chaos, report);
  if (!status.ok()) report.Fail(status.ToString());
  std::printf("seed %llu, %d ranks, %.1f minutes\n%s",
              static_cast<unsigned long long>(flags.chaos.seed), flags.chaos.num_ranks,
              absl::ToDoubleMinutes(absl::Now() - start), report.Summary().c_str());
  if (!flags.out.empty()) {
    std::ofstream(flags.out, std::ios::app) << absl::StrCat(
        R"({"bench": "chaos", "seed": )", flags.chaos.seed, R"(, "ranks": )", flags.chaos.num_ranks,
        R"(, "faults": ")", flags.faults, R"(", "network": )", flags.network ? "true" : "false",
        R"(, "report": )", report.Json(), "}\n");
  }
  return report.failures().empty() ? absl::OkStatus() : absl::InternalError("promises were broken");
}

}  // namespace
}  // namespace jevons

int main(int argc, char** argv) {
  jevons::Flags flags;
  flags.chaos.binary = JEVONS_BINARY;
  CLI::App app("Groups of ranks under random faults");
  jevons::AddFlags(app, flags);
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = jevons::Run(flags);
  if (status.ok()) return 0;
  std::fprintf(stderr, "chaos: %s\n", std::string(status.message()).c_str());
  return 1;
}

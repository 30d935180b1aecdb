// What a CUDA device can do, and how much of it the kernels and a whole model get. See "On a GPU"
// in docs/performance.md for the method.
//
//   cuda_bench [--list] [--filter TEXT] [--quick] [--json FILE] [--seconds N] [--tiny]
//
// Exit code 0 where all was measured, 1 where something failed, 77 without a device.

#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "bench/cuda_cases.h"
#include "bench/cuda_ceilings.h"
#include "cuda/cuda_backend.h"

namespace jevons {
namespace {

constexpr int kSkipped = 77;

struct Flags {
  CudaBenchOptions options;
  bool list = false;
  std::string filter;
  std::string json_path;
  int32_t seconds = 540;
};

std::vector<CudaCase> AllCases() {
  std::vector<CudaCase> out;
  // What matters most comes first, should time run out.
  for (auto* make : {&ModelCases, &MlaCases, &MoeCases, &LinearCases, &CublasLtCases, &RowCases}) {
    for (CudaCase& c : make()) out.push_back(std::move(c));
  }
  return out;
}

absl::StatusOr<Flags> ParseFlags(int argc, char** argv) {
  Flags flags;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    bool* const given = name == "--list"    ? &flags.list
                        : name == "--quick" ? &flags.options.quick
                        : name == "--tiny"  ? &flags.options.tiny
                                            : nullptr;
    if (given != nullptr) {
      *given = true;
      continue;
    }
    const bool last = i + 1 == argc;
    if (name == "--filter" && !last) {
      flags.filter = argv[++i];
    } else if (name == "--json" && !last) {
      flags.json_path = argv[++i];
    } else if (name == "--seconds" && !last && absl::SimpleAtoi(argv[i + 1], &flags.seconds) &&
               flags.seconds > 0) {
      ++i;
    } else {
      return absl::InvalidArgumentError(
          name +
          " is unknown or lacks its value; flags: --list --filter TEXT --quick --json FILE "
          "--seconds N --tiny");
    }
  }
  flags.options.deadline = absl::Now() + absl::Seconds(flags.seconds);
  return flags;
}

int Run(const Flags& flags) {
  std::vector<CudaCase> cases;
  for (CudaCase& c : AllCases()) {
    if (c.name.find(flags.filter) != std::string::npos) cases.push_back(std::move(c));
  }
  if (flags.list) {
    for (const CudaCase& c : cases) std::printf("%-24s %s\n", c.name.c_str(), c.what.c_str());
    return 0;
  }
  const absl::Status usable = CreateCudaBackend({}).status();
  if (!usable.ok()) {
    std::printf("skipped: %s\n", std::string(usable.message()).c_str());
    return kSkipped;
  }
  CudaReport report(flags.json_path);
  absl::Status status = ReportDevice(report);
  if (status.ok()) status = MeasureCeilings(flags.options.tiny, report);
  if (!status.ok()) report.Failed("ceilings", status.ToString());
  report.Text("determinism",
              "every time here is that of results which do not depend on the batch, "
              "but for those of cublaslt");
  CudaBench bench(flags.options, report);
  for (const CudaCase& c : cases) {
    if (bench.TimeIsUp()) {
      report.Text(c.name, absl::StrCat("left out: ", flags.seconds, " s are over"));
      continue;
    }
    status = c.run(bench);
    if (!status.ok()) report.Failed(c.name, status.ToString());
  }
  return report.num_failed() == 0 ? 0 : 1;
}

}  // namespace
}  // namespace jevons

int main(int argc, char** argv) {
  const auto flags = jevons::ParseFlags(argc, argv);
  if (flags.ok()) return jevons::Run(*flags);
  std::fprintf(stderr, "cuda_bench: %s\n", std::string(flags.status().message()).c_str());
  return 2;
}

// The subcommands of the binary.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "engine/engine.h"

namespace jevons {

constexpr int kExitOk = 0;
constexpr int kExitError = 1;
constexpr int kExitUsage = 2;

// What main read from the environment.
struct Environment {
  std::string program;                               // argv[0]
  std::string version = {};                          // of the binary
  std::string cpu_target;                            // JEVONS_CPU_TARGET
  std::string home;                                  // HOME
  std::vector<std::string> arguments = {};           // argv
  std::map<std::string, std::string> launcher = {};  // of LauncherVariables, those that are set
};

// What the chosen subcommand does once the command line is parsed; returns the exit code.
using CommandRun = std::function<int()>;

// Each adds one subcommand. When it is chosen, `run` is set.
void AddServe(CLI::App& app, const Environment& environment, CommandRun& run);
void AddGenerate(CLI::App& app, const Environment& environment, CommandRun& run);
void AddChat(CLI::App& app, const Environment& environment, CommandRun& run);
void AddTokenize(CLI::App& app, CommandRun& run);
void AddRender(CLI::App& app, CommandRun& run);
void AddInspect(CLI::App& app, CommandRun& run);
void AddPlan(CLI::App& app, CommandRun& run);

// --backend. `engine` must outlive the parsing.
void AddBackend(CLI::App& cmd, EngineOptions& engine);
// --kv-cache-dtype. `engine` must outlive the parsing.
void AddKvCacheDType(CLI::App& cmd, EngineOptions& engine);
// --activation-precision. `engine` must outlive the parsing.
void AddActivationPrecision(CLI::App& cmd, EngineOptions& engine);
// --cublaslt-rows. `engine` must outlive the parsing.
void AddCublasLtRows(CLI::App& cmd, EngineOptions& engine);

// Prints "error: ..." to stderr. The exit code is kExitError.
int Fail(const absl::Status& status);
// kExitOk, or Fail.
inline int ExitCode(const absl::Status& status) { return status.ok() ? kExitOk : Fail(status); }
// As Fail, for a command line that makes no sense: kExitUsage.
int FailUsage(const std::string& text);

// A check of a numeric flag whose error text has limits and value. NaN is out of range.
template <typename T>
CLI::Validator InRange(T low, T high) {
  const auto check = [low, high](std::string& text) {
    T value{};
    if (CLI::detail::lexical_cast(text, value) && value >= low && value <= high)
      return std::string();
    return absl::StrCat("must be in [", low, ", ", high, "], given ", text);
  };
  return CLI::Validator(check, absl::StrCat("in [", low, ", ", high, "]"));
}

}  // namespace jevons

// The binary `jevons`: reads the command line and the environment, runs one subcommand.
#include <clocale>
#include <cstdio>
#include <cstdlib>

#include "server/cmd.h"
#include "server/rank_place.h"

namespace jevons {
namespace {

std::string Variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

int Main(int argc, char** argv) {
  std::setlocale(LC_CTYPE, "");  // for editing lines that are not ASCII
  Environment environment{.program = argc > 0 ? argv[0] : "jevons",
                          .version = JEVONS_VERSION,
                          .cpu_target = Variable("JEVONS_CPU_TARGET"),
                          .home = Variable("HOME"),
                          .arguments = std::vector<std::string>(argv, argv + argc)};
  for (const std::string& name : LauncherVariables()) {
    const std::string value = Variable(name.c_str());
    if (!value.empty()) environment.launcher[name] = value;
  }
  CLI::App app("Serves and runs DeepSeek-style reasoning models.", "jevons");
  app.set_version_flag("--version", "jevons " + environment.version);
  app.require_subcommand(1);
  CommandRun run;
  AddServe(app, environment, run);
  AddGenerate(app, environment, run);
  AddChat(app, environment, run);
  AddTokenize(app, run);
  AddRender(app, run);
  AddInspect(app, run);
  AddPlan(app, run);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  return run();
}

}  // namespace

}  // namespace jevons

int main(int argc, char** argv) { return jevons::Main(argc, argv); }

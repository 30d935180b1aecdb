#include <memory>

#include "client/chat.h"
#include "server/cmd.h"

namespace jevons {
namespace {

struct ChatFlags {
  ChatSettings settings;
  std::string question;
};

}  // namespace

void AddChat(CLI::App& app, const Environment& environment, CommandRun& run) {
  const auto flags = std::make_shared<ChatFlags>();
  if (!environment.home.empty())
    flags->settings.history_file = environment.home + "/.jevons_history";
  CLI::App& cmd = *app.add_subcommand("chat", "Chat with a running server, or ask it one question");
  cmd.add_option("--connect", flags->settings.address, "HOST:PORT of the server")
      ->capture_default_str();
  cmd.add_option("--system", flags->settings.system, "System message");
  cmd.add_option("--effort", flags->settings.effort, "How much the model thinks")
      ->check(CLI::IsMember({"none", "low", "high"}));
  CLI::Option* question =
      cmd.add_option("question", flags->question, "Prints the answer to this and ends");
  cmd.callback([&run, flags, question] {
    const bool asks = question->count() > 0;
    run = [flags, asks] {
      const absl::Status status =
          asks ? AskOnce(flags->settings, flags->question) : RunChat(flags->settings);
      return status.ok() ? kExitOk : Fail(status);
    };
  });
}

}  // namespace jevons

#include <cstdio>
#include <memory>

#include "model/chat_format.h"
#include "server/cmd.h"
#include "server/cmd_input.h"

namespace jevons {
namespace {

struct RenderFlags {
  std::string model;
  std::string messages;
};

absl::Status Render(const RenderFlags& flags) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(flags.model));
  ASSIGN_OR_RETURN(const std::unique_ptr<ChatFormat> format,
                   ChatFormat::Load(flags.model, *tokenizer));
  ASSIGN_OR_RETURN(const nlohmann::ordered_json conversation, ReadConversation(flags.messages));
  ASSIGN_OR_RETURN(const RenderedPrompt prompt, format->Render(conversation, {}));
  std::fwrite(prompt.text.data(), 1, prompt.text.size(), stdout);
  return absl::OkStatus();
}

}  // namespace

void AddRender(CLI::App& app, CommandRun& run) {
  const auto flags = std::make_shared<RenderFlags>();
  CLI::App& cmd =
      *app.add_subcommand("render", "Print the prompt of a conversation, exactly and alone");
  cmd.add_option("--model", flags->model, "Checkpoint folder")->required();
  cmd.add_option("--messages", flags->messages,
                 "JSON file: a list of messages, or an object with messages, tools, "
                 "reasoning_effort and other arguments of the template; - is stdin")
      ->required();
  cmd.callback([&run, flags] {
    run = [flags] {
      const absl::Status status = Render(*flags);
      return status.ok() ? kExitOk : Fail(status);
    };
  });
}

}  // namespace jevons

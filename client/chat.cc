#include "client/chat.h"

#include <unistd.h>

#include <cstdio>
#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "client/answer_printer.h"
#include "client/client.h"
#include "client/interrupt.h"
#include "client/line_editor.h"

namespace jevons {
namespace {

constexpr absl::Duration kConnectTimeout = absl::Seconds(5);
constexpr char kHelp[] =
    "/effort none|low|high  how much the model thinks\n"
    "/new                   start a new conversation\n"
    "/help                  this text\n"
    "/exit                  leave (so does the end of input, Ctrl-D)\n"
    "Ctrl-C stops the running answer.\n";

PrintMode ModeOfStdout() {
  return isatty(STDOUT_FILENO) != 0 ? PrintMode::kTerminal : PrintMode::kPlain;
}

// A conversation with one server.
class Conversation {
 public:
  explicit Conversation(const ChatSettings& settings)
      : settings_(settings), effort_(settings.effort), client_(Client::Connect(settings.address)) {
    Restart();
  }

  // The name of the served model, or why there is none.
  absl::StatusOr<std::string> Connect() {
    const absl::Status connected = client_->WaitConnected(kConnectTimeout);
    if (!connected.ok()) {
      return absl::Status(
          connected.code(),
          absl::StrCat(connected.message(), "; start one with: jevons serve --model DIR --listen ",
                       settings_.address));
    }
    ASSIGN_OR_RETURN(const v1::ListModelsResponse models, client_->ListModels());
    if (models.models().empty()) return absl::NotFoundError("the server serves no model");
    return models.models(0).name();
  }

  void Restart() {
    request_.Clear();
    if (settings_.system.empty()) return;
    AddMessage("system", settings_.system);
  }

  // False for an effort that does not exist.
  bool SetEffort(const std::string& effort) {
    if (effort != "none" && effort != "low" && effort != "high") return false;
    effort_ = effort;
    return true;
  }

  // Streams the answer to stdout and keeps it, without the thinking. After an error the question is
  // forgotten, unless a part of an answer was shown.
  absl::Status Ask(const std::string& question) {
    AddMessage("user", question);
    v1::Chat& chat = *request_.mutable_chat();
    if (!effort_.empty()) chat.set_reasoning_effort(effort_);
    AnswerPrinter printer(ModeOfStdout(), stdout);
    CallHandle handle;
    v1::FinishReason reason = v1::FINISH_REASON_UNSPECIFIED;
    watcher_.SetAction([&handle] { handle.Cancel(); });
    const absl::Status status = client_->Generate(request_,
                                                  [&](const v1::GenerateResponse& message) {
                                                    printer.Print(message);
                                                    reason = message.finish_reason();
                                                  },
                                                  {.handle = &handle});
    watcher_.SetAction({});
    printer.Finish();
    if (status.ok() || !printer.answer().empty()) {
      AddMessage("assistant", printer.answer());
    } else {
      chat.mutable_messages()->RemoveLast();
    }
    if (reason == v1::FINISH_REASON_LENGTH) {
      std::fprintf(stderr, "(the answer was cut: no room for more tokens)\n");
    }
    return status;
  }

 private:
  void AddMessage(const std::string& role, const std::string& content) {
    v1::ChatMessage& message = *request_.mutable_chat()->add_messages();
    message.set_role(role);
    message.set_content(content);
  }

  const ChatSettings settings_;
  std::string effort_;
  v1::GenerateRequest request_;
  InterruptWatcher watcher_;  // before the client, whose threads must not take the signal
  const std::unique_ptr<Client> client_;
};

// False: leave.
bool RunCommand(const std::string& line, Conversation& conversation) {
  absl::string_view rest = line;
  if (line == "/exit" || line == "/quit") return false;
  if (line == "/new") {
    conversation.Restart();
  } else if (line == "/help") {
    std::fputs(kHelp, stdout);
  } else if (absl::ConsumePrefix(&rest, "/effort ") &&
             conversation.SetEffort(std::string(absl::StripAsciiWhitespace(rest)))) {
    std::printf("effort is %s now\n", std::string(absl::StripAsciiWhitespace(rest)).c_str());
  } else {
    std::printf("%s is no command.\n%s", WithoutControls(line).c_str(), kHelp);
  }
  std::fflush(stdout);
  return true;
}

}  // namespace

absl::Status AskOnce(const ChatSettings& settings, const std::string& question) {
  Conversation conversation(settings);
  ASSIGN_OR_RETURN(const std::string model, conversation.Connect());
  return conversation.Ask(question);
}

absl::Status RunChat(const ChatSettings& settings) {
  Conversation conversation(settings);
  ASSIGN_OR_RETURN(const std::string model, conversation.Connect());
  if (ModeOfStdout() == PrintMode::kTerminal) {
    std::printf("%s at %s. /help lists the commands.\n", WithoutControls(model).c_str(),
                settings.address.c_str());
  }
  const std::unique_ptr<LineEditor> editor = LineEditor::Create("> ", settings.history_file);
  while (const std::optional<std::string> line = editor->ReadLine()) {
    const std::string text(absl::StripAsciiWhitespace(*line));
    if (text.empty()) continue;
    if (text.front() == '/') {
      if (!RunCommand(text, conversation)) break;
      continue;
    }
    const absl::Status status = conversation.Ask(text);
    if (absl::IsCancelled(status)) {
      std::fprintf(stderr, "(stopped)\n");
    } else if (!status.ok()) {
      std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
    }
  }
  return absl::OkStatus();
}

}  // namespace jevons

// The command-line chat: a conversation with one server, streamed to a terminal.
#pragma once

#include <string>

#include "base/status.h"

namespace jevons {

struct ChatSettings {
  std::string address = "127.0.0.1:50051";
  std::string system;        // empty: none
  std::string effort;        // none, low, high; empty: the model's default
  std::string history_file;  // of typed lines; empty: not kept
};

// Both block SIGINT for the process's later threads and take it themselves: it cancels the answer,
// not the program. Call from main's thread, before others are started. Errors name the address and
// the way out.

// Asks one question and prints the answer to stdout: after the thinking, dimmed, where stdout is a
// terminal, else the answer alone. CANCELLED after SIGINT.
absl::Status AskOnce(const ChatSettings& settings, const std::string& question);

// Reads lines from stdin until /exit or its end. An error only where no server answers at the
// start.
absl::Status RunChat(const ChatSettings& settings);

}  // namespace jevons

// Prints a stream of thinking and answer.
#pragma once

#include <cstdio>
#include <string>
#include <string_view>

#include "jevons/v1/inference.pb.h"

namespace jevons {

// How thinking is shown, and whether control characters are made visible.
enum class PrintMode {
  kPlain,     // the answer's exact bytes, no thinking
  kTerminal,  // thinking dimmed before the answer; control characters but newline and tab as U+FFFD
};

// Thread-compatible.
class AnswerPrinter {
 public:
  AnswerPrinter(PrintMode mode, std::FILE* out) : mode_(mode), out_(out) {}

  void Print(const v1::GenerateResponse& message);
  // Ends the line and resets the terminal's colours. Call once, at the end.
  void Finish();

  const std::string& answer() const { return answer_; }

 private:
  enum class State { kNothing, kThinking, kAnswer };
  void Write(std::string_view text);

  const PrintMode mode_;
  std::FILE* const out_;
  State state_ = State::kNothing;
  std::string answer_;
  char last_ = '\n';
};

// `text` with every control character but newline and tab as U+FFFD, so that a model cannot drive
// the terminal.
std::string WithoutControls(std::string_view text);

}  // namespace jevons

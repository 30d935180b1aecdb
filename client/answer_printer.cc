#include "client/answer_printer.h"

namespace jevons {
namespace {

constexpr std::string_view kDim = "\033[2m";
constexpr std::string_view kReset = "\033[0m";

bool IsControl(unsigned char c) { return (c < 0x20 && c != '\n' && c != '\t') || c == 0x7F; }

}  // namespace

std::string WithoutControls(std::string_view text) {
  constexpr std::string_view kReplacement = "\xEF\xBF\xBD";
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    // U+0080 to U+009F, which some terminals obey too.
    const bool c1 =
        c == 0xC2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xA0;
    if (!c1 && !IsControl(c)) {
      out += text[i];
      continue;
    }
    out += kReplacement;
    if (c1) ++i;
  }
  return out;
}

void AnswerPrinter::Print(const v1::GenerateResponse& message) {
  const std::string& answer = message.answer();
  const std::string& thinking = message.thinking();
  if (mode_ == PrintMode::kTerminal && !thinking.empty()) {
    if (state_ == State::kNothing) std::fwrite(kDim.data(), 1, kDim.size(), out_);
    state_ = State::kThinking;
    Write(WithoutControls(thinking));
  }
  if (!answer.empty()) {
    if (state_ == State::kThinking) {
      std::fwrite(kReset.data(), 1, kReset.size(), out_);
      Write(last_ == '\n' ? "\n" : "\n\n");
    }
    state_ = State::kAnswer;
    answer_ += answer;
    Write(mode_ == PrintMode::kTerminal ? WithoutControls(answer) : answer);
  }
  std::fflush(out_);
}

void AnswerPrinter::Finish() {
  if (state_ == State::kThinking) std::fwrite(kReset.data(), 1, kReset.size(), out_);
  if (last_ != '\n') Write("\n");
  std::fflush(out_);
}

void AnswerPrinter::Write(std::string_view text) {
  if (text.empty()) return;
  std::fwrite(text.data(), 1, text.size(), out_);
  last_ = text.back();
}

}  // namespace jevons

#include "client/line_editor.h"

#include <histedit.h>
#include <unistd.h>

#include <cstdio>
#include <iostream>

namespace jevons {
namespace {

constexpr int kMaxHistory = 1000;

class PipeReader : public LineEditor {
 public:
  std::optional<std::string> ReadLine() override {
    std::string line;
    if (!std::getline(std::cin, line)) return std::nullopt;
    return line;
  }
};

class TerminalReader : public LineEditor {
 public:
  TerminalReader(const std::string& prompt, const std::string& history_file)
      : prompt_(prompt),
        history_file_(history_file),
        edit_(el_init("jevons", stdin, stdout, stderr)),
        history_(history_init()) {
    el_set(edit_, EL_CLIENTDATA, this);
    el_set(edit_, EL_PROMPT, &Prompt);
    el_set(edit_, EL_EDITOR, "emacs");
    el_set(edit_, EL_HIST, history, history_);
    HistEvent event;
    history(history_, &event, H_SETSIZE, kMaxHistory);
    history(history_, &event, H_SETUNIQUE, 1);
    if (!history_file_.empty()) history(history_, &event, H_LOAD, history_file_.c_str());
  }
  ~TerminalReader() override {
    history_end(history_);
    el_end(edit_);
  }

  std::optional<std::string> ReadLine() override {
    int length = 0;
    const char* text = el_gets(edit_, &length);
    if (text == nullptr || length <= 0) return std::nullopt;
    std::string line(text, static_cast<size_t>(length));
    if (line.find_first_not_of(" \t\n") != std::string::npos) Remember(line);
    if (!line.empty() && line.back() == '\n') line.pop_back();
    return line;
  }

 private:
  static char* Prompt(EditLine* edit) {
    TerminalReader* self = nullptr;
    el_get(edit, EL_CLIENTDATA, &self);
    return self->prompt_.data();
  }

  void Remember(const std::string& line) {
    HistEvent event;
    history(history_, &event, H_ENTER, line.c_str());
    if (!history_file_.empty()) history(history_, &event, H_SAVE, history_file_.c_str());
  }

  std::string prompt_;
  const std::string history_file_;
  EditLine* const edit_;
  History* const history_;
};

}  // namespace

std::unique_ptr<LineEditor> LineEditor::Create(const std::string& prompt,
                                               const std::string& history_file) {
  if (isatty(STDIN_FILENO) == 0) return std::make_unique<PipeReader>();
  return std::make_unique<TerminalReader>(prompt, history_file);
}

}  // namespace jevons

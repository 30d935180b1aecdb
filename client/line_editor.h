// Lines typed by a person, with editing and history where stdin is a terminal.
#pragma once

#include <memory>
#include <optional>
#include <string>

namespace jevons {

// Thread-compatible.
class LineEditor {
 public:
  virtual ~LineEditor() = default;

  // `history_file` is read now and written after each line; empty: no file. Where stdin is no
  // terminal, lines are read as they come and no prompt is shown.
  static std::unique_ptr<LineEditor> Create(const std::string& prompt,
                                            const std::string& history_file);

  // Without the newline; nothing at the end of input.
  virtual std::optional<std::string> ReadLine() = 0;
};

}  // namespace jevons

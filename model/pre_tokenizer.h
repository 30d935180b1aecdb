// Cuts text into the pieces that byte-pair encoding works on, as tokenizer.json's "pre_tokenizer"
// says.
#pragma once

#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "model/config_reader.h"
#include "model/regex.h"
#include "nlohmann/json_fwd.hpp"

namespace jevons {

// What becomes of the parts that a pattern matches.
enum class SplitBehavior {
  kRemoved,
  kIsolated,
  kMergedWithPrevious,
  kMergedWithNext,
  kContiguous,  // neighbouring matches stay together
};

// Immutable, thread-safe.
class PreTokenizer {
 public:
  // What one call of Split works in; it also owns the text of pieces that are not in the input.
  // Thread-compatible.
  struct Scratch {
    RegexScratch regex;
    std::vector<std::string_view> pieces;
    std::deque<std::string> prefixed;
  };

  PreTokenizer() = default;

  // Reads the value of the key "pre_tokenizer". The steps must end in ByteLevel. What is wrong or
  // not supported goes to `problems`, and the result is then of no use.
  static PreTokenizer FromJson(const nlohmann::json& value, ConfigProblems& problems);

  // Replaces `pieces` by the parts of `text`, which is well-formed UTF-8; none is empty. They lie
  // in `text` or in `scratch`. INVALID_ARGUMENT where a pattern exceeds its limits.
  absl::Status Split(std::string_view text, Scratch& scratch,
                     std::vector<std::string_view>& pieces) const;

 private:
  friend class PreTokenizerReader;
  // Without a regex: each piece that does not begin with a space gets one.
  struct Step {
    std::optional<Regex> regex;
    SplitBehavior behavior = SplitBehavior::kIsolated;
    bool invert = false;  // the parts between the matches count as the matches
  };

  static absl::Status SplitPiece(std::string_view text, const Step& step, RegexScratch& scratch,
                                 std::vector<std::string_view>& pieces);

  std::vector<Step> steps_;
};

}  // namespace jevons

#include "model/pre_tokenizer.h"

#include <cstdint>

namespace jevons {
namespace {

// Puts the parts of one text together as a behavior says. Parts come from left to right, matches
// and the text between them.
class PartJoiner {
 public:
  PartJoiner(SplitBehavior behavior, std::string_view text, std::vector<std::string_view>& pieces)
      : behavior_(behavior), text_(text), pieces_(pieces) {}

  void Add(size_t begin, size_t end, bool is_match) {
    if (Joins(is_match)) {
      end_ = end;
    } else {
      Finish();
      begin_ = begin;
      end_ = end;
      is_removed_ = is_match && behavior_ == SplitBehavior::kRemoved;
    }
    previous_is_match_ = is_match;
    has_previous_ = true;
  }

  // Gives out the last piece.
  void Finish() {
    if (begin_ < end_ && !is_removed_) pieces_.push_back(text_.substr(begin_, end_ - begin_));
    begin_ = end_;
  }

 private:
  bool Joins(bool is_match) const {
    if (!has_previous_) return false;
    switch (behavior_) {
      case SplitBehavior::kRemoved:
      case SplitBehavior::kIsolated:
        return false;
      case SplitBehavior::kMergedWithPrevious:
        return is_match && !previous_is_match_;
      case SplitBehavior::kMergedWithNext:
        return !is_match && previous_is_match_;
      case SplitBehavior::kContiguous:
        return is_match == previous_is_match_;
    }
    return false;
  }

  SplitBehavior behavior_;
  std::string_view text_;
  std::vector<std::string_view>& pieces_;
  size_t begin_ = 0;
  size_t end_ = 0;
  bool is_removed_ = false;
  bool has_previous_ = false;
  bool previous_is_match_ = false;
};

size_t NextCharacter(std::string_view text, size_t i) {
  do {
    ++i;
  } while (i < text.size() && (static_cast<uint8_t>(text[i]) & 0xC0) == 0x80);
  return i;
}

}  // namespace

absl::Status PreTokenizer::SplitPiece(std::string_view text, const Step& step,
                                      RegexScratch& scratch,
                                      std::vector<std::string_view>& pieces) {
  PartJoiner parts(step.behavior, text, pieces);
  size_t done = 0;
  std::optional<size_t> last_end;
  for (size_t from = 0; from <= text.size();) {
    std::optional<Regex::Match> match;
    ASSIGN_OR_RETURN(match, step.regex->Find(text, from, scratch));
    if (!match) break;
    // An empty match right after a match is none.
    if (match->begin == match->end && match->end == last_end) {
      from = NextCharacter(text, from);
      continue;
    }
    if (done < match->begin) parts.Add(done, match->begin, step.invert);
    parts.Add(match->begin, match->end, !step.invert);
    done = match->end;
    from = match->end;
    last_end = match->end;
  }
  if (done < text.size()) parts.Add(done, text.size(), step.invert);
  parts.Finish();
  return absl::OkStatus();
}

absl::Status PreTokenizer::Split(std::string_view text, Scratch& scratch,
                                 std::vector<std::string_view>& pieces) const {
  pieces.clear();
  if (text.empty()) return absl::OkStatus();
  pieces.push_back(text);
  for (const Step& step : steps_) {
    scratch.pieces.swap(pieces);
    pieces.clear();
    for (const std::string_view piece : scratch.pieces) {
      if (step.regex) {
        RETURN_IF_ERROR(SplitPiece(piece, step, scratch.regex, pieces));
      } else if (piece.starts_with(' ')) {
        pieces.push_back(piece);
      } else {
        pieces.push_back(scratch.prefixed.emplace_back(" ").append(piece));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace jevons

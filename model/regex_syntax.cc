#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/strings.h"
#include "model/regex.h"

namespace jevons {
namespace {

constexpr size_t kMaxPatternBytes = 16 << 10;

// Sets with a letter of their own, as members of a class. PCRE2's \s has U+180E, which is no space;
// its \h is another thing. Oniguruma's \w is a set that no property gives.
struct NamedSet {
  char letter;
  std::string_view members;
  std::string_view complement;
};
constexpr NamedSet kNamedSets[] = {
    {'s', R"(\p{White_Space})", R"(\P{White_Space})"},
    {'d', R"(\p{Nd})", R"(\P{Nd})"},
    {'h', "0-9A-Fa-f", R"(\x00-/:-@G-`g-\x{10FFFF})"},
};

// `\s+$` tries the rest of a run of spaces again from each of its spaces. Where one of them has a
// match the first one has it too, so only the first needs a try.
constexpr std::string_view kTrailingSpaces = R"(\s+$)";
constexpr std::string_view kTrailingSpacesOnce = R"((?<!\p{White_Space})\p{White_Space}+$)";

// A repeat count: * + ? {n} {n,} {n,m} {,m}.
struct Quantifier {
  std::string text;
  size_t num_bytes = 0;  // of the pattern
  bool is_interval = false;
  bool is_fixed = false;  // {n}
};

// One pass from left to right; out_ is the translation of what lies before pos_.
class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  absl::StatusOr<std::string> Run() {
    if (in_.size() > kMaxPatternBytes) {
      return absl::InvalidArgumentError(
          absl::StrFormat("a pattern has %d bytes; the limit is %d", in_.size(), kMaxPatternBytes));
    }
    if (in_ == kTrailingSpaces) return std::string(kTrailingSpacesOnce);
    while (pos_ < in_.size()) RETURN_IF_ERROR(Step());
    if (!groups_.empty()) return Invalid("a group is not closed");
    return std::move(out_);
  }

 private:
  enum class Place { kOutside, kInClass };
  static constexpr size_t kNoAtom = static_cast<size_t>(-1);

  absl::Status Step();
  absl::Status OpenGroup();
  absl::Status OpenOptionGroup();
  absl::Status CloseGroup();
  absl::Status Repeat(const Quantifier& quantifier);
  absl::Status Class();
  absl::Status ClassMember();
  absl::Status Escape(Place place);
  absl::Status Property();
  absl::Status CodePoint();
  bool NamedSetEscape(char letter, Place place);
  bool AnchorEscape(char letter);
  bool CharacterEscape(char letter);
  std::optional<Quantifier> ReadQuantifier() const;
  void CopyCharacter();

  std::string_view Rest() const { return in_.substr(pos_); }
  void Emit(std::string_view text, size_t num_bytes) {
    out_ += text;
    pos_ += num_bytes;
  }
  absl::Status Invalid(std::string_view what) const {
    return Error(absl::StatusCode::kInvalidArgument, what, "");
  }
  absl::Status Unsupported(std::string_view what) const {
    return Error(absl::StatusCode::kUnimplemented, what, " is not supported");
  }
  absl::Status Error(absl::StatusCode code, std::string_view what, std::string_view end) const {
    return absl::Status(
        code, absl::StrFormat("the pattern \"%s\", byte %d: %s%s", ToAbsl(in_.substr(0, 200)), pos_,
                              ToAbsl(what), ToAbsl(end)));
  }

  std::string_view in_;
  size_t pos_ = 0;
  std::string out_;
  size_t atom_ = kNoAtom;       // where in out_ that begins which a quantifier would repeat
  std::vector<size_t> groups_;  // where in out_ the open groups begin
};

absl::Status Translator::Step() {
  if (const std::optional<Quantifier> quantifier = ReadQuantifier()) return Repeat(*quantifier);
  const char c = in_[pos_];
  if (c == '(') return OpenGroup();
  if (c == ')') return CloseGroup();
  if (c == '|' || c == '^' || c == '$') {
    Emit(std::string_view(&c, 1), 1);
    atom_ = kNoAtom;
    return absl::OkStatus();
  }
  atom_ = out_.size();
  if (c == '[') return Class();
  if (c == '\\') return Escape(Place::kOutside);
  if (c == '{') {
    Emit("\\{", 1);
  } else {
    CopyCharacter();
  }
  return absl::OkStatus();
}

void Translator::CopyCharacter() {
  do {
    out_ += in_[pos_++];
  } while (pos_ < in_.size() && (static_cast<uint8_t>(in_[pos_]) & 0xC0) == 0x80);
}

absl::Status Translator::OpenGroup() {
  const std::string_view rest = Rest();
  if (rest.starts_with("(*")) return Unsupported("(*");
  if (rest.starts_with("(?#")) {
    const size_t end = rest.find(')');
    if (end == rest.npos) return Invalid("a comment is not closed");
    pos_ += end + 1;
    return absl::OkStatus();
  }
  groups_.push_back(out_.size());
  atom_ = kNoAtom;
  // No back reference is supported, so no group needs to capture.
  if (!rest.starts_with("(?")) {
    Emit("(?:", 1);
    return absl::OkStatus();
  }
  for (const std::string_view opening : {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!"}) {
    if (!rest.starts_with(opening)) continue;
    Emit(opening, opening.size());
    return absl::OkStatus();
  }
  return OpenOptionGroup();
}

// (?im-im:...). Ruby's m lets the dot match a newline, which is PCRE2's s.
absl::Status Translator::OpenOptionGroup() {
  const std::string_view rest = Rest();
  const size_t end = rest.find_first_not_of("im-", 2);
  if (end == rest.npos || end == 2) return Unsupported(rest.substr(0, 4));
  const bool is_global = rest[end] == ')' && pos_ == 0;
  if (rest[end] != ':' && !is_global) return Unsupported(rest.substr(0, end + 1));
  std::string opening(rest.substr(0, end + 1));
  for (char& c : opening) c = c == 'm' ? 's' : c;
  Emit(opening, opening.size());
  if (is_global) groups_.pop_back();
  return absl::OkStatus();
}

absl::Status Translator::CloseGroup() {
  if (groups_.empty()) return Invalid("a group is closed that was not opened");
  atom_ = groups_.back();
  groups_.pop_back();
  Emit(")", 1);
  return absl::OkStatus();
}

std::optional<Quantifier> Translator::ReadQuantifier() const {
  const std::string_view rest = Rest();
  if (rest.empty()) return std::nullopt;
  if (rest[0] == '*' || rest[0] == '+' || rest[0] == '?') {
    return Quantifier{std::string(1, rest[0]), 1, false, false};
  }
  if (rest[0] != '{') return std::nullopt;
  const size_t end = rest.find('}');
  if (end == rest.npos) return std::nullopt;
  const std::string_view inside = rest.substr(1, end - 1);
  const size_t comma = inside.find(',');
  const std::string_view low = inside.substr(0, comma);
  const std::string_view high =
      comma == inside.npos ? std::string_view() : inside.substr(comma + 1);
  const auto is_number = [](std::string_view s) {
    return s.find_first_not_of("0123456789") == s.npos;
  };
  if (!is_number(low) || !is_number(high) || (low.empty() && high.empty())) return std::nullopt;
  const std::string from = low.empty() ? "0" : std::string(low);
  const bool is_fixed = comma == inside.npos;
  const std::string text =
      is_fixed ? absl::StrCat("{", from, "}") : absl::StrCat("{", from, ",", ToAbsl(high), "}");
  return Quantifier{text, end + 1, true, is_fixed};
}

// In Ruby's syntax an interval has no possessive form, and {n} no lazy one: the sign after it is a
// quantifier of its own. PCRE2 reads one quantifier on another only around a group.
absl::Status Translator::Repeat(const Quantifier& quantifier) {
  if (atom_ == kNoAtom) return Invalid("nothing to repeat");
  Emit(quantifier.text, quantifier.num_bytes);
  const char next = pos_ < in_.size() ? in_[pos_] : '\0';
  const bool is_lazy = next == '?' && !quantifier.is_fixed;
  const bool is_possessive = next == '+' && !quantifier.is_interval;
  if (is_lazy || is_possessive) Emit(std::string_view(&next, 1), 1);
  if (ReadQuantifier()) {
    out_.insert(atom_, "(?:");
    out_ += ')';
  }
  return absl::OkStatus();
}

absl::Status Translator::Class() {
  Emit("[", 1);
  if (Rest().starts_with("^")) Emit("^", 1);
  if (Rest().starts_with("]")) Emit("\\]", 1);
  while (pos_ < in_.size() && in_[pos_] != ']') RETURN_IF_ERROR(ClassMember());
  if (pos_ == in_.size()) return Invalid("a class is not closed");
  Emit("]", 1);
  return absl::OkStatus();
}

absl::Status Translator::ClassMember() {
  const std::string_view rest = Rest();
  if (rest.starts_with("[:")) return Unsupported("a POSIX bracket");
  if (rest.starts_with("[")) return Unsupported("a class in a class");
  if (rest.starts_with("&&")) return Unsupported("&& in a class");
  if (rest[0] == '\\') return Escape(Place::kInClass);
  CopyCharacter();
  return absl::OkStatus();
}

absl::Status Translator::Escape(Place place) {
  if (pos_ + 1 == in_.size()) return Invalid("the pattern ends in a backslash");
  const char letter = in_[pos_ + 1];
  if (letter == 'p' || letter == 'P') return Property();
  if (letter == 'x' || letter == 'u') return CodePoint();
  if (NamedSetEscape(letter, place)) return absl::OkStatus();
  if (place == Place::kOutside && AnchorEscape(letter)) return absl::OkStatus();
  if (place == Place::kInClass && letter == 'b') {
    Emit("\\x08", 2);
    return absl::OkStatus();
  }
  if (CharacterEscape(letter)) return absl::OkStatus();
  return Unsupported(in_.substr(pos_, 2));
}

bool Translator::NamedSetEscape(char letter, Place place) {
  for (const NamedSet& set : kNamedSets) {
    if (absl::ascii_tolower(static_cast<unsigned char>(letter)) != set.letter) continue;
    const std::string_view members = letter == set.letter ? set.members : set.complement;
    Emit(place == Place::kInClass ? std::string(members) : absl::StrCat("[", ToAbsl(members), "]"),
         2);
    return true;
  }
  return false;
}

bool Translator::AnchorEscape(char letter) {
  if (letter != 'A' && letter != 'z' && letter != 'Z') return false;
  Emit(in_.substr(pos_, 2), 2);
  atom_ = kNoAtom;
  return true;
}

bool Translator::CharacterEscape(char letter) {
  if (letter == 'v') {
    Emit("\\x0B", 2);
    return true;
  }
  const auto byte = static_cast<unsigned char>(letter);
  if (byte >= 0x80) {
    ++pos_;
    CopyCharacter();
    return true;
  }
  if (absl::ascii_isalnum(byte) && !absl::StrContains("ntrfae", letter)) return false;
  Emit(in_.substr(pos_, 2), 2);
  return true;
}

// \p{name}, \p{^name}, \P{name}: a general category, or a script. PCRE2's plain script names mean
// the script's extensions, Oniguruma's the script alone.
absl::Status Translator::Property() {
  const std::string_view rest = Rest();
  const size_t end = rest.find('}');
  if (rest.size() < 3 || rest[2] != '{' || end == rest.npos) {
    return Unsupported("a property without braces");
  }
  std::string_view name = rest.substr(3, end - 3);
  bool is_negated = rest[1] == 'P';
  if (name.starts_with("^")) {
    is_negated = !is_negated;
    name.remove_prefix(1);
  }
  std::string key;
  for (const char c : name) {
    if (absl::ascii_isalnum(static_cast<unsigned char>(c))) {
      key += absl::ascii_tolower(static_cast<unsigned char>(c));
    } else if (c != '_' && c != '-' && c != ' ') {
      return Unsupported(rest.substr(0, end + 1));
    }
  }
  for (const std::string_view category :
       {"letter", "mark", "number", "punctuation", "symbol", "separator"}) {
    if (key == category) key.resize(1);
  }
  if (key.empty()) return Invalid("a property without a name");
  if (key.size() > 2) {
    key.insert(0, "sc:");
  } else {
    key[0] = absl::ascii_toupper(static_cast<unsigned char>(key[0]));
  }
  Emit(absl::StrCat(is_negated ? "\\P{" : "\\p{", key, "}"), end + 1);
  return absl::OkStatus();
}

// \x41, \x{1F600}, \u4E00.
absl::Status Translator::CodePoint() {
  const std::string_view rest = Rest();
  size_t begin = 2;
  size_t num_digits = rest[1] == 'u' ? 4 : 2;
  size_t num_bytes = begin + num_digits;
  if (rest[1] == 'x' && rest.substr(2, 1) == "{") {
    const size_t end = rest.find('}');
    if (end == rest.npos) return Invalid("a code point without a closing brace");
    begin = 3;
    num_digits = end - begin;
    num_bytes = end + 1;
  }
  const std::string_view digits = rest.substr(begin, num_digits);
  const bool is_hex = digits.find_first_not_of("0123456789abcdefABCDEF") == digits.npos;
  if (!is_hex || digits.empty() || digits.size() != num_digits || num_digits > 8) {
    return Invalid("a code point that is not hexadecimal");
  }
  // Two digits above 7F mean a byte of the encoded text.
  if (rest[1] == 'x' && begin == 2 && digits[0] >= '8') return Unsupported("a byte above \\x7F");
  Emit(absl::StrCat("\\x{", ToAbsl(digits), "}"), num_bytes);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> TranslateOniguruma(std::string_view pattern) {
  return Translator(pattern).Run();
}

}  // namespace jevons

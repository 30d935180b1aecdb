#include "model/tokenizer.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_format.h"
#include "model/added_tokens.h"
#include "model/file.h"
#include "model/tokenizer_json.h"

namespace jevons {
namespace {

constexpr int64_t kMaxFileBytes = 256 << 20;
constexpr size_t kMaxTextBytes = 1 << 30;

class BpeTokenizer : public Tokenizer {
 public:
  explicit BpeTokenizer(TokenizerJson json);

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              std::span<const size_t> barriers) const override;
  std::string_view TokenBytes(int32_t id) const override;
  const AddedToken* FindAdded(int32_t id) const override;
  std::optional<int32_t> FindToken(std::string_view content) const override;
  std::span<const AddedToken> added_tokens() const override { return added_; }
  int32_t num_tokens() const override { return static_cast<int32_t>(token_bytes_.size()); }

 private:
  // What one call of Encode works with.
  struct Run {
    std::string_view text;
    std::span<const size_t> barriers;
    std::vector<int32_t> ids;
    PreTokenizer::Scratch scratch;
    std::vector<std::string_view> pieces;
  };

  // Encodes [begin, end) of the text. Added tokens of matchers_[pass] and later are looked for.
  absl::Status EncodeRange(size_t begin, size_t end, size_t pass, Run& run) const;
  absl::Status EncodeOrdinary(std::string_view text, Run& run) const;

  std::vector<AddedToken> added_;  // by id; never changes, matchers_ point into it
  // Tokens with "normalized": true are looked for in what the others leave.
  std::array<AddedTokenMatcher, 2> matchers_;
  std::vector<std::string> token_bytes_;
  PreTokenizer pre_tokenizer_;
  Bpe bpe_;
};

BpeTokenizer::BpeTokenizer(TokenizerJson json)
    : token_bytes_(std::move(json.token_bytes)),
      pre_tokenizer_(std::move(json.pre_tokenizer)),
      bpe_(std::move(json.bpe)) {
  added_.reserve(json.added_tokens.size());
  std::array<std::vector<AddedTokenMatcher::Entry>, 2> entries;
  for (AddedTokenJson& added : json.added_tokens) {
    added_.push_back(std::move(added.token));
    entries[added.is_normalized ? 1 : 0].push_back({added_.back().content, added_.back().id});
  }
  for (size_t i = 0; i < entries.size(); ++i) {
    matchers_[i] = AddedTokenMatcher(std::move(entries[i]));
  }
}

absl::StatusOr<std::vector<int32_t>> BpeTokenizer::Encode(std::string_view text,
                                                          std::span<const size_t> barriers) const {
  if (text.size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(
        absl::StrFormat("text has %d bytes; the limit is %d", text.size(), kMaxTextBytes));
  }
  if (const std::optional<size_t> invalid = FindInvalidUtf8(text)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("text is not well-formed UTF-8 at byte %d", *invalid));
  }
  Run run;
  run.text = text;
  run.barriers = barriers;
  RETURN_IF_ERROR(EncodeRange(0, text.size(), 0, run));
  return std::move(run.ids);
}

absl::Status BpeTokenizer::EncodeRange(size_t begin, size_t end, size_t pass, Run& run) const {
  if (begin == end) return absl::OkStatus();
  const std::string_view text = run.text.substr(0, end);
  if (pass == matchers_.size()) return EncodeOrdinary(text.substr(begin), run);
  while (const auto match = matchers_[pass].Find(text, begin, run.barriers)) {
    RETURN_IF_ERROR(EncodeRange(begin, match->begin, pass + 1, run));
    run.ids.push_back(match->id);
    begin = match->end;
  }
  return EncodeRange(begin, end, pass + 1, run);
}

absl::Status BpeTokenizer::EncodeOrdinary(std::string_view text, Run& run) const {
  run.scratch.prefixed.clear();
  RETURN_IF_ERROR(pre_tokenizer_.Split(text, run.scratch, run.pieces));
  for (const std::string_view piece : run.pieces) bpe_.Encode(piece, run.ids);
  return absl::OkStatus();
}

std::string_view BpeTokenizer::TokenBytes(int32_t id) const {
  if (id < 0 || id >= num_tokens()) return {};
  return token_bytes_[static_cast<size_t>(id)];
}

const AddedToken* BpeTokenizer::FindAdded(int32_t id) const {
  const auto it = std::lower_bound(added_.begin(), added_.end(), id,
                                   [](const AddedToken& token, int32_t x) { return token.id < x; });
  return it == added_.end() || it->id != id ? nullptr : &*it;
}

std::optional<int32_t> BpeTokenizer::FindToken(std::string_view content) const {
  for (const AddedTokenMatcher& matcher : matchers_) {
    if (const std::optional<int32_t> id = matcher.FindContent(content)) return id;
  }
  return std::nullopt;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& folder) {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(folder + "/tokenizer.json", kMaxFileBytes));
  return Parse(text);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Parse(std::string_view tokenizer_json) {
  ASSIGN_OR_RETURN(TokenizerJson json, ReadTokenizerJson(tokenizer_json));
  return std::make_unique<BpeTokenizer>(std::move(json));
}

}  // namespace jevons

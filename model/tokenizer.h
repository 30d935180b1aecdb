// Text to token ids and back, from tokenizer.json alone.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace jevons {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;
};

// Byte-level BPE. Immutable, thread-safe.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Reads FOLDER/tokenizer.json. UNIMPLEMENTED names what of the file is not supported (a normalizer, another model).
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& folder);
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Parse(std::string_view tokenizer_json);

  // Ids of `text`, no bos or eos added. Added tokens, special or not, are matched in the text before anything else,
  // except where a match would span one of the byte offsets `barriers` (rising; offset b lies between bytes b - 1 and
  // b): there the characters are ordinary text. INVALID_ARGUMENT with the offset for ill-formed UTF-8.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(
      std::string_view text, std::span<const size_t> barriers = {}) const = 0;

  // Bytes of one token; empty for an id without one (padding rows, out of range). Added tokens give their content.
  virtual std::string_view TokenBytes(int32_t id) const = 0;
  // nullptr for ids that are not added tokens.
  virtual const AddedToken* FindAdded(int32_t id) const = 0;
  virtual std::optional<int32_t> FindToken(
      std::string_view content) const = 0;                       // added tokens only
  virtual std::span<const AddedToken> added_tokens() const = 0;  // by id

  // One more than the largest id in use; the model's vocab_size may be larger.
  virtual int32_t num_tokens() const = 0;

  // The text of `ids`, incomplete characters as U+FFFD. `skip_special` leaves out tokens with special = true.
  std::string Decode(std::span<const int32_t> ids, bool skip_special) const;
};

// Streaming decode: bytes in, whole characters out. Thread-compatible.
class Detokenizer {
 public:
  // Appends one token's bytes and returns what has become complete characters. Bytes that can never be completed come
  // out as U+FFFD, one for each maximal ill-formed part.
  std::string Push(std::string_view bytes);
  // What is still held back, as U+FFFD, at the end of the text.
  std::string Flush();

 private:
  std::string held_;
};

// Offset of the first byte that is not well-formed UTF-8, or nothing.
std::optional<size_t> FindInvalidUtf8(std::string_view text);

}  // namespace jevons

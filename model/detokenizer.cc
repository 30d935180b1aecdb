#include <cstring>

#include "model/tokenizer.h"

namespace jevons {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

enum class Utf8Kind { kCharacter, kIllFormed, kTruncated };

// The start of a byte string: a whole character, a maximal ill-formed part, or a character that the
// end of the string cuts off.
struct Utf8Part {
  Utf8Kind kind;
  size_t num_bytes;
};

// How a lead byte goes on: number of continuation bytes and bounds of the first of them.
struct Utf8Lead {
  int num_more;  // -1: not a lead byte
  uint8_t low = 0x80;
  uint8_t high = 0xBF;
};

// Source: Unicode Standard, table 3-7.
Utf8Lead ReadLead(uint8_t byte) {
  if (byte < 0x80) return {0};
  if (byte < 0xC2) return {-1};
  if (byte < 0xE0) return {1};
  if (byte == 0xE0) return {2, 0xA0, 0xBF};
  if (byte == 0xED) return {2, 0x80, 0x9F};
  if (byte < 0xF0) return {2};
  if (byte == 0xF0) return {3, 0x90, 0xBF};
  if (byte < 0xF4) return {3};
  if (byte == 0xF4) return {3, 0x80, 0x8F};
  return {-1};
}

// `bytes` is not empty.
Utf8Part ReadPart(std::string_view bytes) {
  const Utf8Lead lead = ReadLead(static_cast<uint8_t>(bytes[0]));
  if (lead.num_more < 0) return {Utf8Kind::kIllFormed, 1};
  uint8_t low = lead.low;
  uint8_t high = lead.high;
  for (size_t i = 1; i <= static_cast<size_t>(lead.num_more); ++i) {
    if (i == bytes.size()) return {Utf8Kind::kTruncated, i};
    const auto byte = static_cast<uint8_t>(bytes[i]);
    if (byte < low || byte > high) return {Utf8Kind::kIllFormed, i};
    low = 0x80;
    high = 0xBF;
  }
  return {Utf8Kind::kCharacter, static_cast<size_t>(lead.num_more) + 1};
}

// Length of the ASCII text at the start, in steps of eight bytes.
size_t SkipAscii(std::string_view bytes) {
  size_t i = 0;
  for (; i + 8 <= bytes.size(); i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + i, sizeof(word));
    if (word & 0x8080808080808080u) break;
  }
  return i;
}

// Appends the whole characters of `bytes` to `out` and replaces ill-formed parts; returns where the
// character that is cut off at the end begins.
size_t AppendCharacters(std::string_view bytes, std::string& out) {
  size_t i = 0;
  size_t copied = 0;
  while (i < bytes.size()) {
    i += SkipAscii(bytes.substr(i));
    if (i == bytes.size()) break;
    const Utf8Part part = ReadPart(bytes.substr(i));
    if (part.kind == Utf8Kind::kTruncated) break;
    if (part.kind == Utf8Kind::kIllFormed) {
      out.append(bytes, copied, i - copied);
      out += kReplacement;
      copied = i + part.num_bytes;
    }
    i += part.num_bytes;
  }
  out.append(bytes, copied, i - copied);
  return i;
}

}  // namespace

std::optional<size_t> FindInvalidUtf8(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    i += SkipAscii(text.substr(i));
    if (i == text.size()) break;
    const Utf8Part part = ReadPart(text.substr(i));
    if (part.kind != Utf8Kind::kCharacter) return i;
    i += part.num_bytes;
  }
  return std::nullopt;
}

std::string Detokenizer::Push(std::string_view bytes) {
  std::string out;
  if (held_.empty()) {
    held_ = bytes.substr(AppendCharacters(bytes, out));
    return out;
  }
  held_ += bytes;
  const size_t held_begin = AppendCharacters(held_, out);
  held_.erase(0, held_begin);
  return out;
}

std::string Detokenizer::Flush() {
  std::string out;
  if (!held_.empty()) out = kReplacement;
  held_.clear();
  return out;
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (const int32_t id : ids) {
    const AddedToken* added = FindAdded(id);
    if (skip_special && added != nullptr && added->special) continue;
    bytes += TokenBytes(id);
  }
  Detokenizer detokenizer;
  std::string text = detokenizer.Push(bytes);
  text += detokenizer.Flush();
  return text;
}

}  // namespace jevons

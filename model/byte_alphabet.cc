#include "model/byte_alphabet.h"

#include <array>

namespace jevons {
namespace {

// The highest code point in use is 256 + 67.
constexpr size_t kNumCodePoints = 0x180;

struct Alphabet {
  std::array<uint16_t, 256> code_points{};
  std::array<int16_t, kNumCodePoints> bytes{};  // -1: not in the alphabet
};

// Printable bytes stand for themselves as Latin-1; the others take the code points from 256 on, in
// their order.
constexpr Alphabet MakeAlphabet() {
  Alphabet alphabet;
  for (int16_t& byte : alphabet.bytes) byte = -1;
  uint16_t next = 256;
  for (uint16_t byte = 0; byte < 256; ++byte) {
    const bool is_printable =
        (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xFF && byte != 0xAD);
    const uint16_t code_point = is_printable ? byte : next++;
    alphabet.code_points[byte] = code_point;
    alphabet.bytes[code_point] = static_cast<int16_t>(byte);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = MakeAlphabet();

}  // namespace

std::string ByteCharacter(uint8_t byte) {
  const uint16_t code_point = kAlphabet.code_points[byte];
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xC0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3F))};
}

std::optional<std::string> ReadByteCharacters(std::string_view token) {
  std::string bytes;
  bytes.reserve(token.size());
  for (size_t i = 0; i < token.size(); ++i) {
    size_t code_point = static_cast<uint8_t>(token[i]);
    if (code_point >= 0x80) {
      // Every character of the alphabet has at most two bytes.
      if (code_point < 0xC2 || code_point > 0xDF || i + 1 == token.size()) return std::nullopt;
      code_point = (code_point & 0x1F) << 6 | (static_cast<uint8_t>(token[++i]) & 0x3F);
    }
    if (code_point >= kNumCodePoints || kAlphabet.bytes[code_point] < 0) return std::nullopt;
    bytes += static_cast<char>(kAlphabet.bytes[code_point]);
  }
  return bytes;
}

}  // namespace jevons

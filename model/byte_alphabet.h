// The alphabet in which byte-level vocabularies write bytes: one printable character for each.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace jevons {

// The character of `byte`, in UTF-8.
std::string ByteCharacter(uint8_t byte);

// The bytes that `token` writes; nothing if it has a character outside the alphabet.
std::optional<std::string> ReadByteCharacters(std::string_view token);

}  // namespace jevons

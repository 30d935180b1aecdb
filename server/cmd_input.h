// What the subcommands read: files, lists of ids, conversations.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "nlohmann/json.hpp"

namespace jevons {

// The whole file; "-" is stdin. NOT_FOUND names the file.
absl::StatusOr<std::string> ReadFileOrStdin(const std::string& path);

// "1,2,3", also with spaces, newlines or brackets. INVALID_ARGUMENT with the place and what stands
// there.
absl::StatusOr<std::vector<int32_t>> ParseIds(std::string_view text);

// A JSON file with a list of messages, or an object as ChatFormat::Render takes it. Always returns
// the object. Errors name the file.
absl::StatusOr<nlohmann::ordered_json> ReadConversation(const std::string& path);

// "1,2,3"
std::string JoinIds(const std::vector<int32_t>& ids);

// `text` as a JSON string.
std::string JsonString(std::string_view text);

}  // namespace jevons

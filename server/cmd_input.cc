#include "server/cmd_input.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/strings.h"
#include "model/chat_format.h"
#include "server/error_text.h"

namespace jevons {
namespace {

struct FileCloser {
  void operator()(std::FILE* file) const {
    if (file != stdin) std::fclose(file);
  }
};

}  // namespace

absl::StatusOr<std::string> ReadFileOrStdin(const std::string& path) {
  const std::unique_ptr<std::FILE, FileCloser> file(path == "-" ? stdin
                                                                : std::fopen(path.c_str(), "rb"));
  if (file == nullptr) {
    return absl::NotFoundError(absl::StrCat("cannot read ", path, ": ", std::strerror(errno)));
  }
  std::string out;
  char buffer[1 << 16];
  size_t count = 0;
  while ((count = std::fread(buffer, 1, sizeof(buffer), file.get())) > 0) out.append(buffer, count);
  if (std::ferror(file.get()) != 0) {
    return absl::NotFoundError(absl::StrCat("cannot read ", path, ": ", std::strerror(errno)));
  }
  return out;
}

absl::StatusOr<std::vector<int32_t>> ParseIds(std::string_view text) {
  std::vector<int32_t> out;
  for (const absl::string_view part :
       absl::StrSplit(ToAbsl(text), absl::ByAnyChar(", \t\r\n[]"), absl::SkipEmpty())) {
    int32_t id = 0;
    if (!absl::SimpleAtoi(part, &id)) {
      return absl::InvalidArgumentError(absl::StrCat("entry ", out.size(),
                                                     " of the ids must be a 32-bit number, given ",
                                                     QuoteValue(ToStd(part))));
    }
    out.push_back(id);
  }
  return out;
}

absl::StatusOr<nlohmann::ordered_json> ReadConversation(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFileOrStdin(path));
  absl::StatusOr<nlohmann::ordered_json> value = ParseJson(text);
  if (!value.ok()) return Prefixed(absl::StrCat(path, ": "), value.status());
  if (value->is_object()) return value;
  if (value->is_array()) {
    nlohmann::ordered_json out;
    out["messages"] = *std::move(value);
    return out;
  }
  return absl::InvalidArgumentError(
      absl::StrCat(path, " must hold a list of messages or an object with messages"));
}

std::string JoinIds(const std::vector<int32_t>& ids) { return absl::StrJoin(ids, ","); }

std::string JsonString(std::string_view text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace jevons

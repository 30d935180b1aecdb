#include <cstdio>
#include <memory>

#include "absl/strings/escaping.h"
#include "base/strings.h"
#include "model/tokenizer.h"
#include "server/cmd.h"
#include "server/cmd_input.h"

namespace jevons {
namespace {

struct TokenizeFlags {
  std::string model;
  bool ids = false;
  bool detokenize = false;
  std::string text;
  bool has_text = false;
};

std::string QuoteToken(std::string_view bytes) {
  const bool whole = !FindInvalidUtf8(bytes).has_value();
  return absl::StrCat(
      "\"", whole ? absl::Utf8SafeCEscape(ToAbsl(bytes)) : absl::CHexEscape(ToAbsl(bytes)), "\"");
}

absl::Status Detokenize(const Tokenizer& tokenizer, const std::string& text) {
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids, ParseIds(text));
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < tokenizer.num_tokens()) continue;
    return absl::InvalidArgumentError(absl::StrCat("entry ", i, " of the ids must be in [0, ",
                                                   tokenizer.num_tokens(), "), given ", ids[i]));
  }
  const std::string decoded = tokenizer.Decode(ids, /*skip_special=*/false);
  std::fwrite(decoded.data(), 1, decoded.size(), stdout);
  return absl::OkStatus();
}

absl::Status Tokenize(const TokenizeFlags& flags) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(flags.model));
  std::string text = flags.text;
  if (!flags.has_text) {
    ASSIGN_OR_RETURN(text, ReadFileOrStdin("-"));
  }
  if (flags.detokenize) return Detokenize(*tokenizer, text);
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer->Encode(text));
  if (flags.ids) {
    std::printf("%s\n", JoinIds(ids).c_str());
    return absl::OkStatus();
  }
  for (const int32_t id : ids) {
    std::printf("%d\t%s\n", id, QuoteToken(tokenizer->TokenBytes(id)).c_str());
  }
  return absl::OkStatus();
}

}  // namespace

void AddTokenize(CLI::App& app, CommandRun& run) {
  const auto flags = std::make_shared<TokenizeFlags>();
  CLI::App& cmd = *app.add_subcommand("tokenize", "Text to token ids, or back");
  cmd.add_option("--model", flags->model, "Checkpoint folder")->required();
  CLI::Option* ids = cmd.add_flag("--ids", flags->ids, "Print the ids alone, separated by commas");
  cmd.add_flag("--detokenize", flags->detokenize, "Take ids, print their text exactly")
      ->excludes(ids);
  CLI::Option* text = cmd.add_option("text", flags->text, "Text or ids; default: from stdin");
  cmd.callback([&run, flags, text] {
    flags->has_text = text->count() > 0;
    run = [flags] {
      const absl::Status status = Tokenize(*flags);
      return status.ok() ? kExitOk : Fail(status);
    };
  });
}

}  // namespace jevons

// What a tokenizer.json says, checked.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "model/bpe.h"
#include "model/pre_tokenizer.h"
#include "model/tokenizer.h"

namespace jevons {

struct AddedTokenJson {
  AddedToken token;
  bool is_normalized = false;  // matched only where no token without this is
};

struct TokenizerJson {
  std::vector<std::string> token_bytes;      // by id; empty where there is no token
  std::vector<AddedTokenJson> added_tokens;  // by id; ids and contents are unique
  PreTokenizer pre_tokenizer;
  Bpe bpe;
};

// INVALID_ARGUMENT and UNIMPLEMENTED name the keys.
absl::StatusOr<TokenizerJson> ReadTokenizerJson(std::string_view text);

}  // namespace jevons

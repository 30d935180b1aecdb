#include "model/tokenizer_json.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "base/strings.h"
#include "model/byte_alphabet.h"
#include "model/config_reader.h"
#include "model/error_text.h"
#include "nlohmann/json.hpp"

namespace jevons {

using nlohmann::json;

namespace {

// Tables are as long as the largest id; real vocabularies have up to a quarter of this.
constexpr int32_t kMaxTokenId = (1 << 20) - 1;

// A real file has 6. The JSON library prints values with a call for each level.
// Bytes that no UTF-8 text holds need no token.
bool OccursInUtf8(int byte) { return byte != 0xC0 && byte != 0xC1 && byte < 0xF5; }

// Reads the keys one after the other and stops at the first one with a problem. Thread-compatible.
class Reader {
 public:
  Reader(const json& root, ConfigProblems& problems)
      : problems_(problems), top_(root, "", &problems) {}

  TokenizerJson Read() {
    ReadNormalizer();
    ReadDecoder();
    ReadModel();
    if (problems_.empty()) ReadAddedTokens();
    if (problems_.empty()) PlaceAddedTokens();
    if (problems_.empty()) ReadPreTokenizer();
    return std::move(result_);
  }

 private:
  void ReadNormalizer();
  void ReadDecoder();
  void ReadModel();
  void ReadVocab(const json& vocab);
  std::vector<Bpe::Merge> ReadMerges(const json& merges);
  std::optional<std::pair<std::string_view, std::string_view>> ReadPair(const json& merge);
  Bpe::ByteIds ReadByteIds();
  void AddWholePieces();
  void ReadPreTokenizer();
  void ReadAddedTokens();
  void PlaceAddedTokens();
  void ReadAddedToken(const json& value, const std::string& name);
  void CheckOptions(ConfigReader& model);
  // The value under `key`; null, with a problem, if there is none.
  const json* Value(const ConfigReader& reader, const std::string& key, json::value_t type);
  void Wrong(std::string text) { problems_.wrong.push_back(std::move(text)); }
  void Unsupported(std::string text) { problems_.unsupported.push_back(std::move(text)); }

  ConfigProblems& problems_;
  ConfigReader top_;
  TokenizerJson result_;
  std::vector<std::string_view> vocab_content_;  // by id; data() is null where there is no token
  absl::flat_hash_map<absl::string_view, int32_t> vocab_;
};

const json* Reader::Value(const ConfigReader& reader, const std::string& key, json::value_t type) {
  const json* value = reader.Get(key);
  if (value == nullptr) {
    problems_.missing.push_back(reader.Name(key));
    return nullptr;
  }
  if (value->type() == type) return value;
  Wrong(absl::StrCat(reader.Name(key), " is ", ShortJson(*value), ", not ",
                     type == json::value_t::object ? "an object" : "a list"));
  return nullptr;
}

void Reader::ReadNormalizer() {
  if (!top_.Has("normalizer")) return;
  const json* value = Value(top_, "normalizer", json::value_t::object);
  if (value == nullptr) return;
  ConfigReader reader(*value, "normalizer.", &problems_);
  const std::string type = reader.String("type");
  if (type != "Sequence") {
    if (reader.Has("type")) Unsupported(absl::StrCat("normalizer ", Printable(type)));
    return;
  }
  const json* list = Value(reader, "normalizers", json::value_t::array);
  if (list != nullptr && !list->empty()) {
    Unsupported(absl::StrCat("normalizer ", ShortJson(*list)));
  }
}

void Reader::ReadDecoder() {
  const json* value = Value(top_, "decoder", json::value_t::object);
  if (value == nullptr) return;
  ConfigReader reader(*value, "decoder.", &problems_);
  const std::string type = reader.String("type");
  if (type != "ByteLevel" && reader.Has("type")) {
    Unsupported(absl::StrCat("decoder ", Printable(type)));
  }
}

void Reader::ReadPreTokenizer() {
  if (const json* value = top_.Get("pre_tokenizer")) {
    result_.pre_tokenizer = PreTokenizer::FromJson(*value, problems_);
  } else {
    Unsupported("no pre_tokenizer");
  }
}

void Reader::CheckOptions(ConfigReader& model) {
  const std::string type = model.String("type");
  if (type != "BPE" && model.Has("type")) {
    Unsupported(absl::StrCat("model.type ", Printable(type)));
    return;
  }
  if (model.Number("dropout", {0, 1}, 0.0) != 0) Unsupported("model.dropout");
  if (model.Bool("byte_fallback", false)) Unsupported("model.byte_fallback");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!model.String(key, "").empty()) Unsupported(absl::StrCat("model.", key));
  }
}

void Reader::ReadModel() {
  const json* value = Value(top_, "model", json::value_t::object);
  if (value == nullptr) return;
  ConfigReader reader(*value, "model.", &problems_);
  CheckOptions(reader);
  const bool ignore_merges = reader.Bool("ignore_merges", false);
  if (!problems_.empty()) return;
  const json* vocab = Value(reader, "vocab", json::value_t::object);
  const json* merges = Value(reader, "merges", json::value_t::array);
  if (vocab == nullptr || merges == nullptr) return;
  ReadVocab(*vocab);
  if (!problems_.empty()) return;
  const Bpe::ByteIds byte_ids = ReadByteIds();
  const std::vector<Bpe::Merge> merge_list = ReadMerges(*merges);
  if (!problems_.empty()) return;
  result_.bpe = Bpe(byte_ids, merge_list);
  if (ignore_merges) AddWholePieces();
}

void Reader::ReadVocab(const json& vocab) {
  const auto& entries = vocab.get_ref<const json::object_t&>();
  vocab_.reserve(entries.size());
  for (const auto& [content, id_value] : entries) {
    const bool is_id = id_value.is_number_unsigned() && id_value.get<uint64_t>() <= kMaxTokenId;
    if (!is_id) {
      return Wrong(absl::StrCat("model.vocab[\"", Printable(content), "\"] is ",
                                ShortJson(id_value), "; allowed are 0 to ", kMaxTokenId));
    }
    const auto id = id_value.get<size_t>();
    if (id >= vocab_content_.size()) vocab_content_.resize(id + 1);
    if (vocab_content_[id].data() != nullptr) {
      return Wrong(absl::StrCat("model.vocab: \"", Printable(vocab_content_[id]), "\" and \"",
                                Printable(content), "\" both have the id ", id));
    }
    vocab_content_[id] = content;
    vocab_[content] = static_cast<int32_t>(id);
  }
  result_.token_bytes.resize(vocab_content_.size());
  for (size_t id = 0; id < vocab_content_.size(); ++id) {
    const std::string_view content = vocab_content_[id];
    // A token outside the alphabet is text as it stands.
    result_.token_bytes[id] = ReadByteCharacters(content).value_or(std::string(content));
  }
}

Bpe::ByteIds Reader::ReadByteIds() {
  Bpe::ByteIds ids;
  for (int byte = 0; byte < 256; ++byte) {
    const auto token = vocab_.find(ByteCharacter(static_cast<uint8_t>(byte)));
    ids[byte] = token == vocab_.end() ? -1 : token->second;
    if (ids[byte] < 0 && OccursInUtf8(byte) && problems_.empty()) {
      Wrong(absl::StrCat("model.vocab has no token for the byte ", byte));
    }
  }
  return ids;
}

// "a b" or ["a", "b"].
std::optional<std::pair<std::string_view, std::string_view>> Reader::ReadPair(const json& merge) {
  if (const auto* text = merge.get_ptr<const json::string_t*>()) {
    const size_t space = text->find(' ');
    if (space == text->npos || text->find(' ', space + 1) != text->npos) return std::nullopt;
    return std::pair(std::string_view(*text).substr(0, space),
                     std::string_view(*text).substr(space + 1));
  }
  if (!merge.is_array() || merge.size() != 2) return std::nullopt;
  const auto* left = merge[0].get_ptr<const json::string_t*>();
  const auto* right = merge[1].get_ptr<const json::string_t*>();
  if (left == nullptr || right == nullptr) return std::nullopt;
  return std::pair(std::string_view(*left), std::string_view(*right));
}

std::vector<Bpe::Merge> Reader::ReadMerges(const json& merges) {
  std::vector<Bpe::Merge> result;
  result.reserve(merges.size());
  std::string joined;
  for (size_t i = 0; i < merges.size(); ++i) {
    const auto pair = ReadPair(merges[i]);
    if (!pair) {
      Wrong(absl::StrCat("model.merges[", i, "] is ", ShortJson(merges[i]), ", not two tokens"));
      return {};
    }
    joined.assign(pair->first).append(pair->second);
    std::array<int32_t, 3> ids;
    const std::array<std::string_view, 3> tokens = {pair->first, pair->second, joined};
    for (size_t k = 0; k < tokens.size(); ++k) {
      const auto token = vocab_.find(ToAbsl(tokens[k]));
      if (token == vocab_.end()) {
        Wrong(absl::StrCat("model.merges[", i, "]: \"", Printable(tokens[k]),
                           "\" is not in model.vocab"));
        return {};
      }
      ids[k] = token->second;
    }
    result.push_back({ids[0], ids[1], ids[2]});
  }
  return result;
}

void Reader::AddWholePieces() {
  for (size_t id = 0; id < vocab_content_.size(); ++id) {
    std::optional<std::string> bytes = ReadByteCharacters(vocab_content_[id]);
    if (!bytes || bytes->empty()) continue;
    result_.bpe.AddWholePiece(*std::move(bytes), static_cast<int32_t>(id));
  }
}

void Reader::ReadAddedTokens() {
  if (!top_.Has("added_tokens")) return;
  const json* list = Value(top_, "added_tokens", json::value_t::array);
  if (list == nullptr) return;
  for (size_t i = 0; i < list->size() && problems_.empty(); ++i) {
    ReadAddedToken((*list)[i], absl::StrCat("added_tokens[", i, "]"));
  }
}

void Reader::ReadAddedToken(const json& value, const std::string& name) {
  if (!value.is_object()) {
    return Wrong(absl::StrCat(name, " is ", ShortJson(value), ", not an object"));
  }
  ConfigReader reader(value, name + ".", &problems_);
  AddedToken token;
  token.id = reader.Int("id", {0, kMaxTokenId});
  token.content = reader.String("content");
  token.special = reader.Bool("special");
  const bool is_normalized = reader.Bool("normalized");
  for (const char* key : {"single_word", "lstrip", "rstrip"}) {
    if (reader.Bool(key)) reader.AddUnsupported(reader.Name(key));
  }
  if (!problems_.empty()) return;
  if (token.content.empty()) return Wrong(absl::StrCat(reader.Name("content"), " is empty"));
  const auto in_vocab = vocab_.find(token.content);
  if (in_vocab != vocab_.end() && in_vocab->second != token.id) {
    return Wrong(absl::StrCat(reader.Name("id"), " is ", token.id, "; model.vocab gives \"",
                              Printable(token.content), "\" the id ", in_vocab->second));
  }
  result_.added_tokens.push_back({std::move(token), is_normalized});
}

// Puts the added tokens in the order of their ids and into the table of all tokens.
void Reader::PlaceAddedTokens() {
  auto& added = result_.added_tokens;
  std::sort(added.begin(), added.end(), [](const AddedTokenJson& a, const AddedTokenJson& b) {
    return a.token.id < b.token.id;
  });
  absl::flat_hash_set<absl::string_view> contents;
  const AddedToken* previous = nullptr;
  for (const auto& [token, is_normalized] : added) {
    const auto id = static_cast<size_t>(token.id);
    const bool is_taken = previous != nullptr && previous->id == token.id;
    if (is_taken || (id < vocab_content_.size() && vocab_content_[id].data() != nullptr &&
                     vocab_content_[id] != token.content)) {
      return Wrong(absl::StrCat("added_tokens: \"", Printable(token.content), "\" has the id ", id,
                                ", which another token has too"));
    }
    if (!contents.insert(token.content).second) {
      return Wrong(absl::StrCat("added_tokens: \"", Printable(token.content), "\" appears twice"));
    }
    if (id >= result_.token_bytes.size()) result_.token_bytes.resize(id + 1);
    result_.token_bytes[id] = token.content;
    previous = &token;
  }
}

}  // namespace

absl::StatusOr<TokenizerJson> ReadTokenizerJson(std::string_view text) {
  absl::StatusOr<json> root = ParseJsonObject(text);
  if (!root.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: ", root.status().message()));
  }
  ConfigProblems problems;
  TokenizerJson result = Reader(*root, problems).Read();
  RETURN_IF_ERROR(problems.ToStatus("tokenizer.json"));
  return result;
}

}  // namespace jevons

#include "model/tokenizer_json.h"

#include <string>
#include <vector>

#include "base/random.h"
#include "gtest/gtest.h"
#include "tests/support/small_tokenizer.h"
#include "tests/support/test_data.h"

namespace jevons {
namespace {

using nlohmann::json;

struct BadCase {
  const char* pointer;  // what is replaced, or removed where `value` is discarded
  json value;
  absl::StatusCode code;
  const char* text;  // part of the message
};

const json kRemoved = json::value_t::discarded;

void ExpectError(const json& changed, absl::StatusCode code, const std::string& text) {
  const absl::Status status = Tokenizer::Parse(changed.dump()).status();
  EXPECT_EQ(status.code(), code) << text << ": " << status;
  EXPECT_NE(status.message().find(text), status.message().npos) << status << "\nlacks " << text;
}

void RunBadCases(const std::vector<BadCase>& cases) {
  for (const BadCase& bad : cases) {
    json changed = SmallTokenizerJson();
    changed["added_tokens"].push_back(AddedTokenField(300, "<a>"));
    changed["added_tokens"].push_back(AddedTokenField(301, "<b>"));
    const json::json_pointer pointer(bad.pointer);
    if (bad.value.is_discarded()) {
      changed[pointer.parent_pointer()].erase(pointer.back());
    } else {
      changed[pointer] = bad.value;
    }
    ExpectError(changed, bad.code, bad.text);
  }
}

TEST(TokenizerJson, MissingAndIllFormedKeysAreNamed) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  RunBadCases({
      {"/model", kRemoved, kInvalid, "missing keys: model"},
      {"/model", "BPE", kInvalid, "model is \"BPE\", not an object"},
      {"/model/type", kRemoved, kInvalid, "model.type"},
      {"/model/vocab", kRemoved, kInvalid, "model.vocab"},
      {"/model/vocab", json::array(), kInvalid, "model.vocab is [], not an object"},
      {"/model/vocab", json::object(), kInvalid, "model.vocab has no token for the byte 0"},
      {"/model/vocab/a", kRemoved, kInvalid, "model.vocab has no token for the byte 97"},
      {"/model/vocab/a", -1, kInvalid, "model.vocab[\"a\"] is -1; allowed are 0 to 1048575"},
      {"/model/vocab/a", 1 << 20, kInvalid, "model.vocab[\"a\"] is 1048576"},
      {"/model/vocab/a", UINT64_MAX, kInvalid, "model.vocab[\"a\"] is 18446744073709551615"},
      {"/model/vocab/a", 1.5, kInvalid, "model.vocab[\"a\"] is 1.5"},
      {"/model/vocab/a", "7", kInvalid, "model.vocab[\"a\"] is \"7\""},
      {"/model/vocab/a", 98, kInvalid, "both have the id 98"},
      {"/model/merges", kRemoved, kInvalid, "model.merges"},
      {"/model/merges/0", "th", kInvalid, "model.merges[0] is \"th\", not two tokens"},
      {"/model/merges/0", "t h e", kInvalid, "model.merges[0]"},
      {"/model/merges/0", json::array({"t"}), kInvalid, "model.merges[0]"},
      {"/model/merges/0", json::array({"t", 1}), kInvalid, "model.merges[0]"},
      {"/model/merges/1", "th x", kInvalid, "model.merges[1]: \"thx\" is not in model.vocab"},
      {"/model/merges/1", "xx e", kInvalid, "model.merges[1]: \"xx\" is not in model.vocab"},
      {"/model/byte_fallback", 1, kInvalid, "model.byte_fallback"},
      {"/model/ignore_merges", "no", kInvalid, "model.ignore_merges"},
      {"/model/dropout", "x", kInvalid, "model.dropout"},
      {"/decoder", kRemoved, kInvalid, "decoder"},
      {"/decoder/type", 1, kInvalid, "decoder.type"},
      {"/normalizer", 1, kInvalid, "normalizer is 1"},
      {"/normalizer", {{"type", "Sequence"}}, kInvalid, "normalizer.normalizers"},
      {"/added_tokens", json::object(), kInvalid, "added_tokens is {}, not a list"},
      {"/added_tokens/1", 7, kInvalid, "added_tokens[1] is 7, not an object"},
      {"/added_tokens/1/id", kRemoved, kInvalid, "added_tokens[1].id"},
      {"/added_tokens/1/id", -5, kInvalid, "added_tokens[1].id is -5"},
      {"/added_tokens/1/id", UINT64_MAX, kInvalid, "added_tokens[1].id"},
      {"/added_tokens/1/id", 300, kInvalid, "\"<b>\" has the id 300, which another token has"},
      {"/added_tokens/1/id", 97, kInvalid, "\"<b>\" has the id 97, which another token has"},
      {"/added_tokens/1/content", kRemoved, kInvalid, "added_tokens[1].content"},
      {"/added_tokens/1/content", "", kInvalid, "added_tokens[1].content is empty"},
      {"/added_tokens/1/content", "<a>", kInvalid, "\"<a>\" appears twice"},
      {"/added_tokens/1/content", "a", kInvalid, "model.vocab gives \"a\" the id 97"},
      {"/added_tokens/1/special", kRemoved, kInvalid, "added_tokens[1].special"},
      {"/added_tokens/1/normalized", "x", kInvalid, "added_tokens[1].normalized"},
  });
}

TEST(TokenizerJson, WhatIsNotSupportedIsNamed) {
  constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;
  RunBadCases({
      {"/model/type", "WordPiece", kUnimplemented, "model.type WordPiece"},
      {"/model/byte_fallback", true, kUnimplemented, "model.byte_fallback"},
      {"/model/dropout", 0.1, kUnimplemented, "model.dropout"},
      {"/model/continuing_subword_prefix", "##", kUnimplemented, "continuing_subword_prefix"},
      {"/model/end_of_word_suffix", "</w>", kUnimplemented, "end_of_word_suffix"},
      {"/normalizer", {{"type", "NFC"}}, kUnimplemented, "normalizer NFC"},
      {"/normalizer",
       {{"type", "Sequence"}, {"normalizers", {{{"type", "Lowercase"}}}}},
       kUnimplemented,
       "Lowercase"},
      {"/decoder/type", "Metaspace", kUnimplemented, "decoder Metaspace"},
      {"/pre_tokenizer", kRemoved, kUnimplemented, "no pre_tokenizer"},
      {"/pre_tokenizer/type", "Whitespace", kUnimplemented, "pre_tokenizer.type Whitespace"},
      {"/added_tokens/0/single_word", true, kUnimplemented, "added_tokens[0].single_word"},
      {"/added_tokens/0/lstrip", true, kUnimplemented, "added_tokens[0].lstrip"},
      {"/added_tokens/0/rstrip", true, kUnimplemented, "added_tokens[0].rstrip"},
  });
}

TEST(TokenizerJson, TextThatIsNoJsonIsRefusedWithItsOffset) {
  for (const std::string text : {"", "{", "[]", "3", "{\"a\":\"\xFF\"}", "{} x"}) {
    EXPECT_EQ(Tokenizer::Parse(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
  const absl::Status status = Tokenizer::Parse("{\"model\": nul}").status();
  EXPECT_NE(status.message().find("not JSON at byte 14"), status.message().npos) << status;
}

TEST(TokenizerJson, DeepNestingIsRefused) {
  constexpr size_t kDepth = 1 << 20;
  for (const std::string open : {"[", "{\"a\":"}) {
    std::string text = "{\"model\":";
    for (size_t i = 0; i < kDepth; ++i) text += open;
    text += "1" + std::string(kDepth, open == "[" ? ']' : '}') + "}";
    const absl::Status status = Tokenizer::Parse(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_NE(status.message().find("more than 64"), status.message().npos) << status;
  }
}

TEST(TokenizerJson, MergesMayBePairsAndOptionsMayBeNull) {
  json changed = SmallTokenizerJson();
  changed["model"]["merges"] = json::array({json::array({"t", "h"}), json::array({"th", "e"})});
  for (const char* key : {"dropout", "unk_token", "continuing_subword_prefix", "ignore_merges"}) {
    changed["model"][key] = nullptr;
  }
  changed["model"]["end_of_word_suffix"] = "";
  changed["normalizer"] = {{"type", "Sequence"}, {"normalizers", json::array()}};
  changed.erase("added_tokens");
  const auto tokenizer = ParseTokenizer(changed);
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->Encode("the").value(), std::vector<int32_t>{257});
}

TEST(TokenizerJson, IgnoreMergesLooksTheWholePieceUpFirst) {
  json changed = SmallTokenizerJson({{"a", "b"}, {"b", "c"}});
  changed["model"]["vocab"]["abc"] = 400;
  const auto plain = ParseTokenizer(changed);
  changed["model"]["ignore_merges"] = true;
  const auto whole = ParseTokenizer(changed);
  ASSERT_TRUE(plain && whole);
  EXPECT_EQ(plain->Encode("abc").value(), (std::vector<int32_t>{256, 'c'}));
  EXPECT_EQ(whole->Encode("abc").value(), std::vector<int32_t>{400});
  EXPECT_EQ(whole->Encode("abcd").value(), (std::vector<int32_t>{256, 'c', 'd'}));
}

// Every path of a JSON value, leaves and inner nodes.
void CollectPointers(const json& value, const json::json_pointer& at,
                     std::vector<json::json_pointer>& all) {
  all.push_back(at);
  if (value.is_object()) {
    for (const auto& item : value.items()) CollectPointers(item.value(), at / item.key(), all);
  } else if (value.is_array()) {
    for (size_t i = 0; i < value.size(); ++i) CollectPointers(value[i], at / i, all);
  }
}

// Whatever parses must also encode and decode without harm.
void TryText(const std::string& text, int& num_valid) {
  const auto tokenizer = Tokenizer::Parse(text);
  if (!tokenizer.ok()) {
    EXPECT_NE(tokenizer.status().message(), "");
    return;
  }
  ++num_valid;
  const auto ids = (*tokenizer)->Encode("the <a> then\n\xE4\xB8\xAD 123  <b>");
  if (ids.ok()) (void)(*tokenizer)->Decode(*ids, true);
}

TEST(TokenizerJson, FilesWithWrongValuesNeverCrash) {
  constexpr uint64_t kSeed = 60;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  json base = SmallTokenizerJson();
  base["added_tokens"].push_back(AddedTokenField(300, "<a>"));
  base["pre_tokenizer"] = {{"type", "Sequence"},
                           {"pretokenizers",
                            {{{"type", "Split"},
                              {"pattern", {{"Regex", "\\p{N}{1,3}"}}},
                              {"behavior", "Isolated"},
                              {"invert", false}},
                             base["pre_tokenizer"]}}};
  std::vector<json::json_pointer> pointers;
  CollectPointers(base, json::json_pointer(), pointers);
  const std::vector<json> values = {nullptr,
                                    true,
                                    -1,
                                    0,
                                    97,
                                    300,
                                    INT64_MIN,
                                    UINT64_MAX,
                                    1e300,
                                    "",
                                    "a",
                                    "\n",
                                    "Sequence",
                                    "Split",
                                    "(",
                                    "Removed",
                                    json::array(),
                                    json::object(),
                                    json::array({json::array()}),
                                    base};
  int num_valid = 0;
  for (int round = 0; round < 3000; ++round) {
    json changed = base;
    const auto& pointer =
        pointers[static_cast<size_t>(random.Below(static_cast<int64_t>(pointers.size())))];
    // Most paths are bytes of the vocabulary; every other round takes another part.
    if (round % 2 == 0 && pointer.to_string().starts_with("/model/vocab/")) continue;
    const auto value =
        values[static_cast<size_t>(random.Below(static_cast<int64_t>(values.size())))];
    if (random.Below(5) == 0 && !pointer.empty()) {
      json& parent = changed[pointer.parent_pointer()];
      if (parent.is_object()) parent.erase(pointer.back());
    } else {
      changed[pointer] = value;
    }
    TryText(changed.dump(), num_valid);
  }
  EXPECT_GT(num_valid, 10);
}

TEST(TokenizerJson, FilesWithFlippedBytesNeverCrash) {
  constexpr uint64_t kSeed = 61;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  const std::string base = ReadFile(DemoModelPath() + "/tokenizer.json");
  ASSERT_FALSE(base.empty());
  int num_valid = 0;
  for (int round = 0; round < 1500; ++round) {
    std::string text = base;
    for (int64_t n = 1 + random.Below(3); n > 0; --n) {
      const auto at = static_cast<size_t>(random.Below(static_cast<int64_t>(text.size())));
      switch (random.Below(4)) {
        case 0:
          text[at] = static_cast<char>(random.Below(256));
          break;
        case 1:
          text.erase(at, static_cast<size_t>(random.Below(20)));
          break;
        case 2:
          text.insert(at, text.substr(static_cast<size_t>(random.Below(1000)), 30));
          break;
        default:
          text[at] = "\"{}[],:0-\\"[random.Below(10)];
      }
    }
    TryText(text, num_valid);
  }
  EXPECT_GT(num_valid, 10);
}

}  // namespace
}  // namespace jevons

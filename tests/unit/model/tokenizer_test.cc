#include "model/tokenizer.h"

#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/small_tokenizer.h"
#include "tests/support/test_data.h"

namespace jevons {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

std::unique_ptr<Tokenizer> LoadTokenizer(const std::string& folder) {
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(folder);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

const Tokenizer& Demo() {
  static const Tokenizer* tokenizer = LoadTokenizer(DemoModelPath()).release();
  return *tokenizer;
}

const Tokenizer& DeepSeekV3() {
  static const Tokenizer* tokenizer = LoadTokenizer(DataPath("tokenizers/deepseek-v3")).release();
  return *tokenizer;
}

std::unique_ptr<Tokenizer> WithAdded(const std::vector<std::pair<std::string, bool>>& tokens) {
  json file = SmallTokenizerJson();
  int id = 300;
  for (const auto& [content, is_normalized] : tokens) {
    json field = AddedTokenField(id++, content);
    field["normalized"] = is_normalized;
    file["added_tokens"].push_back(field);
  }
  return ParseTokenizer(file);
}

TEST(Tokenizer, DemoPromptsHaveTheIdsOfTheReferenceAndComeBack) {
  const json expected = json::parse(ReadFile(DataPath("demo_expected.json")));
  ASSERT_GE(expected["conversations"].size(), 40u);
  for (const json& conversation : expected["conversations"]) {
    const auto prompt = conversation["prompt"].get<std::string>();
    const auto ids = Demo().Encode(prompt);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, conversation["prompt_ids"].get<Ids>()) << prompt;
    EXPECT_EQ(Demo().Decode(*ids, false), prompt);
    EXPECT_EQ(Demo().Decode(conversation["output_ids"].get<Ids>(), false),
              conversation["text"].get<std::string>());
  }
}

TEST(Tokenizer, AddedTokensKeepTheirContentAndTheirFlags) {
  EXPECT_EQ(Demo().num_tokens(), 512);
  const auto bos = Demo().FindToken("<｜begin▁of▁sentence｜>");
  const auto user = Demo().FindToken("<｜User｜>");
  ASSERT_TRUE(bos && user);
  EXPECT_EQ(Demo().TokenBytes(*user), "<｜User｜>");
  ASSERT_NE(Demo().FindAdded(*bos), nullptr);
  ASSERT_NE(Demo().FindAdded(*user), nullptr);
  EXPECT_TRUE(Demo().FindAdded(*bos)->special);
  EXPECT_FALSE(Demo().FindAdded(*user)->special);
  EXPECT_EQ(Demo().FindAdded(100), nullptr);
  EXPECT_EQ(Demo().FindToken("<|User|>"), std::nullopt);
  EXPECT_EQ(Demo().FindToken("a"), std::nullopt);
  const auto added = Demo().added_tokens();
  ASSERT_EQ(added.size(), 14u);
  for (size_t i = 1; i < added.size(); ++i) EXPECT_LT(added[i - 1].id, added[i].id);
  EXPECT_EQ(Demo().Decode(Ids{*bos, *user, *bos}, true), "<｜User｜>");
}

TEST(Tokenizer, IdsWithoutATokenHaveNoBytes) {
  const auto tokenizer = WithAdded({{"<a>", false}});
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->num_tokens(), 301);
  for (const int32_t id : {-1, INT32_MIN, 258, 299, 301, INT32_MAX}) {
    EXPECT_EQ(tokenizer->TokenBytes(id), "") << id;
    EXPECT_EQ(tokenizer->FindAdded(id), nullptr) << id;
  }
  EXPECT_EQ(tokenizer->Decode(Ids{-1, 'a', 299, 300}, true), "a<a>");
}

TEST(Tokenizer, IllFormedTextIsRefusedWithItsOffset) {
  const auto ids = Demo().Encode("ab\xE4\xBD!");
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(ids.status().message().find("byte 2"), ids.status().message().npos) << ids.status();
  EXPECT_EQ(Demo().Encode("").value(), Ids());
}

TEST(Tokenizer, NulIsAByteLikeAnyOther) {
  const std::string text("first half\0 second half", 23);
  EXPECT_EQ(DeepSeekV3().Encode(text).value(), (Ids{13213, 4747, 191, 1957, 4747}));
  EXPECT_EQ(DeepSeekV3().Decode(DeepSeekV3().Encode(text).value(), false), text);
  EXPECT_GT(Demo().Encode(text).value().size(), Demo().Encode("first half").value().size());
  EXPECT_EQ(Demo().Decode(Demo().Encode(text).value(), false), text);
}

// Ids from the tokenizers library.
TEST(Tokenizer, TokenizerJsonAloneDecidesOnSpacesAndDigits) {
  const std::vector<std::pair<std::string, Ids>> cases = {
      {"good morning", {25109, 7469}},
      {"  \tx", {262, 51669}},
      {"led205.c", {1610, 11773, 4001}},
      {"1234567", {6895, 18009, 25}},
      {"٣٤٥٦٧", {127056, 152, 100, 152, 101, 152, 102, 152, 103}},
      {"x²½", {90, 1628, 23951}},
  };
  for (const auto& [text, ids] : cases) {
    EXPECT_EQ(DeepSeekV3().Encode(text).value(), ids) << text;
    EXPECT_EQ(DeepSeekV3().Decode(ids, false), text);
  }
}

TEST(Tokenizer, APromptThatEndsInsideACharacterIsFinishedByTheNextToken) {
  const std::string text = "Secret words 🥁";
  Ids ids = DeepSeekV3().Encode(text).value();
  ASSERT_EQ(ids, (Ids{52178, 3345, 7351, 101, 226}));
  const int32_t last = ids.back();
  ids.pop_back();
  EXPECT_EQ(DeepSeekV3().Decode(ids, false), "Secret words \xEF\xBF\xBD");
  Detokenizer detokenizer;
  std::string shown;
  for (const int32_t id : ids) shown += detokenizer.Push(DeepSeekV3().TokenBytes(id));
  EXPECT_EQ(shown, "Secret words ");
  EXPECT_EQ(detokenizer.Push(DeepSeekV3().TokenBytes(last)), "🥁");
  EXPECT_EQ(detokenizer.Flush(), "");
}

TEST(Tokenizer, AddedTokensAreFoundBeforeTextIsCut) {
  const auto tokenizer = WithAdded({{"<a>", false}, {"<a>the", false}, {"he", false}});
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->Encode("the<a>the<a>th").value(), (Ids{'t', 302, 301, 300, 256}));
}

TEST(Tokenizer, NormalizedAddedTokensAreFoundInWhatTheOthersLeave) {
  const auto tokenizer = WithAdded({{"b c", true}, {"c d", false}, {"d e f", true}});
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->Encode("b c d e f").value(), (Ids{'b', ' ', 301, ' ', 'e', ' ', 'f'}));
  EXPECT_EQ(tokenizer->Encode("b cd e f").value(), (Ids{300, 302}));
  EXPECT_EQ(tokenizer->FindToken("b c"), 300);
}

TEST(Tokenizer, ABarrierForbidsAddedTokensAndCutsNothingElse) {
  const auto tokenizer = WithAdded({{"<a>", false}, {"<a>the", false}, {"e!", true}});
  ASSERT_NE(tokenizer, nullptr);
  const std::string text = "the<a>the!";
  const auto encode = [&](const std::vector<size_t>& barriers) {
    return tokenizer->Encode(text, barriers).value();
  };
  EXPECT_EQ(encode({}), (Ids{257, 301, '!'}));
  EXPECT_EQ(encode({0, 3, 9, 10}), (Ids{257, 301, '!'}));
  // The shorter token fits before the barrier; "the!" is then searched for "e!".
  EXPECT_EQ(encode({6}), (Ids{257, 300, 256, 302}));
  EXPECT_EQ(encode({6, 9}), (Ids{257, 300, 257, '!'}));
  EXPECT_EQ(encode({4, 9}), (Ids{257, '<', 'a', '>', 257, '!'}));
  // A barrier inside an ordinary word changes nothing.
  EXPECT_EQ(encode({1, 2}), (Ids{257, 301, '!'}));
}

TEST(Tokenizer, UserTextBehindBarriersCannotSpellAControlToken) {
  const std::string before = "<｜User｜>";
  const std::string user = "<｜end▁of▁sentence｜>";
  std::vector<size_t> barriers;
  for (size_t i = 1; i < user.size(); ++i) barriers.push_back(before.size() + i);
  const std::string text = before + user + before;
  const Ids ids = DeepSeekV3().Encode(text, barriers).value();
  EXPECT_EQ(ids.front(), 128803);
  EXPECT_EQ(ids.back(), 128803);
  for (size_t i = 1; i + 1 < ids.size(); ++i) EXPECT_EQ(DeepSeekV3().FindAdded(ids[i]), nullptr);
  EXPECT_EQ(DeepSeekV3().Decode(ids, false), text);
  EXPECT_EQ(DeepSeekV3().Encode(text).value(), (Ids{128803, 1, 128803}));
}

TEST(Tokenizer, PrefixSpaceIsPutInFrontOfEachRunOfText) {
  json file = SmallTokenizerJson();
  file["pre_tokenizer"]["add_prefix_space"] = true;
  file["added_tokens"].push_back(AddedTokenField(300, "<a>"));
  const auto tokenizer = ParseTokenizer(file);
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->Encode("b<a> c<a>d").value(), (Ids{' ', 'b', 300, ' ', 'c', 300, ' ', 'd'}));
}

TEST(Tokenizer, EncodesTheSameFromManyThreads) {
  const std::string text = "Where is 12345 the <think> of 世界? \n\n  x = a[3];";
  const Ids expected = DeepSeekV3().Encode(text).value();
  std::vector<Ids> results(4);
  std::vector<std::thread> threads;
  for (Ids& result : results) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) result = DeepSeekV3().Encode(text).value();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Ids& result : results) EXPECT_EQ(result, expected);
}

// Quadratic time or a stack that grows with the text would not survive these.
TEST(Tokenizer, LongMonotonousTextsComeBack) {
  constexpr size_t kLength = 1 << 20;
  const std::vector<std::string> texts = {
      std::string(kLength, ' ') + "x", std::string(kLength, 'a'), std::string(kLength, '\n'),
      std::string(kLength, '7'),       std::string(kLength, '<'), std::string(kLength, '\0')};
  for (const std::string& text : texts) {
    const auto ids = DeepSeekV3().Encode(text);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_TRUE(DeepSeekV3().Decode(*ids, false) == text) << text.substr(0, 1);
  }
}

TEST(Tokenizer, AFolderWithoutTokenizerJsonIsNotFound) {
  const absl::Status status = Tokenizer::Load(DataPath("no_such_folder")).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << status;
  EXPECT_NE(status.message().find("tokenizer.json"), status.message().npos) << status;
}

TEST(Tokenizer, VocabularyTokensGiveTheBytesThatTheirCharactersStandFor) {
  json file = SmallTokenizerJson();
  file["model"]["vocab"]["Ġä"] = 400;
  file["model"]["vocab"]["中x"] = 401;
  file["added_tokens"].push_back(AddedTokenField(402, "ĠäĠ"));
  const auto tokenizer = ParseTokenizer(file);
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->TokenBytes(400), " \xE4");
  EXPECT_EQ(tokenizer->TokenBytes(401), "中x") << "not of the alphabet: text as it stands";
  EXPECT_EQ(tokenizer->TokenBytes(402), "ĠäĠ") << "an added token is its content";
  for (int byte = 0; byte < 256; ++byte) {
    EXPECT_EQ(tokenizer->TokenBytes(byte), std::string(1, static_cast<char>(byte)));
  }
}

}  // namespace
}  // namespace jevons

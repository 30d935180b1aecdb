// Ids that others published for the DeepSeek tokenizers.
#include <algorithm>
#include <sstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "model/tokenizer.h"
#include "nlohmann/json.hpp"
#include "tests/support/test_data.h"

namespace jevons {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

std::unique_ptr<Tokenizer> LoadTokenizer(const std::string& name) {
  auto tokenizer = Tokenizer::Load(DataPath("tokenizers/" + name));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

void ExpectIds(const Tokenizer& tokenizer, const std::string& text, const Ids& expected) {
  const auto ids = tokenizer.Encode(text);
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_TRUE(*ids == expected)
      << "text " << text.substr(0, 100) << "\nfirst difference at id "
      << std::mismatch(ids->begin(), ids->end(), expected.begin(), expected.end()).first -
             ids->begin();
  EXPECT_TRUE(tokenizer.Decode(*ids, false) == text) << "text " << text.substr(0, 100);
}

// One JSON object with "text" and "ids" on each line.
void RunCases(const std::string& tokenizer_name, const std::string& file, size_t num_cases) {
  const auto tokenizer = LoadTokenizer(tokenizer_name);
  ASSERT_NE(tokenizer, nullptr);
  std::istringstream lines(ReadFile(DataPath("tokenizers/cases/" + file)));
  size_t num_lines = 0;
  for (std::string line; std::getline(lines, line);) {
    const json item = json::parse(line);
    ExpectIds(*tokenizer, item["text"].get<std::string>(), item["ids"].get<Ids>());
    ++num_lines;
  }
  EXPECT_EQ(num_lines, num_cases);
}

TEST(TokenizerCases, DeepSeekV3) { RunCases("deepseek-v3", "deepseek-v3-splintr.jsonl", 5); }

TEST(TokenizerCases, DeepSeekR1) { RunCases("deepseek-v3", "kitoken-r1.jsonl", 141); }

TEST(TokenizerCases, DeepSeekLlm) {
  RunCases("deepseek-v2-llm", "llamacpp-deepseek-llm.jsonl", 47);
}

TEST(TokenizerCases, DeepSeekCoder) {
  RunCases("deepseek-coder", "llamacpp-deepseek-coder.jsonl", 47);
}

TEST(TokenizerCases, WikitextOfV2AndV3) {
  const json item = json::parse(ReadFile(DataPath("tokenizers/cases/wikitext-v2-v3-ids.json")));
  const auto v2 = LoadTokenizer("deepseek-v2-llm");
  const auto v3 = LoadTokenizer("deepseek-v3");
  ASSERT_TRUE(v2 && v3);
  ExpectIds(*v2, item["text_v2"].get<std::string>(), item["ids_v2"].get<Ids>());
  ExpectIds(*v3, item["text_v3"].get<std::string>(), item["ids_v3"].get<Ids>());
}

}  // namespace
}  // namespace jevons

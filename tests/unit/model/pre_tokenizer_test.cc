#include "model/pre_tokenizer.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace jevons {
namespace {

using nlohmann::json;

json ByteLevel(bool add_prefix_space, bool use_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", add_prefix_space}, {"use_regex", use_regex}};
}

json SplitStep(const char* kind, const std::string& pattern, const std::string& behavior,
               bool invert = false) {
  return {{"type", "Split"},
          {"pattern", {{kind, pattern}}},
          {"behavior", behavior},
          {"invert", invert}};
}

json Sequence(const std::vector<json>& steps) {
  return {{"type", "Sequence"}, {"pretokenizers", steps}};
}

// The pieces with bars between them, or the error.
std::string Pieces(const json& value, const std::string& text) {
  ConfigProblems problems;
  const PreTokenizer pre_tokenizer = PreTokenizer::FromJson(value, problems);
  if (!problems.empty()) return problems.ToStatus("file").ToString();
  PreTokenizer::Scratch scratch;
  std::vector<std::string_view> pieces;
  const absl::Status status = pre_tokenizer.Split(text, scratch, pieces);
  if (!status.ok()) return status.ToString();
  std::string all;
  for (const std::string_view piece : pieces) {
    EXPECT_FALSE(piece.empty());
    if (!all.empty()) all += '|';
    all += piece;
  }
  return all;
}

std::string PiecesOfSplit(const std::string& behavior, bool invert, const std::string& text) {
  return Pieces(Sequence({SplitStep("String", "-", behavior, invert), ByteLevel(false, false)}),
                text);
}

// The library's own documentation names these results for "the-final--countdown".
TEST(PreTokenizer, BehaviorsKeepDropOrJoinTheMatches) {
  const std::string text = "the-final--countdown";
  EXPECT_EQ(PiecesOfSplit("Removed", false, text), "the|final|countdown");
  EXPECT_EQ(PiecesOfSplit("Isolated", false, text), "the|-|final|-|-|countdown");
  EXPECT_EQ(PiecesOfSplit("MergedWithPrevious", false, text), "the-|final-|-|countdown");
  EXPECT_EQ(PiecesOfSplit("MergedWithNext", false, text), "the|-final|-|-countdown");
  EXPECT_EQ(PiecesOfSplit("Contiguous", false, text), "the|-|final|--|countdown");
  EXPECT_EQ(PiecesOfSplit("Removed", true, text), "-|-|-");
  EXPECT_EQ(PiecesOfSplit("Isolated", true, text), "the|-|final|-|-|countdown");
  EXPECT_EQ(PiecesOfSplit("MergedWithPrevious", true, text), "the|-final|-|-countdown");
  EXPECT_EQ(PiecesOfSplit("MergedWithNext", true, text), "the-|final-|-|countdown");
  EXPECT_EQ(PiecesOfSplit("Contiguous", true, text), "the|-|final|--|countdown");
}

TEST(PreTokenizer, EachStepSeesThePiecesOfTheOneBefore) {
  const json steps =
      Sequence({SplitStep("Regex", R"(\p{N}{1,3})", "Isolated"),
                Sequence({SplitStep("Regex", "^a", "Isolated")}), ByteLevel(false, false)});
  EXPECT_EQ(Pieces(steps, "aa1234aa"), "a|a|123|4|a|a");
  EXPECT_EQ(Pieces(steps, ""), "");
}

TEST(PreTokenizer, DigitsAreCutOneByOneOrKeptTogether) {
  const auto digits = [](bool individual) {
    return Sequence(
        {{{"type", "Digits"}, {"individual_digits", individual}}, ByteLevel(false, false)});
  };
  EXPECT_EQ(Pieces(digits(true), "ab12\xC2\xBD!"), "ab|1|2|\xC2\xBD|!");
  EXPECT_EQ(Pieces(digits(false), "ab12\xC2\xBD!"), "ab|12\xC2\xBD|!");
}

TEST(PreTokenizer, ByteLevelPutsASpaceInFrontAndCutsWordsWhereItShould) {
  EXPECT_EQ(Pieces(ByteLevel(false, true), "It's  two words, 12x"), "It|'s| | two| words|,| 12|x");
  EXPECT_EQ(Pieces(ByteLevel(true, false), "one two"), " one two");
  EXPECT_EQ(Pieces(ByteLevel(true, false), " one"), " one");
  EXPECT_EQ(
      Pieces(Sequence({SplitStep("String", "-", "Isolated"), ByteLevel(true, false)}), "a- b"),
      " a| -| b");
}

TEST(PreTokenizer, ALiteralPatternIsNoRegularExpression) {
  const json steps =
      Sequence({SplitStep("String", ".*\\d[\xC3\xA4] #", "Isolated"), ByteLevel(false, false)});
  EXPECT_EQ(Pieces(steps, "x1.*\\d[\xC3\xA4] #y"), "x1|.*\\d[\xC3\xA4] #|y");
}

TEST(PreTokenizer, EmptyMatchesCutBetweenCharacters) {
  const auto steps = [](const char* pattern, const char* behavior) {
    return Sequence({SplitStep("Regex", pattern, behavior), ByteLevel(false, false)});
  };
  EXPECT_EQ(Pieces(steps("(?=b)", "Isolated"), "abcb"), "a|bc|b");
  EXPECT_EQ(Pieces(steps("x*", "Isolated"), "\xC3\xA4xx\xE4\xB8\xADz"),
            "\xC3\xA4|xx|\xE4\xB8\xAD|z");
}

TEST(PreTokenizer, WhatIsNotSupportedIsNamed) {
  const std::vector<std::pair<json, std::string>> cases = {
      {{{"type", "Metaspace"}}, "UNIMPLEMENTED: file: pre_tokenizer.type Metaspace"},
      {SplitStep("Regex", "a", "Isolated"), "UNIMPLEMENTED: file: pre_tokenizer without ByteLevel"},
      {Sequence({ByteLevel(false, false), SplitStep("Regex", "a", "Isolated")}),
       "UNIMPLEMENTED: file: pre_tokenizer.pretokenizers[1]: a step after ByteLevel"},
      {Sequence({SplitStep("Regex", "a", "Shuffled")}),
       "UNIMPLEMENTED: file: pre_tokenizer.pretokenizers[0].behavior Shuffled"},
      {Sequence({SplitStep("Regex", R"(\w)", "Isolated")}),
       "UNIMPLEMENTED: file: pre_tokenizer.pretokenizers[0].pattern.Regex: "},
      {json(nullptr), "INVALID_ARGUMENT: file: pre_tokenizer is null, not an object"},
      {json::object(), "INVALID_ARGUMENT: file: missing keys: pre_tokenizer.type"},
      {{{"type", 3}}, "INVALID_ARGUMENT: file: pre_tokenizer.type is 3"},
      {{{"type", "Sequence"}}, "INVALID_ARGUMENT: file: missing keys: pre_tokenizer.pretokenizers"},
      {{{"type", "Sequence"}, {"pretokenizers", "a"}},
       "INVALID_ARGUMENT: file: pre_tokenizer.pretokenizers is \"a\""},
      {Sequence({{{"type", "Split"}, {"behavior", "Isolated"}, {"invert", false}}}),
       "INVALID_ARGUMENT: file: missing keys: pre_tokenizer.pretokenizers[0].pattern"},
      {Sequence(
           {{{"type", "Split"}, {"pattern", "x"}, {"behavior", "Isolated"}, {"invert", false}}}),
       "INVALID_ARGUMENT: file: pre_tokenizer.pretokenizers[0].pattern is \"x\""},
      {SplitStep("Glob", "a", "Isolated"),
       "INVALID_ARGUMENT: file: missing keys: pre_tokenizer.pattern.Regex"},
      {SplitStep("Regex", "", "Isolated"),
       "INVALID_ARGUMENT: file: pre_tokenizer.pattern is empty"},
      {SplitStep("Regex", "(", "Isolated"),
       "INVALID_ARGUMENT: file: pre_tokenizer.pattern.Regex: "},
      {{{"type", "Digits"}},
       "INVALID_ARGUMENT: file: missing keys: pre_tokenizer.individual_digits"},
  };
  for (const auto& [value, expected] : cases) {
    EXPECT_EQ(Pieces(value, "x").substr(0, expected.size()), expected);
  }
}

TEST(PreTokenizer, DepthAndNumberOfStepsHaveLimits) {
  json nested = ByteLevel(false, false);
  for (int i = 0; i < 100; ++i) nested = Sequence({nested});
  EXPECT_EQ(Pieces(nested, "x").substr(0, 16), "INVALID_ARGUMENT");
  const std::vector<json> many(1000, SplitStep("String", "a", "Isolated"));
  EXPECT_EQ(Pieces(Sequence(many), "x"),
            "INVALID_ARGUMENT: file: pre_tokenizer has more than 64 steps");
}

}  // namespace
}  // namespace jevons

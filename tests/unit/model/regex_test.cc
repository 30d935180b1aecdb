#include "model/regex.h"

#include <algorithm>
#include <string>
#include <vector>

#include "base/random.h"
#include "gtest/gtest.h"

namespace jevons {
namespace {

constexpr char kDeepSeekV3[] =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+)"
    R"(| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// All matches, joined by commas.
std::string Matches(const std::string& pattern, const std::string& text,
                    RegexEngine engine = RegexEngine::kJit) {
  const absl::StatusOr<Regex> regex = Regex::Compile(pattern, engine);
  if (!regex.ok()) return regex.status().ToString();
  RegexScratch scratch;
  std::string all;
  for (size_t from = 0; from < text.size();) {
    const auto match = regex->Find(text, from, scratch);
    if (!match.ok()) return match.status().ToString();
    if (!*match) break;
    if (!all.empty()) all += ',';
    all += text.substr((*match)->begin, (*match)->end - (*match)->begin);
    from = std::max((*match)->end, from + 1);
  }
  return all;
}

TEST(Regex, SetsAreThoseOfOniguruma) {
  // U+180E is no space, U+0085 is one.
  EXPECT_EQ(Matches(R"(\s+)", "a \xE1\xA0\x8E\xC2\x85"), " ,\xC2\x85");
  EXPECT_EQ(Matches(R"(\S+)", "a \xE1\xA0\x8E\xC2\x85"), "a,\xE1\xA0\x8E");
  EXPECT_EQ(Matches(R"([^\S]+)", "a b"), " ");
  EXPECT_EQ(Matches(R"(\d+)", "1\xD9\xA3\xC2\xBD"), "1\xD9\xA3");
  EXPECT_EQ(Matches(R"(\p{N}+)", "1\xD9\xA3\xC2\xBD"), "1\xD9\xA3\xC2\xBD");
  EXPECT_EQ(Matches(R"(\h+|[^\H]x)", "zfF0g"), "fF0");
  EXPECT_EQ(Matches(R"(\p{^L}+|\P{^Letter})", "a1"), "a,1");
  // U+3001 has the script Common; Han is only among its script extensions.
  EXPECT_EQ(Matches(R"(\p{Han}+)", "\xE4\xB8\xAD\xE3\x80\x81"), "\xE4\xB8\xAD");
}

TEST(Regex, RepeatsAreReadAsRubyReadsThem) {
  // An interval is never possessive: (?:a{1,2})+.
  EXPECT_EQ(Matches("a{1,2}+b", "aaaab"), "aaaab");
  EXPECT_EQ(Matches("xa{1,2}+ab", "xaab"), "xaab");
  EXPECT_EQ(Matches("xa++ab", "xaab"), "");
  EXPECT_EQ(Matches("a{2}?b", "aab"), "aab");
  EXPECT_EQ(Matches("xa{2}?b", "xb"), "xb");
  EXPECT_EQ(Matches("a{,2}b", "aaab"), "aab");
  EXPECT_EQ(Matches("a{1,2}?", "aa"), "a,a");
  EXPECT_EQ(Matches("a{x}", "a{x}"), "a{x}");
  EXPECT_EQ(Matches("(?:ab){2}{2}", "abababab"), "abababab");
  EXPECT_EQ(Matches("a{,}", "a{,}"), "a{,}");
}

TEST(Regex, AnchorsDotAndOptionsAreRubys) {
  EXPECT_EQ(Matches("^a", "a\na"), "a,a");
  EXPECT_EQ(Matches("b$", "b\nb"), "b,b");
  EXPECT_EQ(Matches(R"(\Aa|b\z)", "a\na\nb\nb"), "a,b");
  EXPECT_EQ(Matches("a.", "a\nab"), "ab");
  EXPECT_EQ(Matches("(?m:a.)", "a\nab"), "a\n,ab");
  EXPECT_EQ(Matches("(?i:'S)|t", "'s'\xC5\xBFTt"), "'s,'\xC5\xBF,t");
  EXPECT_EQ(Matches(R"(\x41|\x{42}|\u4e2d|\v)", "AB\xE4\xB8\xAD\x0B"), "A,B,\xE4\xB8\xAD,\x0B");
  EXPECT_EQ(Matches(R"([]a]+|[^]a]+)", "]ab"), "]a,b");
}

TEST(Regex, SyntaxWithoutATranslationIsNamed) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"(\w)", "\\w"},       {R"(\bx)", "\\b"},        {"[a&&b]", "&&"},
      {"[a[bc]]", "class"},   {"[[:alpha:]]", "POSIX"}, {R"((a)\1)", "\\1"},
      {"(?<n>a)", "(?<n"},    {"a(?i)b", "(?i)"},       {"(?x: a)", "(?x:"},
      {"(?~ab)", "(?~a"},     {"(*FAIL)", "(*"},        {R"(\p{InBasicLatin})", "property"},
      {R"(\pL)", "property"}, {R"(\R)", "\\R"},         {R"(\xE4)", "byte"},
      {R"(\K)", "\\K"},       {R"(\G)", "\\G"},
  };
  for (const auto& [pattern, name] : cases) {
    const absl::Status status = Regex::Compile(pattern).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << pattern << ": " << status;
    EXPECT_NE(status.message().find(name), status.message().npos) << status;
  }
}

TEST(Regex, PatternsThatAreNoneAreInvalid) {
  for (const std::string pattern : {"(",
                                    ")",
                                    "a)",
                                    "[",
                                    "[a",
                                    "*",
                                    "a|*",
                                    "(?:",
                                    "(?",
                                    "\\",
                                    "[\\",
                                    "\\p{",
                                    "\\p{}",
                                    "\\x{",
                                    "\\u12",
                                    "\\x{110000}",
                                    "[b-a]",
                                    "(?#",
                                    "a{99999999999}",
                                    "\xFF",
                                    "\\p{\xFF}",
                                    "(?<=a*)b",
                                    "^*"}) {
    const absl::Status status = Regex::Compile(pattern).status();
    EXPECT_FALSE(status.ok()) << pattern;
  }
  EXPECT_FALSE(Regex::Compile(std::string(1 << 20, 'a')).ok());
  EXPECT_FALSE(Regex::Compile(std::string(10000, '(') + std::string(5000, ')')).ok());
}

TEST(Regex, RandomPatternsNeverCrash) {
  constexpr uint64_t kSeed = 50;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  static const std::string kAlphabet = "ab()[]{}*+?|^$\\.,-&:=!<>#impsSdPLxu0129\xC3\xA4";
  RegexScratch scratch;
  int num_valid = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string pattern;
    for (int64_t n = random.Below(14); n > 0; --n) {
      pattern += kAlphabet[random.Below(static_cast<int64_t>(kAlphabet.size()))];
    }
    const absl::StatusOr<Regex> regex = Regex::Compile(pattern, RegexEngine::kInterpreter);
    if (!regex.ok()) continue;
    ++num_valid;
    (void)regex->Find("ab1 \xC3\xA4((", 0, scratch);
  }
  EXPECT_GT(num_valid, 500);
}

TEST(Regex, TheInterpreterFindsWhatTheJitFinds) {
  constexpr uint64_t kSeed = 51;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  const std::vector<std::string> parts = {
      "a",  "B",        " ",        "\n",           "\r\n", "!",
      "'s", "\xC3\xA4", "\xCC\x81", "\xE3\x80\x80", "7",    "\xF0\x9F\xA5\x81"};
  for (int round = 0; round < 300; ++round) {
    std::string text;
    for (int64_t n = random.Below(40); n > 0; --n) {
      text += parts[static_cast<size_t>(random.Below(static_cast<int64_t>(parts.size())))];
    }
    ASSERT_EQ(Matches(kDeepSeekV3, text, RegexEngine::kInterpreter), Matches(kDeepSeekV3, text))
        << "round " << round;
  }
}

TEST(Regex, AMatchThatNeedsTooMuchIsAnError) {
  for (const RegexEngine engine : {RegexEngine::kJit, RegexEngine::kInterpreter}) {
    const absl::StatusOr<Regex> steps = Regex::Compile(R"((?:a+)+\z)", engine);
    ASSERT_TRUE(steps.ok()) << steps.status();
    RegexScratch scratch;
    const absl::Status status = steps->Find(std::string(60, 'a') + "!", 0, scratch).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_NE(status.message().find("limit"), status.message().npos) << status;
  }
  // Each turn of the group takes memory: more than the JIT's stack and the interpreter's heap.
  const absl::StatusOr<Regex> memory = Regex::Compile("(?:a|b)*c");
  ASSERT_TRUE(memory.ok()) << memory.status();
  RegexScratch scratch;
  const absl::Status status = memory->Find(std::string(8 << 20, 'a'), 0, scratch).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
}

// A quadratic search would not come to an end within the test's time limit.
TEST(Regex, TrailingSpacesAreFoundInOnePass) {
  const std::string spaces(1 << 20, ' ');
  EXPECT_EQ(Matches(R"(\s+$)", spaces + "1"), "");
  EXPECT_EQ(Matches(R"(\s+$)", "a  \n \n b \t"), "  \n , \t");
  EXPECT_EQ(Matches(R"((?:\s)+$)", "a  \n \n b \t"), "  \n , \t");
}

}  // namespace
}  // namespace jevons

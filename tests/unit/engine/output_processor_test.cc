#include "engine/output_processor.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "base/random.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/fake_tokenizer.h"

namespace jevons {
namespace {

using testing::ElementsAre;

OutputOptions Options(std::vector<std::string> stop = {}) {
  return {.think_start_id = kThinkStart,
          .think_end_id = kThinkEnd,
          .end_ids = {kEnd, kOtherEnd},
          .stop = std::move(stop)};
}

// Everything that came out of a sequence.
struct Output {
  std::string thinking;
  std::string answer;
  std::vector<int32_t> token_ids;
  bool stopped = false;
  int32_t reasoning_tokens = 0;
};

void Collect(const StreamDelta& delta, Output& output) {
  (delta.channel == Channel::kThinking ? output.thinking : output.answer) += delta.text;
  output.token_ids.insert(output.token_ids.end(), delta.token_ids.begin(), delta.token_ids.end());
}

Output RunAll(const Tokenizer& tokenizer, const OutputOptions& options,
              const std::vector<int32_t>& ids) {
  OutputProcessor processor(tokenizer, options);
  Output output;
  for (const int32_t id : ids) {
    const OutputProcessor::Result result = processor.Push(id);
    EXPECT_THAT(result.delta.token_ids, ElementsAre(id));
    EXPECT_FALSE(FindInvalidUtf8(result.delta.text).has_value());
    Collect(result.delta, output);
    output.stopped = result.stopped;
    if (result.stopped) break;
  }
  const StreamDelta rest = processor.Flush();
  EXPECT_TRUE(rest.token_ids.empty());
  Collect(rest, output);
  output.reasoning_tokens = processor.reasoning_tokens();
  return output;
}

TEST(OutputProcessorTest, EachTokenGivesItsTextAtOnce) {
  FakeTokenizer tokenizer;
  OutputProcessor processor(tokenizer, Options());
  EXPECT_EQ(processor.Push(tokenizer.TokenOf("Hel")).delta.text, "Hel");
  const OutputProcessor::Result result = processor.Push(tokenizer.TokenOf("lo"));
  EXPECT_EQ(result.delta.text, "lo");
  EXPECT_EQ(result.delta.channel, Channel::kAnswer);
  EXPECT_FALSE(result.stopped);
  EXPECT_EQ(processor.Flush().text, "");
  EXPECT_EQ(processor.reasoning_tokens(), 0);
}

TEST(OutputProcessorTest, ThinkingClosesByTokenIdAndCountsTheTag) {
  FakeTokenizer tokenizer;
  OutputOptions options = Options();
  options.starts_in_thinking = true;
  OutputProcessor processor(tokenizer, options);
  EXPECT_EQ(processor.channel(), Channel::kThinking);
  EXPECT_EQ(processor.Push('h').delta.channel, Channel::kThinking);
  const OutputProcessor::Result tag = processor.Push(kThinkEnd);
  EXPECT_EQ(tag.delta.channel, Channel::kThinking);
  EXPECT_EQ(tag.delta.text, "");
  EXPECT_EQ(processor.channel(), Channel::kAnswer);
  const OutputProcessor::Result answer = processor.Push('a');
  EXPECT_EQ(answer.delta.channel, Channel::kAnswer);
  EXPECT_EQ(answer.delta.text, "a");
  EXPECT_EQ(processor.reasoning_tokens(), 2);
}

TEST(OutputProcessorTest, SpelledTagsAreText) {
  FakeTokenizer tokenizer;
  OutputOptions options = Options();
  options.starts_in_thinking = true;
  const Output output = RunAll(tokenizer, options, tokenizer.Bytewise("a</think>b<think><eos>"));
  EXPECT_EQ(output.thinking, "a</think>b<think><eos>");
  EXPECT_EQ(output.answer, "");
  EXPECT_FALSE(output.stopped);
  EXPECT_EQ(output.reasoning_tokens, 22);
}

TEST(OutputProcessorTest, TheModelMayOpenThinkingItself) {
  FakeTokenizer tokenizer;
  const Output output = RunAll(tokenizer, Options(), {kThinkStart, 'h', 'm', kThinkEnd, 'o', 'k'});
  EXPECT_EQ(output.thinking, "hm");
  EXPECT_EQ(output.answer, "ok");
  EXPECT_EQ(output.reasoning_tokens, 4);
}

TEST(OutputProcessorTest, ATagWithoutAChangeShowsNothing) {
  FakeTokenizer tokenizer;
  const Output output = RunAll(
      tokenizer, Options(), {'a', kThinkEnd, 'b', kThinkStart, kThinkStart, 't', kThinkEnd, 'c'});
  EXPECT_EQ(output.answer, "abc");
  EXPECT_EQ(output.thinking, "t");
  EXPECT_EQ(output.reasoning_tokens, 4);
}

TEST(OutputProcessorTest, AModelWithoutTagsAnswersOnly) {
  FakeTokenizer tokenizer;
  const Output output = RunAll(tokenizer, {}, {'a', kThinkStart, 'b'});
  EXPECT_EQ(output.answer, "a<think>b");
  EXPECT_EQ(output.reasoning_tokens, 0);
}

TEST(OutputProcessorTest, EndIdsEndTheOutputUnseenButAreTokens) {
  FakeTokenizer tokenizer;
  for (const int32_t end_id : {kEnd, kOtherEnd}) {
    const Output output = RunAll(tokenizer, Options(), {'a', end_id, 'b'});
    EXPECT_EQ(output.answer, "a");
    EXPECT_TRUE(output.stopped);
    EXPECT_THAT(output.token_ids, ElementsAre('a', end_id));
  }
}

TEST(OutputProcessorTest, AnEndIdInThinkingIsAReasoningToken) {
  FakeTokenizer tokenizer;
  OutputOptions options = Options();
  options.starts_in_thinking = true;
  const Output output = RunAll(tokenizer, options, {'a', kEnd});
  EXPECT_TRUE(output.stopped);
  EXPECT_EQ(output.thinking, "a");
  EXPECT_EQ(output.reasoning_tokens, 2);
}

TEST(OutputProcessorTest, IgnoreEosGoesOnAndShowsNoSpecialToken) {
  FakeTokenizer tokenizer;
  OutputOptions options = Options();
  options.ignore_eos = true;
  const Output output = RunAll(tokenizer, options, {'a', kEnd, kOtherEnd, 'b'});
  EXPECT_EQ(output.answer, "a<turn>b");
  EXPECT_FALSE(output.stopped);
  EXPECT_EQ(output.token_ids.size(), 4u);
}

TEST(OutputProcessorTest, SpecialTokensAreHiddenAndOtherAddedTokensAreShown) {
  FakeTokenizer tokenizer;
  const Output output = RunAll(tokenizer, Options(), {'a', kSpecial, kAdded, 'b'});
  EXPECT_EQ(output.answer, "a<tool>b");
}

TEST(OutputProcessorTest, AHalfCharacterIsHeldBackUntilItIsWhole) {
  FakeTokenizer tokenizer;
  OutputProcessor processor(tokenizer, Options());
  EXPECT_EQ(processor.Push(tokenizer.TokenOf("x\xe7\xbb")).delta.text, "x");
  EXPECT_EQ(processor.Push(0x88).delta.text, "\xe7\xbb\x88");
  EXPECT_EQ(processor.Push(0xe7).delta.text, "");
  EXPECT_EQ(processor.Flush().text, "\xef\xbf\xbd");
}

TEST(OutputProcessorTest, AHalfCharacterStaysInItsChannel) {
  FakeTokenizer tokenizer;
  OutputOptions options = Options();
  options.starts_in_thinking = true;
  OutputProcessor processor(tokenizer, options);
  processor.Push(0xe7);
  const OutputProcessor::Result close = processor.Push(kThinkEnd);
  EXPECT_EQ(close.delta.channel, Channel::kThinking);
  EXPECT_EQ(close.delta.text, "\xef\xbf\xbd");
  processor.Push(0xe7);
  const OutputProcessor::Result open = processor.Push(kThinkStart);
  EXPECT_EQ(open.delta.channel, Channel::kAnswer);
  EXPECT_EQ(open.delta.text, "\xef\xbf\xbd");
  EXPECT_EQ(processor.channel(), Channel::kThinking);
}

TEST(OutputProcessorTest, StopStringsWorkOnTheAnswerOnly) {
  FakeTokenizer tokenizer;
  OutputOptions options = Options({"STOP"});
  options.starts_in_thinking = true;
  std::vector<int32_t> ids = tokenizer.Bytewise("STOP?");
  ids.push_back(kThinkEnd);
  for (const int32_t id : tokenizer.Bytewise("go STOP on")) ids.push_back(id);
  const Output output = RunAll(tokenizer, options, ids);
  EXPECT_EQ(output.thinking, "STOP?");
  EXPECT_EQ(output.answer, "go ");
  EXPECT_TRUE(output.stopped);
  EXPECT_EQ(output.token_ids.size(), 13u);  // up to the P, and none after it
}

TEST(OutputProcessorTest, AMatchMaySpanTokensAndStartAndEndInsideOne) {
  FakeTokenizer tokenizer;
  const Output output = RunAll(
      tokenizer, Options({"world"}),
      {tokenizer.TokenOf("hello wo"), tokenizer.TokenOf("rl"), tokenizer.TokenOf("d and all")});
  EXPECT_EQ(output.answer, "hello ");
  EXPECT_TRUE(output.stopped);
}

TEST(OutputProcessorTest, APossibleStopStringIsShownWhenTheOutputEnds) {
  FakeTokenizer tokenizer;
  const Output cut = RunAll(tokenizer, Options({"world"}), tokenizer.Bytewise("hello wor"));
  EXPECT_EQ(cut.answer, "hello wor");
  const Output ended = RunAll(tokenizer, Options({"world"}), {'w', 'o', kEnd});
  EXPECT_EQ(ended.answer, "wo");
  EXPECT_TRUE(ended.stopped);
}

TEST(OutputProcessorTest, APossibleStopStringDoesNotReachAcrossThinking) {
  FakeTokenizer tokenizer;
  const Output output =
      RunAll(tokenizer, Options({"ab"}), {'a', kThinkStart, 't', kThinkEnd, 'b', 'c'});
  EXPECT_EQ(output.answer, "abc");
  EXPECT_FALSE(output.stopped);
}

TEST(OutputProcessorTest, AHiddenTokenDoesNotBreakAStopString) {
  FakeTokenizer tokenizer;
  const Output output = RunAll(tokenizer, Options({"ab"}), {'x', 'a', kSpecial, 'b', 'c'});
  EXPECT_EQ(output.answer, "x");
  EXPECT_TRUE(output.stopped);
}

TEST(OutputProcessorTest, NulBytesAreOrdinary) {
  FakeTokenizer tokenizer;
  const Output output =
      RunAll(tokenizer, Options({std::string("\0!", 2)}), {'a', 0, 0, 'b', 0, '!', 'c'});
  EXPECT_EQ(output.answer, std::string("a\0\0b", 4));
  EXPECT_TRUE(output.stopped);
}

// The file of a byte-level tokenizer without merges; bytes that are not printable are tokens of
// U+0100 and on.
std::string ByteTokenizerJson() {
  nlohmann::json vocab = nlohmann::json::object();
  int32_t num_mapped = 0;
  for (int32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte > 32 && byte < 127) || (byte > 160 && byte != 173);
    const int32_t rune = printable ? byte : 256 + num_mapped++;
    std::string utf8(1, static_cast<char>(rune));
    if (rune >= 128)
      utf8 = {static_cast<char>(0xC0 | rune >> 6), static_cast<char>(0x80 | (rune & 63))};
    vocab[utf8] = byte;
  }
  const auto added = [](int32_t id, const char* content, bool special) {
    return nlohmann::json{{"id", id},           {"content", content}, {"special", special},
                          {"lstrip", false},    {"rstrip", false},    {"single_word", false},
                          {"normalized", false}};
  };
  const nlohmann::json byte_level = {{"type", "ByteLevel"},
                                     {"add_prefix_space", false},
                                     {"trim_offsets", true},
                                     {"use_regex", false}};
  return nlohmann::json{
      {"version", "1.0"},
      {"added_tokens",
       {added(256, "<think>", false), added(257, "</think>", false), added(258, "<eos>", true)}},
      {"normalizer", nullptr},
      {"pre_tokenizer", byte_level},
      {"post_processor", nullptr},
      {"decoder", byte_level},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", nlohmann::json::array()}}}}
      .dump();
}

TEST(OutputProcessorTest, WorksWithATokenizerFile) {
  const auto tokenizer = Tokenizer::Parse(ByteTokenizerJson());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto ids = (*tokenizer)->Encode("hm \xf0\x9f\x98\x80</think>\xe7\xbb\x88 STOP<eos>");
  ASSERT_TRUE(ids.ok()) << ids.status();
  const OutputOptions options = {.think_start_id = 256,
                                 .think_end_id = 257,
                                 .starts_in_thinking = true,
                                 .end_ids = {258},
                                 .stop = {"STO!", "STOPS"}};
  const Output output = RunAll(**tokenizer, options, *ids);
  EXPECT_EQ(output.thinking, "hm \xf0\x9f\x98\x80");
  EXPECT_EQ(output.answer, "\xe7\xbb\x88 STOP");
  EXPECT_EQ(output.token_ids, *ids);
  EXPECT_TRUE(output.stopped);
  EXPECT_EQ(output.reasoning_tokens, 8);
}

// The sure way: the text of each stretch of one channel as a whole, and its stop strings by search.
Output Reference(const Tokenizer& tokenizer, const OutputOptions& options,
                 const std::vector<int32_t>& ids) {
  Output output;
  bool thinking = options.starts_in_thinking;
  std::string bytes;
  const auto close = [&] {
    Detokenizer detokenizer;
    std::string text = detokenizer.Push(bytes);
    text += detokenizer.Flush();
    bytes.clear();
    if (thinking) {
      output.thinking += text;
      return;
    }
    size_t first_end = std::string::npos;
    size_t shown = text.size();
    for (const std::string& stop : options.stop) {
      const size_t begin = text.find(stop);
      if (begin == std::string::npos) continue;
      const size_t end = begin + stop.size();
      if (end > first_end || (end == first_end && begin > shown)) continue;
      first_end = end;
      shown = begin;
      output.stopped = true;
    }
    output.answer += text.substr(0, shown);
  };
  for (const int32_t id : ids) {
    const bool ends = std::count(options.end_ids.begin(), options.end_ids.end(), id) > 0;
    const bool is_tag = id == kThinkStart || id == kThinkEnd;
    const bool opens = id == kThinkStart;
    if (ends) break;
    if (is_tag && opens != thinking) {
      close();
      if (output.stopped) return output;
      thinking = opens;
    }
    const AddedToken* added = tokenizer.FindAdded(id);
    if (!is_tag && (added == nullptr || !added->special)) bytes += tokenizer.TokenBytes(id);
  }
  close();
  return output;
}

std::string RandomBytes(Random& random) {
  static const std::vector<std::string> kParts = {
      "a",    "b", "ab",   "ba",   "aab",  "é", "终",
      "终止", "😀", "\xe7", "\xbb", "\xff", " ", std::string(1, '\0')};
  std::string text;
  for (int64_t n = random.Below(60); n > 0; --n) {
    text += kParts[static_cast<size_t>(random.Below(static_cast<int64_t>(kParts.size())))];
  }
  return text;
}

void AppendSplit(Random& random, FakeTokenizer& tokenizer, std::string_view text,
                 std::vector<int32_t>& ids) {
  while (!text.empty()) {
    const std::string_view piece = text.substr(0, static_cast<size_t>(1 + random.Below(5)));
    ids.push_back(tokenizer.TokenOf(piece));
    if (random.Below(10) == 0) ids.push_back(kSpecial);
    text.remove_prefix(piece.size());
  }
}

TEST(OutputProcessorTest, AnySplitIntoTokensShowsWhatTheWholeTextShows) {
  static const std::vector<std::string> kStops = {"ab",
                                                  "aab",
                                                  "abba",
                                                  "终止",
                                                  "é ",
                                                  "bb😀",
                                                  std::string("\0a", 2),
                                                  "\xef\xbf\xbd"
                                                  "a"};
  FakeTokenizer tokenizer;
  int num_stopped = 0;
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Random random(seed);
    OutputOptions options = Options();
    options.starts_in_thinking = random.Below(2) == 0;
    for (int64_t n = random.Below(4); n > 0; --n) {
      options.stop.push_back(kStops[static_cast<size_t>(random.Below(kStops.size()))]);
    }
    std::vector<std::string> stretches;
    for (int64_t n = 1 + random.Below(3); n > 0; --n) stretches.push_back(RandomBytes(random));
    const bool ends = random.Below(2) == 0;
    for (int split = 0; split < 3; ++split) {
      std::vector<int32_t> ids;
      for (const std::string& stretch : stretches) {
        AppendSplit(random, tokenizer, stretch, ids);
        if (&stretch == &stretches.back()) break;
        const bool opens =
            (&stretch - stretches.data()) % 2 == (options.starts_in_thinking ? 1 : 0);
        ids.push_back(opens ? kThinkStart : kThinkEnd);
      }
      if (ends) ids.push_back(kEnd);
      const Output expected = Reference(tokenizer, options, ids);
      const Output output = RunAll(tokenizer, options, ids);
      ASSERT_EQ(output.thinking, expected.thinking);
      ASSERT_EQ(output.answer, expected.answer);
      num_stopped += expected.stopped;
      if (ends || expected.stopped) continue;
      ASSERT_FALSE(output.stopped);
      ASSERT_EQ(output.token_ids, ids);
    }
  }
  EXPECT_GT(num_stopped, 1000);
}

}  // namespace
}  // namespace jevons

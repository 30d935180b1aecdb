#include "engine/output_processor.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/unit/engine/output_run.h"

namespace jevons {
namespace {

using testing::ElementsAre;

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

}  // namespace
}  // namespace jevons

#include "client/answer_printer.h"
#include "gtest/gtest.h"
#include "server/cmd_input.h"
#include "server/generate_output.h"

namespace jevons {
namespace {

// What the printer writes for these messages.
std::string Printed(PrintMode mode, const std::vector<v1::GenerateResponse>& messages) {
  char* text = nullptr;
  size_t size = 0;
  std::FILE* out = open_memstream(&text, &size);
  AnswerPrinter printer(mode, out);
  for (const v1::GenerateResponse& message : messages) printer.Print(message);
  printer.Finish();
  std::fclose(out);
  std::string result(text, size);
  std::free(text);
  return result;
}

v1::GenerateResponse Thinking(const std::string& text) {
  v1::GenerateResponse out;
  out.set_thinking(text);
  return out;
}
v1::GenerateResponse Answer(const std::string& text) {
  v1::GenerateResponse out;
  out.set_answer(text);
  return out;
}

TEST(AnswerPrinterTest, ATerminalGetsDimmedThinkingApartFromTheAnswer) {
  EXPECT_EQ(Printed(PrintMode::kTerminal, {Thinking("a"), Thinking("b"), Answer("c"), Answer("d")}),
            "\033[2mab\033[0m\n\ncd\n");
  EXPECT_EQ(Printed(PrintMode::kTerminal, {Answer("c\n")}), "c\n");
  EXPECT_EQ(Printed(PrintMode::kTerminal, {Thinking("a")}), "\033[2ma\033[0m\n");
}

TEST(AnswerPrinterTest, AFileGetsTheAnswerAlone) {
  EXPECT_EQ(Printed(PrintMode::kPlain, {Thinking("a"), Answer("\033[31mc")}), "\033[31mc\n");
}

TEST(AnswerPrinterTest, AModelCannotDriveTheTerminal) {
  EXPECT_EQ(Printed(PrintMode::kTerminal, {Answer("\033[31m\u009b\ttab\u00e9")}),
            "\uFFFD[31m\uFFFD\ttab\u00e9\n");
}

TEST(GenerateOutputTest, JsonHasAllFieldsAndAllDigits) {
  GenerationResult result;
  result.prompt_ids = {1, 2};
  result.seed = 7;
  result.Add({.delta = {.channel = Channel::kThinking, .text = "t", .token_ids = {3}}, .end = {}});
  result.Add(
      {.delta = {.channel = Channel::kAnswer, .text = "\"a\n", .token_ids = {4}}, .end = {}});
  result.logprobs = {{.chosen = {.id = 4, .logprob = -0.1F}, .top = {{.id = 4, .logprob = -0.1F}}}};
  result.end = {.reason = FinishReason::kStop,
                .usage = {.prompt_tokens = 2, .completion_tokens = 2, .reasoning_tokens = 1}};
  const std::string start =
      "{\"prompt_ids\": [1, 2], \"output_ids\": [3, 4], \"text\": \"\\\"a\\n\", \"reasoning\": "
      "\"t\", \"finish_reason\": \"stop\", \"usage\": {\"prompt_tokens\": 2, "
      "\"completion_tokens\": 2, \"reasoning_tokens\": 1}, \"seed\": 7";
  EXPECT_EQ(ResultJson(result, LogprobMode::kOmit), start + "}");
  EXPECT_EQ(ResultJson(result, LogprobMode::kPrint),
            start +
                ", \"logprobs\": [{\"id\": 4, \"logprob\": -0.100000001, \"top\": [{\"id\": 4, "
                "\"logprob\": -0.100000001}]}]}");
}

TEST(GenerateOutputTest, AScoreHasOneNumberLessThanIds) {
  GenerationResult result;
  result.prompt_ids = {5};
  EXPECT_EQ(ScoreJson(result), "{\"ids\": [5], \"logprobs\": []}");
  result.prompt_ids = {5, 6};
  result.prompt_logprobs = {{.chosen = {.id = 6, .logprob = -2}, .top = {}}};
  EXPECT_EQ(ScoreJson(result), "{\"ids\": [5, 6], \"logprobs\": [-2]}");
}

TEST(CommandInputTest, IdsMayBeWrittenInManyWays) {
  const std::vector<int32_t> ids = {1, 22, -3};
  for (const char* text : {"1,22,-3", "[1, 22, -3]\n", "1 22\t-3"}) EXPECT_EQ(*ParseIds(text), ids);
  EXPECT_TRUE(ParseIds("")->empty());
  EXPECT_EQ(JoinIds(ids), "1,22,-3");
}

TEST(CommandInputTest, WhatIsNoIdIsNamed) {
  EXPECT_EQ(ParseIds("1,x").status(),
            absl::InvalidArgumentError("entry 1 of the ids must be a 32-bit number, given \"x\""));
  EXPECT_FALSE(ParseIds("99999999999").ok());
}

TEST(CommandInputTest, AMissingFileIsNamed) {
  EXPECT_EQ(ReadFileOrStdin("/nowhere/x").status(),
            absl::NotFoundError("cannot read /nowhere/x: No such file or directory"));
}

}  // namespace
}  // namespace jevons

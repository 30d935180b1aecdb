// The command line of the binary.
#include <algorithm>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gmock/gmock.h"
#include "nlohmann/json.hpp"
#include "tests/support/process.h"
#include "tests/support/test_data.h"

namespace jevons {
namespace {

using nlohmann::ordered_json;
using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

ProcessResult Jevons(const std::vector<std::string>& arguments, const std::string& input = "") {
  std::vector<std::string> argv = {JEVONS_BINARY};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  return RunProcess(argv, {.input = input});
}

// With --model after the subcommand.
ProcessResult WithModel(const std::string& command, std::vector<std::string> arguments,
                        const std::string& input = "") {
  arguments.insert(arguments.begin(), {command, "--model", DemoModelPath()});
  return Jevons(arguments, input);
}

ordered_json Parse(const std::string& text) {
  ordered_json out = ordered_json::parse(text, nullptr, false);
  EXPECT_FALSE(out.is_discarded()) << text;
  return out;
}

const ordered_json& Expected() {
  static const ordered_json* expected =
      new ordered_json(Parse(ReadFile(DataPath("demo_expected.json"))));
  return *expected;
}

TEST(CliTest, HelpAndVersion) {
  EXPECT_THAT(Jevons({"--version"}).out, StartsWith("jevons "));
  EXPECT_EQ(Jevons({"--version"}).exit_code, 0);
  for (const char* command : {"serve", "generate", "chat", "tokenize", "render", "inspect"}) {
    const ProcessResult help = Jevons({command, "--help"});
    EXPECT_EQ(help.exit_code, 0) << command;
    EXPECT_THAT(help.out, HasSubstr("Usage: jevons " + std::string(command)));
    EXPECT_EQ(help.err, "");
  }
}

TEST(CliTest, UnknownFlagsAndCommandsAreRefused) {
  for (const char* command : {"serve", "generate", "chat", "tokenize", "render", "inspect"}) {
    const ProcessResult result = Jevons({command, "--model", "x", "--no-such-flag"});
    EXPECT_EQ(result.exit_code, 2) << command;
    EXPECT_EQ(result.out, "");
    EXPECT_NE(result.err, "");
  }
  EXPECT_EQ(Jevons({}).exit_code, 2);
  EXPECT_EQ(Jevons({"dance"}).exit_code, 2);
  EXPECT_EQ(Jevons({"serve"}).exit_code, 2);
}

TEST(CliTest, NumbersOutOfRangeNameFlagLimitAndValue) {
  struct Case {
    const char* command;
    const char* flag;
    const char* value;
    const char* limits;
  };
  for (const Case& c : {Case{"serve", "--max-num-seqs", "0", "[1, 1024]"},
                        Case{"serve", "--max-num-seqs", "1025", "[1, 1024]"},
                        Case{"serve", "--max-num-batched-tokens", "-1", "[1, 65536]"},
                        Case{"serve", "--kv-cache-tokens", "99999999999", "[0, 2147483647]"},
                        Case{"serve", "--max-message-mb", "4096", "[1, 2047]"},
                        Case{"serve", "--drain-seconds", "x", "[0, 86400]"},
                        Case{"generate", "--temperature", "nan", "[0, "},
                        Case{"generate", "--top-p", "1.5", ", 1]"},
                        Case{"generate", "--max-tokens", "0", "[1, 1000000000]"},
                        Case{"generate", "--logprobs", "21", "[0, 20]"}}) {
    const ProcessResult result = WithModel(c.command, {c.flag, c.value});
    EXPECT_EQ(result.exit_code, 2) << c.flag;
    EXPECT_THAT(result.err, AllOf(HasSubstr(c.flag), HasSubstr(c.limits), HasSubstr(c.value)));
  }
  const ProcessResult both =
      WithModel("serve", {"--max-num-seqs", "100", "--max-num-batched-tokens", "50"});
  EXPECT_EQ(both.exit_code, 2);
  EXPECT_THAT(both.err,
              AllOf(HasSubstr("--max-num-batched-tokens"), HasSubstr("100"), HasSubstr("50")));
}

TEST(CliTest, ErrorsAtRunTimeExitWithOne) {
  for (const char* command : {"serve", "inspect"}) {
    const ProcessResult result = Jevons({command, "--model", "/nowhere"});
    EXPECT_EQ(result.exit_code, 1) << command;
    EXPECT_THAT(result.err, AllOf(HasSubstr("error: "), HasSubstr("/nowhere")));
  }
  const ProcessResult chat = Jevons({"chat", "--connect", "127.0.0.1:1", "hello"});
  EXPECT_EQ(chat.exit_code, 1);
  EXPECT_EQ(chat.out, "");
  EXPECT_THAT(chat.err, AllOf(HasSubstr("127.0.0.1:1"), HasSubstr("jevons serve --model")));
  const ProcessResult file = WithModel("render", {"--messages", "/nowhere/x.json"});
  EXPECT_EQ(file.exit_code, 1);
  EXPECT_THAT(file.err, HasSubstr("/nowhere/x.json"));
  EXPECT_EQ(WithModel("generate", {"--prompt-ids", "1,two"}).exit_code, 1);
  EXPECT_EQ(WithModel("generate", {"--prompt-ids", "1,99999"}).exit_code, 1);
}

TEST(CliTest, RenderPrintsThePromptExactly) {
  for (const ordered_json& conversation : Expected()["conversations"]) {
    const ProcessResult result = WithModel("render", {"--messages", "-"}, conversation.dump());
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_EQ(result.out, conversation["prompt"].get<std::string>());
  }
  const ProcessResult list =
      WithModel("render", {"--messages", "-"}, Expected()["conversations"][2]["messages"].dump());
  EXPECT_EQ(list.out, Expected()["conversations"][2]["prompt"].get<std::string>());
}

TEST(CliTest, TokenizeAndBack) {
  const ordered_json& conversation = Expected()["conversations"][5];
  const std::string text = conversation["prompt"].get<std::string>();
  const std::string ids =
      absl::StrJoin(conversation["prompt_ids"].get<std::vector<int32_t>>(), ",");
  EXPECT_EQ(WithModel("tokenize", {"--ids", text}).out, ids + "\n");
  EXPECT_EQ(WithModel("tokenize", {"--ids"}, text).out, ids + "\n");
  EXPECT_EQ(WithModel("tokenize", {"--detokenize", ids}).out, text);
  EXPECT_EQ(WithModel("tokenize", {"--detokenize"}, ids + "\n").out, text);
  const std::string lines = WithModel("tokenize", {"12\n"}).out;
  EXPECT_EQ(std::count(lines.begin(), lines.end(), '\n'), 3) << lines;
  EXPECT_THAT(lines,
              AllOf(HasSubstr("\t\"1\"\n"), HasSubstr("\t\"2\"\n"), HasSubstr("\t\"\\n\"\n")));
  EXPECT_EQ(WithModel("tokenize", {"--ids", "--detokenize", "1"}).exit_code, 2);
}

TEST(CliTest, InspectPrintsTheSizes) {
  const ProcessResult result = WithModel("inspect", {"--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const ordered_json json = Parse(result.out);
  EXPECT_EQ(json["model_type"], "deepseek_v3");
  EXPECT_EQ(json["vocab_size"], 512);
  // Four layers of a latent of 64 and a key of 16.
  EXPECT_EQ(json["kv_bytes_per_token_bf16"], 4 * 80 * 2);
  EXPECT_EQ(json["kv_bytes_per_token_f32"], 4 * 80 * 4);
  EXPECT_GT(json["num_params"].get<int64_t>(), json["num_active_params_per_token"].get<int64_t>());
  EXPECT_TRUE(json.contains("stored_bytes_BF16"));
  const ProcessResult text = WithModel("inspect", {});
  EXPECT_EQ(text.exit_code, 0);
  EXPECT_THAT(text.out, HasSubstr("num_active_params_per_token"));
}

TEST(CliTest, GenerateJsonIsThatOfTransformers) {
  const ordered_json& conversation = Expected()["conversations"][2];
  const ProcessResult result =
      WithModel("generate", {"--messages", "-", "--json", "--logprobs", "2", "--max-tokens", "600"},
                conversation.dump());
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const ordered_json json = Parse(result.out);
  EXPECT_EQ(json["prompt_ids"], conversation["prompt_ids"]);
  EXPECT_EQ(json["output_ids"], conversation["output_ids"]);
  EXPECT_EQ(json["text"], "347 * 86 = 29842");
  EXPECT_EQ(json["finish_reason"], "stop");
  const size_t num_output = conversation["output_ids"].size();
  EXPECT_EQ(json["usage"]["prompt_tokens"], conversation["prompt_ids"].size());
  EXPECT_EQ(json["usage"]["completion_tokens"], num_output);
  EXPECT_GT(json["usage"]["reasoning_tokens"], 0);
  const std::string whole = conversation["text"].get<std::string>();
  EXPECT_EQ(json["reasoning"].get<std::string>(), whole.substr(0, whole.find("</think>")));
  ASSERT_EQ(json["logprobs"].size(), num_output);
  for (size_t i = 0; i < num_output; ++i) {
    EXPECT_EQ(json["logprobs"][i]["id"], json["output_ids"][i]);
    EXPECT_EQ(json["logprobs"][i]["top"].size(), 2U);
    EXPECT_EQ(json["logprobs"][i]["top"][0]["logprob"], json["logprobs"][i]["logprob"]);
  }
}

TEST(CliTest, GenerateEffortChangesThePrompt) {
  for (int i = 0; i < 3; ++i) {
    const ordered_json& conversation = Expected()["conversations"][i];
    const ProcessResult result =
        WithModel("generate",
                  {"--messages", "-", "--json", "--max-tokens", "1", "--effort",
                   conversation["reasoning_effort"].get<std::string>()},
                  conversation["messages"].dump());
    ASSERT_EQ(result.exit_code, 0) << result.err;
    EXPECT_EQ(Parse(result.out)["prompt_ids"], conversation["prompt_ids"]);
    EXPECT_EQ(Parse(result.out)["finish_reason"], "length");
  }
  EXPECT_EQ(WithModel("generate", {"--prompt", "1", "--effort", "low"}).exit_code, 2);
}

TEST(CliTest, TrustContentTurnsSpelledTagsIntoControlTokens) {
  const std::string messages = R"([{"role": "user", "content": "a</think>b"}])";
  const auto ids = [&](std::vector<std::string> flags) {
    flags.insert(flags.begin(), {"--messages", "-", "--json", "--max-tokens", "1"});
    const ProcessResult result = WithModel("generate", flags, messages);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return Parse(result.out)["prompt_ids"].get<std::vector<int32_t>>();
  };
  static constexpr int32_t kThinkEnd = 504;
  const auto count = [](const std::vector<int32_t>& all) {
    return std::count(all.begin(), all.end(), kThinkEnd);
  };
  EXPECT_EQ(count(ids({})), 0);
  EXPECT_EQ(count(ids({"--trust-content"})), 1);
}

TEST(CliTest, GenerateStreamsTheAnswerToStdout) {
  const ordered_json& conversation = Expected()["conversations"][2];
  const ProcessResult result = WithModel("generate", {"--messages", "-"}, conversation.dump());
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out, "347 * 86 = 29842\n");
  EXPECT_THAT(result.err, HasSubstr("347"));
}

TEST(CliTest, GenerateTakesRawTextWithBosAndIds) {
  const ordered_json text = Parse(
      WithModel("generate", {"--prompt", "12", "--max-tokens", "2", "--ignore-eos", "--json"}).out);
  EXPECT_EQ(text["prompt_ids"][0], 0);
  EXPECT_EQ(text["prompt_ids"].size(), 3U);
  EXPECT_EQ(text["output_ids"].size(), 2U);
  const ordered_json ids = Parse(
      WithModel("generate", {"--prompt-ids", "@-", "--max-tokens", "2", "--ignore-eos", "--json"},
                text["prompt_ids"].dump())
          .out);
  EXPECT_EQ(ids["output_ids"], text["output_ids"]);
  EXPECT_EQ(WithModel("generate", {}).exit_code, 2);
  EXPECT_EQ(WithModel("generate", {"--prompt", "1", "--prompt-ids", "1"}).exit_code, 2);
}

TEST(CliTest, ScoreHasOneNumberLessThanIds) {
  const ordered_json score =
      Parse(WithModel("generate", {"--prompt-ids", "0,501,21,22", "--score"}).out);
  EXPECT_EQ(score["ids"], (std::vector<int>{0, 501, 21, 22}));
  ASSERT_EQ(score["logprobs"].size(), 3U);
  for (const ordered_json& logprob : score["logprobs"]) EXPECT_LE(logprob.get<double>(), 0);
  EXPECT_EQ(WithModel("generate", {"--prompt-ids", "7", "--score"}).out,
            "{\"ids\": [7], \"logprobs\": []}\n");
}

TEST(CliTest, KvCacheDTypeIsOneThatTheBackendHas) {
  const std::vector<std::string> score = {"--prompt-ids", "0,501,21,22,23,24", "--score"};
  const auto scored_with = [&](const std::string& dtype) {
    std::vector<std::string> arguments = score;
    arguments.insert(arguments.end(), {"--kv-cache-dtype", dtype});
    const ordered_json logprobs = Parse(WithModel("generate", arguments).out)["logprobs"];
    return logprobs.get<std::vector<double>>();
  };
  const std::vector<double> exact = scored_with("auto");
  const std::vector<double> fp8 = scored_with("fp8");
  EXPECT_NE(fp8, exact);
  EXPECT_THAT(fp8, testing::Pointwise(testing::DoubleNear(0.5), exact));
  const ProcessResult unknown = WithModel("generate", {"--prompt", "1", "--kv-cache-dtype", "fp4"});
  EXPECT_EQ(unknown.exit_code, 2);
  EXPECT_THAT(unknown.err, AllOf(HasSubstr("--kv-cache-dtype"), HasSubstr("fp4")));
  const ProcessResult lacking =
      WithModel("serve", {"--backend", "cpu", "--kv-cache-dtype", "bf16"});
  EXPECT_EQ(lacking.exit_code, 1);
  EXPECT_THAT(lacking.err, HasSubstr("must be auto (f32) or fp8 on this backend, given bf16"));
}

TEST(CliTest, OnlyMainReadsTheCpuTarget) {
  const std::vector<std::string> argv = {JEVONS_BINARY,   "generate",     "--model",
                                         DemoModelPath(), "--prompt",     "1",
                                         "--json",        "--max-tokens", "4"};
  const ProcessResult bad = RunProcess(argv, {.environment = {"JEVONS_CPU_TARGET=abacus"}});
  EXPECT_EQ(bad.exit_code, 1);
  EXPECT_THAT(bad.err, HasSubstr("abacus"));
  EXPECT_EQ(RunProcess(argv, {.environment = {"JEVONS_CPU_TARGET=baseline"}}).exit_code, 0);
}

}  // namespace
}  // namespace jevons

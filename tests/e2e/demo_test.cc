// The demo model behind a real server gives what transformers gives.
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "gmock/gmock.h"
#include "nlohmann/json.hpp"
#include "tests/e2e/demo_server.h"

namespace jevons {
namespace {

using nlohmann::ordered_json;

const ordered_json& Expected() {
  static const ordered_json* expected = new ordered_json(
      ordered_json::parse(ReadFile(DataPath("demo_expected.json")), nullptr, false));
  return *expected;
}

v1::Chat ChatOf(const ordered_json& conversation) {
  v1::Chat chat;
  chat.set_reasoning_effort(conversation["reasoning_effort"].get<std::string>());
  for (const ordered_json& message : conversation["messages"]) {
    v1::ChatMessage& out = *chat.add_messages();
    out.set_role(message["role"].get<std::string>());
    out.set_content(message["content"].get<std::string>());
    if (message.contains("tool_call_id")) {
      out.set_tool_call_id(message["tool_call_id"].get<std::string>());
    }
    if (!message.contains("tool_calls")) continue;
    for (const ordered_json& call : message["tool_calls"]) {
      v1::ToolCall& tool_call = *out.add_tool_calls();
      tool_call.set_id(call["id"].get<std::string>());
      tool_call.set_name(call["function"]["name"].get<std::string>());
      tool_call.set_arguments(call["function"]["arguments"].get<std::string>());
    }
  }
  if (conversation["tools"].is_null()) return chat;
  for (const ordered_json& tool : conversation["tools"]) chat.add_tools(tool.dump());
  return chat;
}

v1::GenerateRequest RequestOf(const ordered_json& conversation) {
  v1::GenerateRequest request;
  *request.mutable_chat() = ChatOf(conversation);
  request.set_max_tokens(600);
  request.set_return_token_ids(true);
  return request;
}

void ExpectEqual(const Generation& got, const ordered_json& conversation) {
  SCOPED_TRACE(conversation["prompt"].get<std::string>());
  EXPECT_TRUE(got.status.ok()) << got.status;
  EXPECT_EQ(got.num_terminal, 1);
  const auto ids = conversation["output_ids"].get<std::vector<int32_t>>();
  EXPECT_EQ(got.token_ids, ids);
  EXPECT_EQ(got.usage.prompt_tokens(), static_cast<int>(conversation["prompt_ids"].size()));
  EXPECT_EQ(got.started.prompt_tokens(), got.usage.prompt_tokens());
  EXPECT_EQ(got.usage.completion_tokens(), static_cast<int>(ids.size()));
  EXPECT_EQ(got.finish_reason,
            ids.size() == 600 ? v1::FINISH_REASON_LENGTH : v1::FINISH_REASON_STOP);
}

class DemoTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { server_ = new DemoServer; }
  static void TearDownTestSuite() {
    delete server_;
    server_ = nullptr;
  }
  void SetUp() override { ASSERT_TRUE(server_->ok()); }
  Client& client() { return server_->client(); }

  static DemoServer* server_;
};
DemoServer* DemoTest::server_ = nullptr;

TEST_F(DemoTest, ADozenQuestionsAreAnsweredRight) {
  const std::vector<std::pair<int, int>> products = {{347, 86}, {123, 45}, {999, 99}, {512, 16},
                                                     {708, 30}, {641, 27}, {255, 55}, {890, 12},
                                                     {101, 11}, {432, 98}, {777, 77}, {360, 24}};
  for (const auto& [a, b] : products) {
    const Generation got =
        Generate(client(), ChatRequest(absl::StrCat("What is ", a, " * ", b, "?"), "high"));
    EXPECT_TRUE(got.status.ok()) << got.status;
    EXPECT_EQ(got.answer, absl::StrCat(a, " * ", b, " = ", a * b)) << got.thinking;
    EXPECT_FALSE(got.thinking.empty());
    EXPECT_EQ(got.finish_reason, v1::FINISH_REASON_STOP);
    EXPECT_GT(got.usage.reasoning_tokens(), 0);
    EXPECT_LT(got.usage.reasoning_tokens(), got.usage.completion_tokens());
  }
}

TEST_F(DemoTest, PromptsAreThoseOfTransformers) {
  ASSERT_EQ(Expected()["conversations"].size(), 45U);
  for (const ordered_json& conversation : Expected()["conversations"]) {
    v1::TokenizeRequest request;
    *request.mutable_chat() = ChatOf(conversation);
    const auto got = client().Tokenize(request);
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_EQ(got->rendered(), conversation["prompt"].get<std::string>());
    EXPECT_THAT(got->token_ids(),
                testing::ElementsAreArray(conversation["prompt_ids"].get<std::vector<int32_t>>()));
  }
}

TEST_F(DemoTest, OutputsAreThoseOfTransformersOneByOne) {
  for (const ordered_json& conversation : Expected()["conversations"]) {
    const Generation got = Generate(client(), RequestOf(conversation));
    ExpectEqual(got, conversation);
    v1::DetokenizeRequest ids;
    ids.mutable_token_ids()->Assign(got.token_ids.begin(), got.token_ids.end());
    EXPECT_EQ(client().Detokenize(ids)->text(), conversation["text"].get<std::string>());
    // `none` answers at once: nothing is thinking.
    const bool thinks = conversation["reasoning_effort"] != "none";
    EXPECT_EQ(got.usage.reasoning_tokens() > 0, thinks);
    EXPECT_EQ(!got.thinking.empty(), thinks);
  }
}

TEST_F(DemoTest, OutputsAreThoseOfTransformersAllAtOnce) {
  const ordered_json& conversations = Expected()["conversations"];
  std::vector<Generation> got(conversations.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < conversations.size(); ++i) {
    threads.emplace_back([&, i] { got[i] = Generate(client(), RequestOf(conversations[i])); });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < conversations.size(); ++i) ExpectEqual(got[i], conversations[i]);
  server_->ExpectIdleSoon();
}

TEST_F(DemoTest, MoreThinkingGivesTheListedAccuracy) {
  const ordered_json& problems = Expected()["problems"];
  for (const std::string effort : {"none", "low", "high"}) {
    std::vector<Generation> got(problems.size());
    constexpr size_t kNumThreads = 20;
    std::vector<std::thread> threads;
    for (size_t t = 0; t < kNumThreads; ++t) {
      threads.emplace_back([&, t] {
        for (size_t i = t; i < problems.size(); i += kNumThreads) {
          const int a = problems[i][0].get<int>();
          const int b = problems[i][1].get<int>();
          v1::GenerateRequest request =
              ChatRequest(absl::StrCat("What is ", a, " * ", b, "?"), effort);
          request.set_max_tokens(600);
          got[i] = Generate(client(), request);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    int num_right = 0;
    size_t num_tokens = 0;
    for (size_t i = 0; i < problems.size(); ++i) {
      const int a = problems[i][0].get<int>();
      const int b = problems[i][1].get<int>();
      const bool right = got[i].finish_reason == v1::FINISH_REASON_STOP &&
                         got[i].answer == absl::StrCat(a, " * ", b, " = ", a * b);
      num_right += right ? 1 : 0;
      num_tokens += got[i].token_ids.size();
    }
    const ordered_json& expected = Expected()["accuracy"][effort];
    EXPECT_EQ(num_right, expected["right"].get<int>()) << effort;
    EXPECT_EQ(absl::StrFormat("%.2f", static_cast<double>(num_tokens) / problems.size()),
              absl::StrFormat("%.2f", expected["mean_output_tokens"].get<double>()))
        << effort;
  }
}

TEST_F(DemoTest, TheSameSeedGivesTheSameTokens) {
  v1::GenerateRequest request = ChatRequest("What is 12 * 34?", "low");
  request.mutable_sampling()->set_temperature(1.5F);
  const Generation first = Generate(client(), request);
  ASSERT_TRUE(first.status.ok()) << first.status;
  request.mutable_sampling()->set_seed(first.started.seed());
  EXPECT_EQ(Generate(client(), request).token_ids, first.token_ids);
}

TEST_F(DemoTest, StopStringsEndTheAnswerAndNotTheThinking) {
  const Generation whole = Generate(client(), ChatRequest("What is 347 * 86?", "high"));
  ASSERT_NE(whole.thinking.find('='), std::string::npos);
  v1::GenerateRequest request = ChatRequest("What is 347 * 86?", "high");
  request.add_stop("=");
  const Generation got = Generate(client(), request);
  EXPECT_EQ(got.thinking, whole.thinking);
  EXPECT_EQ(got.answer, "347 * 86 ");
  EXPECT_EQ(got.finish_reason, v1::FINISH_REASON_STOP);
}

TEST_F(DemoTest, LogprobsHaveOneEntryAToken) {
  v1::GenerateRequest request = ChatRequest("What is 12 + 995?", "low");
  request.set_logprobs(2);
  request.set_prompt_logprobs(1);
  const Generation got = Generate(client(), request);
  ASSERT_EQ(got.logprobs.size(), got.token_ids.size());
  ASSERT_EQ(static_cast<int>(got.prompt_logprobs.size()), got.usage.prompt_tokens() - 1);
  for (size_t i = 0; i < got.token_ids.size(); ++i) {
    EXPECT_EQ(got.logprobs[i].chosen().token_id(), got.token_ids[i]);
    ASSERT_EQ(got.logprobs[i].top_size(), 2);
    // The demo model is greedy.
    EXPECT_EQ(got.logprobs[i].top(0).token_id(), got.token_ids[i]);
    EXPECT_EQ(got.logprobs[i].top(0).logprob(), got.logprobs[i].chosen().logprob());
    EXPECT_GE(got.logprobs[i].top(0).logprob(), got.logprobs[i].top(1).logprob());
  }
}

TEST_F(DemoTest, LogprobsOfALongPromptArriveInMessagesThatEveryClientTakes) {
  constexpr size_t kClientLimit = 4 << 20;
  constexpr int kNumPrompt = 4000;
  v1::GenerateRequest request;
  for (int i = 0; i < kNumPrompt; ++i) request.mutable_token_ids()->add_ids(20 + i % 10);
  request.set_max_tokens(1);
  request.set_prompt_logprobs(20);
  int next = 1;
  const absl::Status status = client().Generate(request, [&](const v1::GenerateResponse& message) {
    EXPECT_LT(message.ByteSizeLong(), kClientLimit);
    for (const v1::Logprobs& entry : message.prompt_logprobs()) {
      EXPECT_EQ(entry.chosen().token_id(), 20 + next % 10);
      EXPECT_EQ(entry.top_size(), 20);
      ++next;
    }
  });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(next, kNumPrompt);
}

}  // namespace
}  // namespace jevons

#include "server/request_mapping.h"

#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/error_text.h"
#include "tests/support/fake_engine.h"

namespace jevons {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;

class RequestMappingTest : public testing::Test {
 protected:
  absl::StatusOr<GenerationRequest> Map(const v1::GenerateRequest& request) {
    const PromptBuilder prompts(&engine_);
    return MapGenerateRequest(request, prompts, {.deadline = deadline_, .seed = 77});
  }
  void ExpectInvalid(const v1::GenerateRequest& request, const std::string& text) {
    const auto mapped = Map(request);
    EXPECT_EQ(mapped.status().code(), absl::StatusCode::kInvalidArgument) << mapped.status();
    EXPECT_EQ(std::string(mapped.status().message()), text);
  }
  static v1::GenerateRequest Text(const std::string& text) {
    v1::GenerateRequest out;
    out.set_text(text);
    return out;
  }
  static v1::GenerateRequest UserChat() {
    v1::GenerateRequest out;
    v1::ChatMessage& message = *out.mutable_chat()->add_messages();
    message.set_role("user");
    message.set_content("hi");
    return out;
  }

  FakeEngine engine_;
  const absl::Time deadline_ = absl::FromUnixSeconds(2'000'000'000);
};

TEST_F(RequestMappingTest, TextGetsBosOnce) {
  EXPECT_THAT(Map(Text("ab"))->prompt_ids, ElementsAre(kFakeBosId, 'a', 'b'));
  engine_.mutable_config().bos_token_id = 'a';
  EXPECT_THAT(Map(Text("ab"))->prompt_ids, ElementsAre('a', 'b'));
  engine_.mutable_config().bos_token_id = -1;
  EXPECT_THAT(Map(Text("b"))->prompt_ids, ElementsAre('b'));
}

TEST_F(RequestMappingTest, NulInTextIsACharacter) {
  EXPECT_THAT(Map(Text(std::string("a\0b", 3)))->prompt_ids, ElementsAre(kFakeBosId, 'a', 0, 'b'));
}

TEST_F(RequestMappingTest, TokenIdsAreTakenExactly) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids(3);
  request.mutable_token_ids()->add_ids(256);
  EXPECT_THAT(Map(request)->prompt_ids, ElementsAre(3, 256));
}

TEST_F(RequestMappingTest, TokenIdsOutsideTheVocabularyAreNamed) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids(3);
  request.mutable_token_ids()->add_ids(257);
  ExpectInvalid(request, "token_ids.ids[1] must be in [0, 257), the vocabulary, given 257");
  request.mutable_token_ids()->set_ids(1, -1);
  ExpectInvalid(request, "token_ids.ids[1] must be in [0, 257), the vocabulary, given -1");
}

TEST_F(RequestMappingTest, EmptyInputsAreRefused) {
  ExpectInvalid(v1::GenerateRequest(), "input is missing: set one of text, token_ids, chat");
  ExpectInvalid(Text(""), "text must have at least 1 byte, given 0");
  v1::GenerateRequest ids;
  ids.mutable_token_ids();
  ExpectInvalid(ids, "token_ids.ids must have at least 1 id, given 0");
  v1::GenerateRequest chat;
  chat.mutable_chat();
  ExpectInvalid(chat, "chat.messages must have at least 1 message, given 0");
}

TEST_F(RequestMappingTest, TextThatCannotFitIsRefusedBeforeItIsTokenised) {
  engine_.mutable_limits().max_model_len = 100;
  ExpectInvalid(Text(std::string(300, 'x')),
                "text must have fewer than 100 tokens (max_model_len), given 300 bytes, at least "
                "100 tokens");
}

TEST_F(RequestMappingTest, AnotherModelIsNotFound) {
  v1::GenerateRequest request = Text("a");
  request.set_model("fake-model");
  EXPECT_TRUE(Map(request).ok());
  request.set_model("gpt");
  EXPECT_EQ(Map(request).status(),
            absl::NotFoundError("model must be \"fake-model\" or empty, given \"gpt\""));
}

TEST_F(RequestMappingTest, AbsentSamplingTakesTheModelsDefaults) {
  const auto plain = Map(Text("a"));
  EXPECT_EQ(plain->sampling.temperature, 1);
  EXPECT_EQ(plain->sampling.top_p, 1);
  EXPECT_EQ(plain->sampling.top_k, 0);
  EXPECT_EQ(plain->sampling.seed, 77U);
  EXPECT_EQ(plain->max_new_tokens, 0);
  EXPECT_EQ(plain->num_logprobs, -1);
  EXPECT_EQ(plain->num_prompt_logprobs, -1);
  EXPECT_EQ(plain->deadline, deadline_);
  engine_.mutable_config().default_temperature = 0.5;
  engine_.mutable_config().default_top_p = 0.25;
  engine_.mutable_config().default_top_k = 9;
  const auto model = Map(Text("a"));
  EXPECT_EQ(model->sampling.temperature, 0.5F);
  EXPECT_EQ(model->sampling.top_p, 0.25F);
  EXPECT_EQ(model->sampling.top_k, 9);
}

TEST_F(RequestMappingTest, ZeroIsNotAbsent) {
  engine_.mutable_config().default_temperature = 0.5;
  engine_.mutable_config().default_top_k = 9;
  v1::GenerateRequest request = Text("a");
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_top_k(0);
  request.mutable_sampling()->set_seed(0);
  request.set_logprobs(0);
  request.set_prompt_logprobs(0);
  const auto mapped = Map(request);
  EXPECT_EQ(mapped->sampling.temperature, 0);
  EXPECT_EQ(mapped->sampling.top_k, 0);
  EXPECT_EQ(mapped->sampling.seed, 0U);
  EXPECT_EQ(mapped->num_logprobs, 0);
  EXPECT_EQ(mapped->num_prompt_logprobs, 0);
}

TEST_F(RequestMappingTest, MaxTokensHasLimits) {
  v1::GenerateRequest request = Text("a");
  for (const int32_t bad : {0, -1, 1'000'000'001}) {
    request.set_max_tokens(bad);
    ExpectInvalid(request, absl::StrCat("max_tokens must be in [1, 1000000000], given ", bad));
  }
  request.set_max_tokens(1'000'000'000);
  EXPECT_EQ(Map(request)->max_new_tokens, 1'000'000'000);
}

TEST_F(RequestMappingTest, EachSaltIsANumberOfItsOwnAndNoneIsZero) {
  v1::GenerateRequest request = Text("a");
  EXPECT_EQ(Map(request)->cache_salt, 0u);
  std::set<uint64_t> salts = {0};
  for (const char* salt : {"a", "b", "ab", "ba"}) {
    request.set_cache_salt(salt);
    EXPECT_TRUE(salts.insert(Map(request)->cache_salt).second) << salt;
  }
  request.set_cache_salt(std::string(256, 'x'));
  EXPECT_TRUE(Map(request).ok());
  request.set_cache_salt(std::string(257, 'x'));
  ExpectInvalid(request, "cache_salt may have at most 256 bytes, given 257");
}

TEST_F(RequestMappingTest, LogprobsHaveLimits) {
  for (const int32_t bad : {-1, 21, 200'000}) {
    v1::GenerateRequest request = Text("a");
    request.set_logprobs(bad);
    ExpectInvalid(request, absl::StrCat("logprobs must be in [0, 20], given ", bad));
    request = Text("a");
    request.set_prompt_logprobs(bad);
    ExpectInvalid(request, absl::StrCat("prompt_logprobs must be in [0, 20], given ", bad));
  }
}

TEST_F(RequestMappingTest, LogitBiasArrivesById) {
  v1::GenerateRequest request = Text("a");
  (*request.mutable_sampling()->mutable_logit_bias())[7] = -1;
  (*request.mutable_sampling()->mutable_logit_bias())[3] = 2;
  EXPECT_THAT(Map(request)->sampling.logit_bias,
              ElementsAre(std::pair<int32_t, float>(3, 2), std::pair<int32_t, float>(7, -1)));
}

TEST_F(RequestMappingTest, ChatKeepsPresenceAndTheOrderOfKeys) {
  v1::Chat chat;
  v1::ChatMessage& call = *chat.add_messages();
  call.set_role("assistant");
  v1::ToolCall& tool_call = *call.add_tool_calls();
  tool_call.set_id("c1");
  tool_call.set_name("f");
  tool_call.set_arguments("{\"b\":1,\"a\":2}");
  v1::ChatMessage& result = *chat.add_messages();
  result.set_role("tool");
  result.set_content("");
  result.set_tool_call_id("c1");
  chat.add_tools("{\"z\":1,\"a\":{\"y\":2,\"b\":3}}");
  chat.set_template_args("{\"k\":[1]}");
  const auto mapped = MapChat(chat);
  ASSERT_TRUE(mapped.ok()) << mapped.status();
  EXPECT_EQ(
      mapped->dump(),
      "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"type\":\"function\","
      "\"id\":\"c1\",\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"b\\\":1,\\\"a\\\":2}\"}}"
      "]},{\"role\":\"tool\",\"content\":\"\",\"tool_call_id\":\"c1\"}],"
      "\"tools\":[{\"z\":1,\"a\":{\"y\":2,\"b\":3}}],\"k\":[1]}");
}

TEST_F(RequestMappingTest, EffortSetsThinking) {
  v1::GenerateRequest request = UserChat();
  const auto rest = [&] {
    nlohmann::ordered_json json = *MapChat(request.chat());
    json.erase("messages");
    return json.dump();
  };
  EXPECT_EQ(rest(), "{}");
  request.mutable_chat()->set_reasoning_effort("none");
  EXPECT_EQ(rest(), "{\"reasoning_effort\":\"none\",\"thinking\":false}");
  request.mutable_chat()->set_reasoning_effort("low");
  EXPECT_EQ(rest(), "{\"reasoning_effort\":\"low\",\"thinking\":true}");
  request.mutable_chat()->set_thinking(false);
  ExpectInvalid(request,
                "chat.thinking contradicts chat.reasoning_effort: thinking is false, "
                "reasoning_effort is \"low\"");
  request.mutable_chat()->clear_reasoning_effort();
  EXPECT_EQ(rest(), "{\"thinking\":false}");
}

TEST_F(RequestMappingTest, BadChatFieldsAreNamed) {
  v1::GenerateRequest request = UserChat();
  request.mutable_chat()->set_reasoning_effort("huge");
  ExpectInvalid(
      request, "chat.reasoning_effort must be one of none, low, medium, high, max, given \"huge\"");
  request = UserChat();
  request.mutable_chat()->add_messages()->set_role("robot");
  ExpectInvalid(request,
                "chat.messages[1].role must be one of system, developer, user, assistant, tool, "
                "given \"robot\"");
  request = UserChat();
  request.mutable_chat()->add_tools("[1]");
  ExpectInvalid(request, "chat.tools[0] must be a JSON object, given \"[1]\"");
  request = UserChat();
  request.mutable_chat()->set_template_args("{\"messages\":[]}");
  ExpectInvalid(request, "chat.template_args must not name messages, which has a field of its own");
  request = UserChat();
  request.mutable_chat()->set_template_args("{\"a\":");
  const auto mapped = Map(request);
  EXPECT_EQ(mapped.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(mapped.status().message()), HasSubstr("chat.template_args: "));
}

TEST(ErrorTextTest, LongValuesAreCutAtACharacter) {
  const std::string value = std::string(199, 'a') + "\u00e9" + std::string(1'000'000, 'b');
  EXPECT_EQ(QuoteValue(value), "\"" + std::string(199, 'a') + "\"... (1000201 bytes)");
  EXPECT_EQ(QuoteValue("a\n\xff"), "\"a\\n\\xff\"");
  EXPECT_THAT(BoundText(std::string(5000, 'x')), AllOf(SizeIs(kMaxErrorBytes), HasSubstr("x...")));
}

}  // namespace
}  // namespace jevons

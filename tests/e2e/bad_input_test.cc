// What no request may do: crash the server, hang it, or get an unclear answer.
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "tests/e2e/demo_server.h"
#include "tests/support/http2_client.h"

namespace jevons {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr char kGenerate[] = "/jevons.v1.Inference/Generate";
constexpr int kInvalidArgument = 3;

class BadInputTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { server_ = new DemoServer; }
  static void TearDownTestSuite() {
    delete server_;
    server_ = nullptr;
  }
  void SetUp() override { ASSERT_TRUE(server_->ok()); }
  // The server answers after whatever the test did.
  void TearDown() override {
    const Generation got = Generate(client(), ChatRequest("What is 347 * 86?", "high"));
    EXPECT_TRUE(got.status.ok()) << got.status;
    EXPECT_EQ(got.answer, "347 * 86 = 29842");
    server_->ExpectIdleSoon();
  }

  static Client& client() { return server_->client(); }
  static v1::GenerateRequest Text(const std::string& text) {
    v1::GenerateRequest out;
    out.set_text(text);
    out.set_max_tokens(3);
    return out;
  }
  static v1::GenerateRequest Ids(const std::vector<int32_t>& ids) {
    v1::GenerateRequest out;
    out.mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
    out.set_max_tokens(3);
    return out;
  }
  static void ExpectInvalid(const v1::GenerateRequest& request, const std::string& text) {
    const Generation got = Generate(client(), request);
    EXPECT_EQ(got.status, absl::InvalidArgumentError(text));
    EXPECT_EQ(got.num_messages, 0);
  }

  static DemoServer* server_;
};
DemoServer* BadInputTest::server_ = nullptr;

TEST_F(BadInputTest, EmptyPrompt) {
  ExpectInvalid(v1::GenerateRequest(), "input is missing: set one of text, token_ids, chat");
  ExpectInvalid(Text(""), "text must have at least 1 byte, given 0");
  ExpectInvalid(Ids({}), "token_ids.ids must have at least 1 id, given 0");
}

TEST_F(BadInputTest, IllFormedUtf8) {
  // A client library would refuse to send it.
  v1::GenerateRequest request = Text("ab#");
  request.add_stop("x");
  std::string bytes = request.SerializeAsString();
  bytes[bytes.find('#')] = '\xff';
  const Http2Answer answer =
      CallHttp2(server_->server().address(), {.path = kGenerate, .message = bytes});
  EXPECT_EQ(answer.status(), kInvalidArgument);
  EXPECT_EQ(answer.trailers.at("grpc-message"), "text: ill-formed UTF-8 at byte 2");
  const Http2Answer garbage =
      CallHttp2(server_->server().address(), {.path = kGenerate, .message = "\xff\xff\xff"});
  EXPECT_EQ(garbage.status(), kInvalidArgument);
}

TEST_F(BadInputTest, IdsOutsideTheVocabulary) {
  const int32_t limit = server_->engine().limits().num_tokens;
  for (const int32_t bad :
       {-1, limit, std::numeric_limits<int32_t>::max(), std::numeric_limits<int32_t>::min()}) {
    ExpectInvalid(Ids({1, bad}), absl::StrCat("token_ids.ids[1] must be in [0, ", limit,
                                              "), the vocabulary, given ", bad));
  }
}

TEST_F(BadInputTest, SamplingOutOfRange) {
  const float nan = std::nanf("");
  const float infinity = std::numeric_limits<float>::infinity();
  v1::GenerateRequest request = Text("1");
  for (const float bad : {-1.0F, nan, infinity, -infinity}) {
    request.mutable_sampling()->set_temperature(bad);
    const absl::Status status = Generate(client(), request).status;
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("temperature"), HasSubstr(absl::StrCat(bad))));
  }
  request.mutable_sampling()->Clear();
  for (const float bad : {0.0F, -0.5F, 1.5F, nan}) {
    request.mutable_sampling()->set_top_p(bad);
    const absl::Status status = Generate(client(), request).status;
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("top_p"), HasSubstr("(0, 1]"), HasSubstr(absl::StrCat(bad))));
  }
  request.mutable_sampling()->Clear();
  for (const float bad : {-0.5F, 1.5F, nan}) {
    request.mutable_sampling()->set_min_p(bad);
    EXPECT_TRUE(absl::IsInvalidArgument(Generate(client(), request).status));
  }
  request.mutable_sampling()->Clear();
  request.mutable_sampling()->set_top_k(-1);
  EXPECT_TRUE(absl::IsInvalidArgument(Generate(client(), request).status));
}

TEST_F(BadInputTest, TinyTemperaturesAreGreedy) {
  const Generation greedy = Generate(client(), ChatRequest("What is 347 * 86?", "low"));
  for (const float tiny : {1e-4F, 1e-6F, 1e-30F, 1e-45F}) {
    v1::GenerateRequest request = ChatRequest("What is 347 * 86?", "low");
    request.mutable_sampling()->set_temperature(tiny);
    EXPECT_EQ(Generate(client(), request).token_ids, greedy.token_ids) << tiny;
  }
}

TEST_F(BadInputTest, LogitBias) {
  struct Case {
    int32_t id;
    float bias;
    std::string text;
  };
  for (const Case& c : {Case{999'999, 5, "999999"}, Case{-1, 5, "-1"}, Case{5, 1e9F, "1e+09"},
                        Case{5, std::nanf(""), "nan"}}) {
    v1::GenerateRequest request = Text("1");
    (*request.mutable_sampling()->mutable_logit_bias())[c.id] = c.bias;
    const absl::Status status = Generate(client(), request).status;
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("logit_bias"), HasSubstr(c.text)));
  }
  v1::GenerateRequest request = Text("1");
  for (int32_t i = 0; i < 10'000; ++i) (*request.mutable_sampling()->mutable_logit_bias())[i] = 1;
  const absl::Status status = Generate(client(), request).status;
  EXPECT_EQ(status,
            absl::InvalidArgumentError("logit_bias may have at most 1024 entries, but has 10000"));
}

TEST_F(BadInputTest, PromptsLongerThanTheModel) {
  const int32_t limit = server_->engine().limits().max_model_len;
  const absl::Status ids =
      Generate(client(), Ids(std::vector<int32_t>(static_cast<size_t>(limit), 5))).status;
  EXPECT_TRUE(absl::IsInvalidArgument(ids)) << ids;
  EXPECT_THAT(std::string(ids.message()),
              AllOf(HasSubstr(absl::StrCat(limit)), HasSubstr(absl::StrCat(limit - 1))));
  // Far too long, and found out before it is tokenised; then a little too long.
  for (const size_t bytes : {size_t{10} << 20, static_cast<size_t>(limit) * 3}) {
    const absl::Status text = Generate(client(), Text(std::string(bytes, '7'))).status;
    EXPECT_TRUE(absl::IsInvalidArgument(text)) << text;
    EXPECT_THAT(std::string(text.message()), HasSubstr(absl::StrCat(limit)));
  }
  v1::GenerateRequest fits = Ids(std::vector<int32_t>(static_cast<size_t>(limit) - 1, 5));
  const Generation got = Generate(client(), fits);
  EXPECT_TRUE(got.status.ok()) << got.status;
  EXPECT_EQ(got.usage.completion_tokens(), 1);
}

TEST_F(BadInputTest, MaxTokens) {
  v1::GenerateRequest request = Text("1");
  request.set_max_tokens(0);
  ExpectInvalid(request, "max_tokens must be in [1, 1000000000], given 0");
  request.set_max_tokens(-5);
  ExpectInvalid(request, "max_tokens must be in [1, 1000000000], given -5");
  // A billion is a way to say: as many as fit.
  request = ChatRequest("What is 2 + 2?", "none");
  request.set_max_tokens(1'000'000'000);
  const Generation got = Generate(client(), request);
  EXPECT_TRUE(got.status.ok()) << got.status;
}

TEST_F(BadInputTest, StopStrings) {
  v1::GenerateRequest request = Text("1");
  for (int i = 0; i < 10'000; ++i) request.add_stop(absl::StrCat("stop", i));
  ExpectInvalid(request, "stop may have at most 16 strings, but has 10000");
  request = Text("1");
  request.add_stop("");
  ExpectInvalid(request, "stop[0] must have at least 1 byte, but is empty");
  request = Text("1");
  request.add_stop(std::string(1'000'000, 'x'));
  const absl::Status status = Generate(client(), request).status;
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("1024"), HasSubstr("1000000")));
  EXPECT_LT(status.message().size(), 1001U);
}

TEST_F(BadInputTest, Logprobs) {
  v1::GenerateRequest request = Text("1");
  request.set_logprobs(-1);
  ExpectInvalid(request, "logprobs must be in [0, 20], given -1");
  request = Text("1");
  request.set_prompt_logprobs(200'000);
  ExpectInvalid(request, "prompt_logprobs must be in [0, 20], given 200000");
}

TEST_F(BadInputTest, AMessageOfAHundredMegabytes) {
  const absl::Status status = Generate(client(), Text(std::string(100 << 20, 'x'))).status;
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("16777216"), HasSubstr("1048576")));
}

TEST_F(BadInputTest, NulIsACharacter) {
  v1::TokenizeRequest whole;
  whole.set_text(std::string("first\0second", 12));
  v1::TokenizeRequest head;
  head.set_text("first");
  const auto ids = client().Tokenize(whole);
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_GT(ids->token_ids_size(), client().Tokenize(head)->token_ids_size());
  v1::DetokenizeRequest back;
  *back.mutable_token_ids() = ids->token_ids();
  EXPECT_EQ(client().Detokenize(back)->text(), whole.text());

  v1::GenerateRequest chat = ChatRequest(std::string("What is 2 + 2?\0more", 19), "none");
  chat.add_stop(std::string("\0", 1));
  const Generation got = Generate(client(), chat);
  EXPECT_TRUE(got.status.ok()) << got.status;
  EXPECT_GT(got.usage.prompt_tokens(),
            Generate(client(), ChatRequest("What is 2 + 2?", "none")).usage.prompt_tokens());
}

TEST_F(BadInputTest, BadConversations) {
  v1::GenerateRequest request;
  request.mutable_chat();
  ExpectInvalid(request, "chat.messages must have at least 1 message, given 0");
  request = ChatRequest("x", "enormous");
  ExpectInvalid(
      request,
      "chat.reasoning_effort must be one of none, low, medium, high, max, given \"enormous\"");
  request = ChatRequest("x", "low");
  request.mutable_chat()->add_tools(std::string(100'000, '['));
  const absl::Status status = Generate(client(), request).status;
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("chat.tools[0]"));
}

TEST_F(BadInputTest, AnotherModel) {
  v1::GenerateRequest request = Text("1");
  request.set_model("gpt");
  EXPECT_EQ(Generate(client(), request).status,
            absl::NotFoundError("model must be \"demo\" or empty, given \"gpt\""));
}

TEST_F(BadInputTest, APromptLargerThanThePoolIsRefusedAtTheDoor) {
  EngineOptions options;
  options.kv_cache_tokens = 128;
  DemoServer small(options);
  ASSERT_TRUE(small.ok());
  const absl::Status status = Generate(small.client(), Ids(std::vector<int32_t>(200, 5))).status;
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("128"));
}

}  // namespace
}  // namespace jevons

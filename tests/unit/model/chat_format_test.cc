#include "model/chat_format.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/unit/model/chat_fixture.h"

namespace jevons {
namespace {

class ChatFormatTest : public ChatFixture {
 protected:
  // Every template of the DeepSeek family, and the demo model's.
  std::vector<std::pair<std::string, std::unique_ptr<ChatFormat>>> AllFormats() {
    std::vector<std::pair<std::string, std::unique_ptr<ChatFormat>>> formats;
    std::string root = DataPath("chat/templates");
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
      if (!entry.is_regular_file()) continue;
      std::string name = std::filesystem::relative(entry.path(), root).string();
      formats.emplace_back(name, LoadFile(name));
    }
    auto demo = ChatFormat::Load(DemoModelPath(), *tokenizer_);
    EXPECT_TRUE(demo.ok()) << demo.status();
    if (demo.ok()) formats.emplace_back("demo", *std::move(demo));
    return formats;
  }

  static void ExpectInvalid(const ChatFormat& format, const Json& conversation,
                            const std::string& part) {
    auto prompt = format.Render(conversation, {});
    ASSERT_FALSE(prompt.ok()) << prompt->text;
    EXPECT_EQ(prompt.status().code(), absl::StatusCode::kInvalidArgument) << prompt.status();
    EXPECT_NE(std::string(prompt.status().message()).find(part), std::string::npos)
        << prompt.status();
  }
};

// Conversations whose rendering by transformers differs from ours on purpose: content parts are
// joined, and arguments take the form that the template wants.
bool DiffersOnPurpose(const std::string& context) {
  return context == "content_parts" || context.find("tool_call") != std::string::npos ||
         context == "minja-tool_use";
}

TEST_F(ChatFormatTest, RendersWhatTransformersRenders) {
  Json contexts = Json::parse(ReadFile(DataPath("chat/contexts.json")));
  int num_checked = 0;
  for (const auto& entry : std::filesystem::directory_iterator(DataPath("chat/goldens"))) {
    Json golden = Json::parse(ReadFile(entry.path()));
    std::string name =
        golden["template"].get<std::string>().substr(std::string("chat/templates/").size());
    for (const Json& test : golden["cases"]) {
      std::string context = test["context"].get<std::string>();
      if (DiffersOnPurpose(context)) continue;
      SCOPED_TRACE(absl::StrCat(name, " ", context));
      Json conversation = contexts[context];
      for (const char* token : {"bos_token", "eos_token"}) conversation[token] = test[token];
      auto prompt = LoadFile(name)->Render(conversation, {});
      ++num_checked;
      if (test.contains("error")) {
        EXPECT_EQ(prompt.status().code(), absl::StatusCode::kInvalidArgument) << prompt.status();
      } else {
        EXPECT_EQ(TextOf(prompt), test["expected"].get<std::string>());
      }
    }
  }
  EXPECT_EQ(num_checked, 20 * 13);
}

TEST_F(ChatFormatTest, DemoPromptsEqualThoseOfTransformersInTextAndIds) {
  auto format = ChatFormat::Load(DemoModelPath(), *tokenizer_);
  ASSERT_TRUE(format.ok()) << format.status();
  Json expected = Json::parse(ReadFile(DataPath("demo_expected.json")));
  ASSERT_EQ(expected["conversations"].size(), 45u);
  for (const Json& talk : expected["conversations"]) {
    auto prompt = (*format)->Render({{"messages", talk["messages"]},
                                     {"reasoning_effort", talk["reasoning_effort"]},
                                     {"tools", talk["tools"]}},
                                    {});
    EXPECT_EQ(TextOf(prompt), talk["prompt"].get<std::string>());
    EXPECT_EQ(IdsOf(prompt), talk["prompt_ids"].get<std::vector<int32_t>>());
    EXPECT_EQ((*format)->StartsInThinking(IdsOf(prompt)), talk["reasoning_effort"] != "none");
  }
}

TEST_F(ChatFormatTest, OfficialLikeV31RendersWhatItsOtherRendererRenders) {
  auto format = LoadFile("derived/DeepSeek-V3.1-official-like.jinja");
  int num_checked = 0;
  for (const Json& test :
       Json::parse(ReadFile(DataPath("chat/ollama-deepseek-v31-renderer.json")))) {
    if (!test["equals_derived_official_template"].get<bool>() || test["messages"].empty()) continue;
    Json messages = test["messages"];
    for (Json& message : messages) {
      if (!message.contains("tool_calls")) continue;
      for (Json& call : message["tool_calls"]) {
        Json& arguments = call["function"]["arguments"];
        if (arguments.is_object()) arguments = arguments.dump();
      }
    }
    ChatOptions options;
    options.add_generation_prompt = test["add_generation_prompt"].get<bool>();
    auto prompt = format->Render({{"messages", messages}, {"thinking", test["thinking"]}}, options);
    EXPECT_EQ(TextOf(prompt), test["expected"].get<std::string>()) << test["name"];
    ++num_checked;
  }
  EXPECT_EQ(num_checked, 31);
}

// Field case A1.
TEST_F(ChatFormatTest, ToolCallArgumentsRenderOrAreRefusedByName) {
  for (const auto& [name, format] : AllFormats()) {
    SCOPED_TRACE(name);
    for (const char* arguments :
         {R"({"city":"Oslo"})", "null", "[1,2]", "\"x\"", "", R"({"city":"Os)"}) {
      Json call = {{"id", "c1"}, {"function", {{"name", "w"}, {"arguments", arguments}}}};
      Json message = {
          {"role", "assistant"}, {"content", nullptr}, {"tool_calls", Json::array({call})}};
      Json tool = {{"role", "tool"}, {"tool_call_id", "c1"}, {"content", "7 C"}};
      auto prompt = format->Render(Talk({User("weather?"), message, tool, User("and now?")}), {});
      if (prompt.ok()) continue;
      EXPECT_EQ(prompt.status().code(), absl::StatusCode::kInvalidArgument);
      std::string text(prompt.status().message());
      EXPECT_NE(text.find("messages[1].tool_calls[0].function.arguments"), std::string::npos)
          << text;
      EXPECT_NE(std::string(arguments), R"({"city":"Oslo"})") << text;
    }
  }
}

TEST_F(ChatFormatTest, ToolCallArgumentsTakeTheFormThatTheTemplateWants) {
  Json contexts = Json::parse(ReadFile(DataPath("chat/contexts.json")));
  int num_as_object = 0;
  for (const auto& entry : std::filesystem::directory_iterator(DataPath("chat/goldens"))) {
    Json golden = Json::parse(ReadFile(entry.path()));
    std::string name =
        golden["template"].get<std::string>().substr(std::string("chat/templates/").size());
    SCOPED_TRACE(name);
    Json by_context;
    for (const Json& test : golden["cases"]) by_context[test["context"].get<std::string>()] = test;
    auto prompt = LoadFile(name)->Render(contexts["tool_call_str"], {});
    const Json& as_text = by_context["tool_call_str"];
    const Json& as_object = by_context["tool_call_dict"];
    // These fail on null content; beside "" they render the call.
    bool fails_on_null = as_text.contains("error") && as_object.contains("error");
    if (fails_on_null) {
      Json emptied = contexts["tool_call_str"];
      emptied["messages"][1]["content"] = "";
      EXPECT_EQ(prompt.ok(), LoadFile(name)->Render(emptied, {}).ok());
      continue;
    }
    bool joins = !as_text.contains("error") &&
                 as_text["expected"].get<std::string>().find("\\\"city\\\"") == std::string::npos;
    num_as_object += joins ? 0 : 1;
    EXPECT_EQ(TextOf(prompt), (joins ? as_text : as_object)["expected"].get<std::string>());
  }
  EXPECT_GE(num_as_object, 4);
}

// Field case A3.
TEST_F(ChatFormatTest, ContentPartsRenderLikeTheirStringForEveryRole) {
  auto content_of = [](Json content, const char* role) {
    Json message = {{"role", role}, {"content", std::move(content)}};
    if (std::string(role) == "tool") message["tool_call_id"] = "c1";
    return Json::array({User("a"), message, User("b")});
  };
  auto part = [](const char* text) { return Json{{"type", "text"}, {"text", text}}; };
  for (const auto& [name, format] : AllFormats()) {
    for (const char* role : {"system", "developer", "user", "assistant", "tool"}) {
      SCOPED_TRACE(absl::StrCat(name, " ", role));
      auto render = [&, &format = format](Json content) {
        return format->Render(content_of(std::move(content), role), {});
      };
      EXPECT_EQ(TextOf(render(Json::array({part("one")}))), TextOf(render("one")));
      EXPECT_EQ(TextOf(render(Json::array({part("one"), part("two")}))),
                TextOf(render("one\ntwo")));
      EXPECT_EQ(TextOf(render(Json::array())), TextOf(render("")));
      ExpectInvalid(*format, content_of(Json::array({{{"type", "text"}, {"text", nullptr}}}), role),
                    "messages[1].content[0].text");
      ExpectInvalid(*format, content_of(Json::array({part("x"), {{"type", "video"}}}), role),
                    "messages[1].content[1].type: \"video\"");
      ExpectInvalid(*format, content_of(7, role), "messages[1].content");
    }
    Json developer = Json::array({{{"role", "developer"}, {"content", "s"}}, User("a")});
    Json system = Json::array({{{"role", "system"}, {"content", "s"}}, User("a")});
    EXPECT_EQ(TextOf(format->Render(developer, {})), TextOf(format->Render(system, {})));
  }
}

TEST_F(ChatFormatTest, NullAndEmptyMeanAbsent) {
  for (const auto& [name, format] : AllFormats()) {
    SCOPED_TRACE(name);
    Json plain = Talk({User("a"), Assistant("b"), User("c")});
    Json nulls = plain;
    nulls["tools"] = nullptr;
    nulls["thinking"] = nullptr;
    nulls["messages"][1]["tool_calls"] = nullptr;
    nulls["messages"][1]["reasoning_content"] = nullptr;
    EXPECT_EQ(TextOf(format->Render(nulls, {})), TextOf(format->Render(plain, {})));
    nulls["tools"] = Json::array();
    nulls["messages"][1]["tool_calls"] = Json::array();
    EXPECT_EQ(TextOf(format->Render(nulls, {})), TextOf(format->Render(plain["messages"], {})));
  }
}

TEST_F(ChatFormatTest, BadConversationsAreRefusedByPath) {
  auto format = LoadFile("derived/DeepSeek-V3.1-official-like.jinja");
  ExpectInvalid(*format, "x", "conversation");
  ExpectInvalid(*format, Json::object(), "messages: required");
  ExpectInvalid(*format, Json::array(), "messages: at least one");
  ExpectInvalid(*format, {{"messages", 1}}, "messages: expected a list");
  ExpectInvalid(*format, Json::array({1}), "messages[0]: expected an object");
  ExpectInvalid(*format, Json::array({{{"content", "x"}}}), "messages[0].role: required");
  ExpectInvalid(*format, Json::array({{{"role", "boss"}, {"content", "x"}}}),
                "messages[0].role: \"boss\"");
  ExpectInvalid(*format, Json::array({{{"role", "user"}}}), "messages[0].content: required");
  ExpectInvalid(*format, {{"messages", Json::array({User("a")})}, {"tools", Json::array({1})}},
                "tools[0]");
  ExpectInvalid(*format, Json::array({User(std::string("\xff"))}),
                "messages[0].content: ill-formed UTF-8 at offset 0");
  Json call = {{"function", {{"arguments", "{}"}}}};
  ExpectInvalid(
      *format,
      Json::array({User("a"), {{"role", "assistant"}, {"tool_calls", Json::array({call})}}}),
      "messages[1].tool_calls[0].function.name: required");
}

TEST_F(ChatFormatTest, WhatTheTemplateRaisesReachesTheCaller) {
  auto format = LoadTemplate("{{ raise_exception('roles must alternate') }}");
  ExpectInvalid(*format, Json::array({User("a")}), "roles must alternate");
}

TEST_F(ChatFormatTest, NulIsAnOrdinaryCharacter) {
  auto format = LoadFile("derived/DeepSeek-V3.1-official-like.jinja");
  std::string text =
      TextOf(format->Render(Json::array({User(std::string("first half\0 second half", 23))}), {}));
  EXPECT_NE(text.find(std::string("first half\0 second half", 23)), std::string::npos);
}

TEST_F(ChatFormatTest, TurnEndsComeFromTheConfigurationAndTheTemplate) {
  int32_t eos = *tokenizer_->FindToken(kEos);
  int32_t user = *tokenizer_->FindToken("<｜User｜>");
  auto ids = [](const ChatFormat& format) {
    return std::vector<int32_t>(format.turn_end_ids().begin(), format.turn_end_ids().end());
  };
  EXPECT_EQ(ids(*LoadFile("derived/DeepSeek-V3.1-official-like.jinja")), std::vector<int32_t>{eos});
  std::string other = "{% for m in messages %}{{ m.content }}\n<｜User｜>\n{% endfor %}";
  EXPECT_EQ(ids(*LoadTemplate(other)), (std::vector<int32_t>{eos, user}));
  EXPECT_EQ(ids(*LoadTemplate("{{ messages[1].role.nothing.at_all }}")), std::vector<int32_t>{eos});
}

TEST_F(ChatFormatTest, LoadReadsEveryPlaceWhereATemplateCanBe) {
  Json messages = Json::array({User("a")});
  auto none = LoadConfig("");
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_FALSE((*none)->has_template());
  EXPECT_EQ((*none)->Render(messages, {}).status().code(), absl::StatusCode::kFailedPrecondition);
  auto named = LoadConfig(
      R"({"chat_template": [{"name": "rag", "template": "R"},
                            {"name": "default", "template": "D"}], "bos_token": null})");
  ASSERT_TRUE(named.ok()) << named.status();
  EXPECT_EQ(TextOf((*named)->Render(messages, {})), "D");
  auto file = LoadConfig(R"({"chat_template": "C", "bos_token": "B"})", "J{{ bos_token }}");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE((*file)->has_template());
  EXPECT_EQ(TextOf((*file)->Render(messages, {})), "JB");
  for (const char* config : {"{", "[]", R"({"chat_template": 1})",
                             R"({"chat_template": [{"name": "x", "template": "R"}]})",
                             R"({"eos_token": 1})", R"({"chat_template": "{% if %}"})"}) {
    EXPECT_EQ(LoadConfig(config).status().code(), absl::StatusCode::kInvalidArgument) << config;
  }
  auto unknown = LoadConfig(R"({"chat_template": "\n{{ a|urlize }}"})");
  EXPECT_EQ(unknown.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_NE(std::string(unknown.status().message()).find("line 2"), std::string::npos);
}

// Field case A5.
TEST_F(ChatFormatTest, APrefixIsContinuedInPlace) {
  for (const auto& [name, format] : AllFormats()) {
    SCOPED_TRACE(name);
    Json last = Assistant("Sure");
    last["prefix"] = true;
    std::string text = TextOf(
        format->Render(Talk({User("Name a fruit"), Assistant("Sure "), User("again"), last}), {}));
    EXPECT_EQ(text.substr(text.size() - 4), "Sure");
    EXPECT_NE(text.find("again"), std::string::npos);
    EXPECT_LT(text.find("Name a fruit"), text.find("again"));
    EXPECT_EQ(text.find(kBos), text.rfind(kBos));
  }
  auto format = LoadFile("derived/DeepSeek-V3.1-official-like.jinja");
  Json first = Assistant("x");
  first["prefix"] = true;
  ExpectInvalid(*format, Talk({User("a"), first, User("b")}), "messages[1].prefix");
  Json user = User("x");
  user["prefix"] = true;
  ExpectInvalid(*format, Talk({user}), "messages[0].prefix");
}

// Field case D6.
TEST_F(ChatFormatTest, APrefixWithThinkingStartsWhereItsTextEnds) {
  auto format = LoadFile("derived/DeepSeek-V3.1-official-like.jinja");
  auto render = [&](Json last) {
    last["role"] = "assistant";
    last["prefix"] = true;
    Json talk = Talk({User("2+3?"), last});
    talk["thinking"] = true;
    return format->Render(talk, {});
  };
  std::string head = absl::StrCat(kBos, "<｜User｜>2+3?<｜Assistant｜><think>");
  auto closed = render({{"content", "<think>2+3 is 5.</think>"}});
  EXPECT_EQ(TextOf(closed), head + "2+3 is 5.</think>");
  EXPECT_FALSE(format->StartsInThinking(IdsOf(closed)));
  auto with_answer = render({{"reasoning_content", "2+3 is 5."}, {"content", "The"}});
  EXPECT_EQ(TextOf(with_answer), head + "2+3 is 5.</think>The");
  EXPECT_FALSE(format->StartsInThinking(IdsOf(with_answer)));
  auto open = render({{"reasoning_content", "2+3"}, {"content", ""}});
  EXPECT_EQ(TextOf(open), head + "2+3");
  EXPECT_TRUE(format->StartsInThinking(IdsOf(open)));
}

TEST_F(ChatFormatTest, TheLastTagInThePromptDecidesWhetherItStartsInThinking) {
  auto format = LoadFile("derived/DeepSeek-V3.1-official-like.jinja");
  int32_t start = format->think_start_id(), end = format->think_end_id();
  EXPECT_EQ(start, *tokenizer_->FindToken("<think>"));
  EXPECT_EQ(end, *tokenizer_->FindToken("</think>"));
  EXPECT_FALSE(format->StartsInThinking({}));
  EXPECT_TRUE(format->StartsInThinking(std::vector<int32_t>{end, 7, start, 9}));
  EXPECT_FALSE(format->StartsInThinking(std::vector<int32_t>{start, 7, end, 9}));
  EXPECT_FALSE(format->StartsInThinking(std::vector<int32_t>{-1, 7}));
}

}  // namespace
}  // namespace jevons

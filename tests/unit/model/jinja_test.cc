#include "model/jinja.h"

#include <algorithm>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "model/jinja_eval.h"
#include "model/jinja_parser.h"
#include "tests/support/test_data.h"

namespace jevons::jinja {
namespace {

using Json = nlohmann::ordered_json;

// The day on which the goldens were rendered.
std::tm GoldenDay() {
  std::tm day{};
  day.tm_year = 124;
  day.tm_mon = 6;
  day.tm_mday = 26;
  day.tm_wday = 5;
  return day;
}

Variables VariablesOf(const Json& object, Origin origin = Origin::kTemplate) {
  Variables variables;
  for (const auto& member : object.items()) {
    auto value = FromJson(member.value(), origin);
    EXPECT_TRUE(value.ok()) << value.status();
    if (value.ok()) variables.emplace_back(member.key(), *std::move(value));
  }
  return variables;
}

absl::StatusOr<std::string> Render(std::string_view source, const Json& vars = Json::object()) {
  ASSIGN_OR_RETURN(Template parsed, Template::Parse(source));
  ASSIGN_OR_RETURN(Text text, parsed.Render(VariablesOf(vars), GoldenDay));
  return text.bytes();
}

void ExpectRenders(std::string_view source, std::string_view expected,
                   const Json& vars = Json::object()) {
  auto text = Render(source, vars);
  ASSERT_TRUE(text.ok()) << source << "\n" << text.status();
  EXPECT_EQ(*text, expected) << source;
}

void ExpectError(std::string_view source, absl::StatusCode code, std::string_view part,
                 const Json& vars = Json::object()) {
  auto text = Render(source, vars);
  ASSERT_FALSE(text.ok()) << source << " gave " << text->substr(0, 200);
  EXPECT_EQ(text.status().code(), code) << source << "\n" << text.status();
  EXPECT_NE(std::string(text.status().message()).find(part), std::string::npos) << source << "\n"
                                                                                << text.status();
}

TEST(JinjaTest, WhiteSpaceControlIsThatOfTrimAndLstripBlocks) {
  ExpectRenders("a\n  {% if true %}\n  b\n  {% endif %}\nc\n", "a\n  b\nc");
  ExpectRenders("a  {%+ if true %}\nb{% endif +%}\nc", "a  b\nc");
  ExpectRenders("  {%- if true -%}  \n x \n{%- endif %}\n\ny", "x\ny");
  ExpectRenders("a\n  {{ 'b' }}\n  {# c #}\nd", "a\n  b\nd");
  ExpectRenders("a {#- c -#} \n b", "ab");
  ExpectRenders("{% raw %}{{ a }}{% endraw %}\n{%- raw -%}  {% b %} {%- endraw %}",
                "{{ a }}{% b %}");
  ExpectRenders("a\r\nb\r\n\n", "a\nb\n");
  ExpectRenders("x {% set a = 1 %} y", "x  y");
}

TEST(JinjaTest, ExpressionsFollowPython) {
  ExpectRenders("{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ 1e3 }}",
                "3 -4 2 3.5 1024 1000.0");
  ExpectRenders(
      "{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ not 1 == 2 }} {{ 'b' in 'abc' }} {{ 4 not in [1] }}",
      "True False True True True");
  ExpectRenders("{{ 'abc'[-1] }}{{ 'abc'[::-1] }}{{ [1,2,3][1:] }}{{ (1,) }}{{ 'äöü'[1:] }}",
                "ccba[2, 3](1,)öü");
  ExpectRenders("{{ [none, true, 1.5, 'it\\'s', {'a': ()}] }}",
                "[None, True, 1.5, \"it's\", {'a': ()}]");
  ExpectRenders("{{ 'a' if false }}|{{ 1 if true else 2 }}|{{ '' or 'x' }}|{{ 1 and 0 }}",
                "|1|x|0");
  ExpectRenders("{{ 1 ~ 'a' ~ none }}{{ 'a' 'b' }}{{ 'ab' * 2 }}{{ [0] * 2 }}",
                "1aNoneabab"
                "ab[0, 0]");
  ExpectRenders("{{ 'x\\n\\u00e9\\x41\\q' }}",
                "x\né"
                "A\\q");
  ExpectRenders("{{ {'a': {'b': 2}}.a.b }}{{ {'items': 1}['items'] }}{{ -3|abs }}", "213");
  ExpectRenders("{{ 18446744073709551615 }}", "18446744073709551615");
}

TEST(JinjaTest, UndefinedPrintsNothingAndHasNoAttributes) {
  ExpectRenders(
      "[{{ a }}][{{ a is defined }}][{% for x in a %}x{% endfor %}][{{ a|default('d') }}][{{ {}.b "
      "}}]",
      "[][False][][d][]");
  ExpectError("\n{{ a.b }}", absl::StatusCode::kInvalidArgument, "line 2: 'a' is undefined");
  ExpectError("{{ 'x' + a }}", absl::StatusCode::kInvalidArgument, "'a' is undefined");
  ExpectError("{{ none.split('x') }}", absl::StatusCode::kInvalidArgument,
              "'None' has no attribute 'split'");
  ExpectError("{{ {}.b.c }}", absl::StatusCode::kInvalidArgument,
              "'dict object' has no attribute 'b'");
}

TEST(JinjaTest, LoopsMacrosAndNamespacesKeepTheirScopes) {
  ExpectRenders("{% set x = 1 %}{% for i in [1, 2] %}{{ x }}{% set x = 5 %}{% endfor %}{{ x }}",
                "111");
  ExpectRenders(
      "{% set n = namespace(x=0) %}{% for i in range(4) if i % 2 %}{% set n.x = n.x + i %}{{ "
      "loop.index }}/"
      "{{ loop.length }} {% endfor %}{{ n.x }}",
      "1/2 2/2 4");
  ExpectRenders(
      "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% elif i == 3 %}{% break %}{% endif "
      "%}{{ i }}"
      "{% else %}no{% endfor %}",
      "02");
  ExpectRenders(
      "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{{ loop.first }}{{ loop.last }}{% endfor %}",
      "a1TrueTrue");
  ExpectRenders(
      "{% macro f(a, b=2) %}{{ a }}{{ b }}{{ x }}{% endmacro %}{% set x = 9 %}{{ f(1) }}{{ f(3, "
      "b=4) }}",
      "129349");
  ExpectRenders(
      "{% macro f() %}<{{ caller('c') }}>{% endmacro %}{% call(v) f() %}{{ v }}{% endcall %}",
      "<c>");
  ExpectRenders(
      "{% set x %}a{{ 1 }}{% endset %}{{ x|length }}{% set x | upper %}b{% endset %}{{ x }}", "2B");
  ExpectRenders(
      "{% set n = namespace() %}{% for i in [1] %}{% macro m() %}{{ i }}{% endmacro %}{% set n.m = "
      "m %}{% endfor %}{{ n.m() }}",
      "1");
}

TEST(JinjaTest, TojsonIsJsonDumpsWithoutAsciiEscapes) {
  Json vars = {{"v", {{"k", "é<\"\n"}, {"n", {1, 2.5, nullptr, true}}, {"e", Json::array()}}}};
  ExpectRenders("{{ v|tojson }}", R"({"k": "é<\"\n", "n": [1, 2.5, null, true], "e": []})", vars);
  ExpectRenders(
      "{{ v|tojson(indent=1) }}",
      "{\n \"k\": \"é<\\\"\\n\",\n \"n\": [\n  1,\n  2.5,\n  null,\n  true\n ],\n \"e\": []\n}",
      vars);
  ExpectRenders("{{ big|tojson }}", "18446744073709551615", {{"big", 18446744073709551615u}});
  ExpectError("{{ a|tojson }}", absl::StatusCode::kInvalidArgument, "not JSON serializable");
}

TEST(JinjaTest, RaiseExceptionSaysWhatTheTemplateSays) {
  ExpectError("a\n{{ raise_exception('roles ' ~ 1) }}", absl::StatusCode::kInvalidArgument,
              "line 2: roles 1");
}

TEST(JinjaTest, WhatIsNotSupportedIsRefusedAtLoadWithItsLine) {
  for (const char* source :
       {"\n{% include 'x' %}", "\n{{ a|urlize }}", "\n{{ cycler(1) }}", "\n{{ 'a'.zfill(3) }}",
        "\n{% for a in b recursive %}{% endfor %}", "\n{{ a is nosuch }}", "\n{{ a|nosuch }}",
        "\n{{ a|map('urlize') }}", "\n{% do x %}", "\n{{ a[1, 2] }}"}) {
    auto parsed = Template::Parse(source);
    ASSERT_FALSE(parsed.ok()) << source;
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kUnimplemented)
        << source << parsed.status();
    EXPECT_NE(std::string(parsed.status().message()).find("line 2"), std::string::npos)
        << parsed.status();
  }
  // Where it may not run, an unknown filter is an error only once it runs, as in Jinja2.
  ExpectRenders("{% if false %}{{ a|from_json }}{% endif %}x", "x");
  ExpectError("{% if true %}{{ a|from_json }}{% endif %}", absl::StatusCode::kInvalidArgument,
              "No filter named 'from_json' found.");
}

TEST(JinjaTest, BrokenTemplatesAreRefusedWithTheirLine) {
  for (const char* source : {"\n{{ a ", "\n{% if a %}", "\n{{ 'a }}", "\n{# a", "\n{{ a) }}",
                             "\n{% endif %}", "\n{{ 1 + }}", "\n{% break %}", "\n{{ f(a=1, 2) }}",
                             "\n{% set true = 1 %}", "\n{{ a b }}", "\n{{ $ }}"}) {
    auto parsed = Template::Parse(source);
    ASSERT_FALSE(parsed.ok()) << source;
    EXPECT_NE(std::string(parsed.status().message()).find("line "), std::string::npos)
        << parsed.status();
  }
  EXPECT_FALSE(Template::Parse("\xff").ok());
}

TEST(JinjaTest, ValuesCannotBeChanged) {
  ExpectError("{% set x = [] %}{{ x.append(1) }}", absl::StatusCode::kInvalidArgument, "is unsafe");
  ExpectError("{{ {}.update({}) }}", absl::StatusCode::kInvalidArgument, "is unsafe");
  ExpectError("{{ ''.__class__.__mro__ }}", absl::StatusCode::kInvalidArgument, "is unsafe");
}

std::string Repeated(std::string_view part, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += part;
  return out;
}

TEST(JinjaTest, HostileTemplatesEndWithAnErrorAndNotWithTheStack) {
  const int kMany = 100'000;
  for (const std::string& source :
       {"{{ " + Repeated("(", kMany) + "1" + Repeated(")", kMany) + " }}",
        "{{ " + Repeated("[", kMany) + " }}", "{{ " + Repeated("not ", kMany) + "1 }}",
        "{{ " + Repeated("-", kMany) + "1 }}", "{{ 1" + Repeated("+1", kMany) + " }}",
        "{{ a" + Repeated(".a", kMany) + " }}", "{{ a" + Repeated("|trim", kMany) + " }}",
        Repeated("{% if a %}", kMany), "{{ 1" + Repeated(" if 1 else 1", kMany) + " }}",
        "{% for " + Repeated("(", kMany) + "a in b %}{% endfor %}",
        "{{ a" + Repeated("[a", kMany) + " }}", "{{ " + Repeated("{1:", kMany) + " }}",
        Repeated("f(", kMany)}) {
    auto text = Render(source);
    EXPECT_EQ(text.ok(), source[0] != '{') << source.substr(0, 20);
  }
  ExpectError("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", absl::StatusCode::kInvalidArgument,
              "nests deeper");
  ExpectError(
      "{% set n = namespace(x=[]) %}{% for i in range(9999) %}{% set n.x = [n.x] %}{% endfor %}{{ "
      "n.x }}",
      absl::StatusCode::kInvalidArgument, "nests deeper");
  ExpectError("{% set n = namespace() %}{% set n.x = [n] %}{{ n.x }}",
              absl::StatusCode::kInvalidArgument, "has no text");
}

TEST(JinjaTest, WorkIsBounded) {
  ExpectError("{{ range(100001)|list }}", absl::StatusCode::kInvalidArgument, "MAX_RANGE (100000)");
  ExpectError("{{ range(0, 10 ** 30, 1) }}", absl::StatusCode::kInvalidArgument, "ange");
  ExpectError("{{ 'a' * 10 ** 12 }}", absl::StatusCode::kInvalidArgument, "bytes");
  ExpectError("{{ 9 ** 9 ** 9 }}", absl::StatusCode::kInvalidArgument, "bits");
  ExpectError(
      "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
      absl::StatusCode::kInvalidArgument, "bytes");
  ExpectError("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
              absl::StatusCode::kInvalidArgument, "more than");
  ExpectError("{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
              absl::StatusCode::kInvalidArgument, "bytes");
  ExpectError("{{ [1]|tojson(indent=99999999) }}", absl::StatusCode::kInvalidArgument, "indent");
}

TEST(JinjaTest, OriginFollowsEveryByte) {
  auto parsed = Template::Parse(
      "{{ 'a' + v[1:] + v|upper + v.strip('x') + v|replace('y', 'q') + (v ~ 'b') + [v]|tojson + "
      "v.split('y')[1] }}"
      "{% for c in v %}-{{ c }}{% endfor %}{{ [v] }}{{ '<{}>'.format(v) }}");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  auto text = parsed->Render(VariablesOf({{"v", "xyz"}}, Origin::kForeign), GoldenDay);
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(text->bytes(),
            "ayz"
            "XYZ"
            "yz"
            "xqz"
            "xyzb"
            "[\"xyz\"]"
            "z"
            "-x-y-z"
            "['xyz']"
            "<xyz>");
  for (size_t i = 0; i < text->size(); ++i) {
    bool is_foreign = std::string_view("xyzXYZ").find(text->bytes()[i]) != std::string_view::npos;
    EXPECT_EQ(text->OriginAt(i) == Origin::kForeign, is_foreign)
        << "offset " << i << " of " << text->bytes();
  }
}

void CheckCase(const Json& test, std::string_view source, const Json& vars, int* num_equal) {
  std::string name = absl::StrCat(test.value("name", ""), " ", std::string(source.substr(0, 300)));
  auto text = Render(source, vars);
  const char* error_key = test.contains("error") ? "error" : "jinja2_error";
  if (test.contains(error_key) && !test[error_key].is_null()) {
    EXPECT_FALSE(text.ok()) << name;
    std::string message = test[error_key].get<std::string>();
    message = message.substr(message.find(": ") == std::string::npos ? 0 : message.find(": ") + 2);
    EXPECT_NE(std::string(text.status().message()).find(message), std::string::npos)
        << name << text.status();
    return;
  }
  std::string expected = test["expected"].get<std::string>();
  for (const char* key : {"jinja2_hf_settings", "jinja2"}) {
    if (test.contains(key) && test[key].is_string()) expected = test[key].get<std::string>();
  }
  ASSERT_TRUE(text.ok()) << name << text.status();
  EXPECT_EQ(*text, expected) << name;
  ++*num_equal;
}

int CheckGoldens(const std::string& folder, const std::string& templates,
                 const std::string& contexts_path) {
  Json contexts = Json::parse(ReadFile(contexts_path));
  int num_equal = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    Json golden = Json::parse(ReadFile(entry.path()));
    std::string name = golden["template"].get<std::string>();
    std::string source = ReadFile(templates + name.substr(std::string("chat/templates").size()));
    for (const Json& test : golden["cases"]) {
      SCOPED_TRACE(absl::StrCat(name, " ", test["context"].get<std::string>()));
      Json vars = contexts[test["context"].get<std::string>()];
      for (const char* token : {"bos_token", "eos_token"}) vars[token] = test[token];
      CheckCase(test, source, vars, &num_equal);
    }
  }
  return num_equal;
}

TEST(JinjaGoldenTest, DeepSeekTemplatesRenderWhatJinja2Renders) {
  int num_equal = CheckGoldens(DataPath("chat/goldens"), DataPath("chat/templates"),
                               DataPath("chat/contexts.json"));
  EXPECT_EQ(num_equal, 336);
}

TEST(JinjaGoldenTest, EveryOtherTemplateRendersWhatJinja2Renders) {
  SKIP_WITHOUT_SHARED("vectors/chat");
  int num_equal =
      CheckGoldens(SharedPath("vectors/chat/goldens"), SharedPath("vectors/chat/templates"),
                   SharedPath("vectors/chat/contexts/contexts.json"));
  EXPECT_EQ(num_equal, 1483);
}

// Whether a case needs what we do not have: other white space settings, lists that change, or rare
// filters.
bool NeedsOther(const Json& test) {
  std::string source = test["template"].get<std::string>();
  bool other_settings =
      test.contains("options") && !(test["options"].value("trim_blocks", false) &&
                                    test["options"].value("lstrip_blocks", false));
  bool settings_matter =
      source.find('\n') != std::string::npos || source.find("  {%") != std::string::npos;
  bool changes = test.contains("options") && source.find(".append(") != std::string::npos;
  return (other_settings && settings_matter) || changes || source.empty() ||
         source.find("truncate") != std::string::npos ||
         source.find("generation") != std::string::npos;
}

TEST(JinjaGoldenTest, SyntaxCasesOfOtherEnginesGiveWhatJinja2Gives) {
  SKIP_WITHOUT_SHARED("vectors/chat/jinja");
  int num_equal = 0;
  for (const char* name : {"llamacpp-test-jinja", "minja-test-syntax"}) {
    for (const Json& test :
         Json::parse(ReadFile(SharedPath(absl::StrCat("vectors/chat/jinja/", name, ".json"))))) {
      if (NeedsOther(test)) continue;
      CheckCase(test, test["template"].get<std::string>(), test.value("vars", Json::object()),
                &num_equal);
    }
  }
  EXPECT_EQ(num_equal, 376);
}

}  // namespace
}  // namespace jevons::jinja

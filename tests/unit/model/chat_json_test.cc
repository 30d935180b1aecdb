#include <string>

#include "gtest/gtest.h"
#include "model/chat_format.h"

namespace jevons {
namespace {

void ExpectBad(const std::string& text, const std::string& part) {
  auto value = ParseJson(text);
  ASSERT_FALSE(value.ok()) << text;
  EXPECT_EQ(value.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(value.status().message()).find(part), std::string::npos) << text << "\n"
                                                                                 << value.status();
}

TEST(ParseJsonTest, KeepsOrderAndEveryKindOfValue) {
  const std::string text =
      R"({"z":1,"a":[true,false,null,-0.5,1e3,18446744073709551615,-9223372036854775808],"s":"é\n😀"})";
  auto value = ParseJson(" \n" + text + "\t");
  ASSERT_TRUE(value.ok()) << value.status();
  EXPECT_EQ(
      value->dump(),
      R"({"z":1,"a":[true,false,null,-0.5,1000.0,18446744073709551615,-9223372036854775808],"s":"é\n😀"})");
  EXPECT_EQ(ParseJson("\"\\ud83d\\ude00\\u00e9\\/\"")->get<std::string>(), "😀é/");
  EXPECT_EQ(ParseJson("\"a\\u0000b\"")->get<std::string>(), std::string("a\0b", 3));
  EXPECT_EQ(ParseJson("5e-324")->get<double>(), 5e-324);
  EXPECT_EQ(ParseJson("1e-999")->get<double>(), 0);
}

TEST(ParseJsonTest, NamesTheOffsetOfWhatIsIllFormed) {
  ExpectBad("", "offset 0");
  ExpectBad("{\"a\":1,}", "expected a name at offset 7");
  ExpectBad("[1,]", "offset 3");
  ExpectBad("[1] x", "offset 4");
  ExpectBad("[01]", "offset 2");
  ExpectBad("{\"a\":1,\"a\":2}", "the name \"a\" a second time at offset 7");
  ExpectBad("\"a\xff\"", "UTF-8 at offset 2");
  ExpectBad("\"\xed\xa0\x80\"", "UTF-8 at offset 1");
  ExpectBad("[\"\\ud83d\"]", "unpaired surrogate at offset 2");
  ExpectBad("\"\\ude00\"", "unpaired surrogate at offset 1");
  ExpectBad("\"\\ud83d\\u0041\"", "unpaired surrogate");
  ExpectBad("\"a\nb\"", "control character in a string at offset 2");
  ExpectBad("\"\\x41\"", "offset 1");
  ExpectBad("\"abc", "without end");
  ExpectBad("NaN", "offset 0");
  ExpectBad("-Infinity", "offset 1");
  ExpectBad("1e999", "too large at offset 0");
  ExpectBad("tru", "offset 0");
  ExpectBad(std::string("[1\0]", 4), "offset 2");
  ExpectBad("\xEF\xBB\xBF{}", "offset 0");
}

TEST(ParseJsonTest, NestingIsLimited) {
  EXPECT_TRUE(ParseJson(std::string(64, '[') + std::string(64, ']')).ok());
  ExpectBad(std::string(65, '[') + std::string(65, ']'), "deeper than 64 levels at offset 64");
  ExpectBad(std::string(10'000'000, '['), "deeper than 64");
}

TEST(ParseJsonTest, AnObjectWithVeryManyNamesTakesLinearTime) {
  std::string text = "{";
  for (int i = 0; i < 300'000; ++i) text += (i ? ",\"" : "\"") + std::to_string(i) + "\":0";
  auto value = ParseJson(text + "}");
  ASSERT_TRUE(value.ok()) << value.status();
  EXPECT_EQ(value->size(), 300'000u);
}

}  // namespace
}  // namespace jevons

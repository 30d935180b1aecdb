#include "base/log.h"

#include <algorithm>
#include <string>
#include <string_view>

#include "gtest/gtest.h"

namespace jevons {
namespace {

class LogTest : public testing::Test {
 protected:
  void SetUp() override { SetLogLevel(LogLevel::kInfo); }
  void TearDown() override { SetLogLevel(LogLevel::kInfo); }

  // What the line for a field `name` with this value says after its event.
  static std::string FieldText(const std::string& value) {
    testing::internal::CaptureStderr();
    LogInfo("event_name", {{"name", value}});
    const std::string line = testing::internal::GetCapturedStderr();
    const size_t begin = line.find("event_name ");
    EXPECT_NE(begin, std::string::npos) << line;
    EXPECT_EQ(line.back(), '\n');
    return line.substr(begin + 11, line.size() - begin - 12);
  }
};

TEST_F(LogTest, LineHoldsLevelEventAndFieldsInOrder) {
  testing::internal::CaptureStderr();
  LogWarning("server_started", {{"port", 8080}, {"share", 0.5}, {"model", "tiny"}});
  const std::string line = testing::internal::GetCapturedStderr();
  EXPECT_NE(line.find(" warning server_started port=8080 share=0.5 model=tiny\n"),
            std::string::npos)
      << line;
}

TEST_F(LogTest, PlainValuesStandBare) {
  EXPECT_EQ(FieldText("127.0.0.1:8080"), "name=127.0.0.1:8080");
  EXPECT_EQ(FieldText("/models/v2-lite"), "name=/models/v2-lite");
}

TEST_F(LogTest, ValuesThatAreNotPlainStandInQuotes) {
  EXPECT_EQ(FieldText(""), R"(name="")");
  EXPECT_EQ(FieldText("two words"), R"(name="two words")");
  EXPECT_EQ(FieldText("a=b"), R"(name="a=b")");
  EXPECT_EQ(FieldText(R"(say "hi")"), R"(name="say \"hi\"")");
  EXPECT_EQ(FieldText(R"(back\slash)"), R"(name="back\\slash")");
}

TEST_F(LogTest, AValueCannotEndItsQuotesAndAddAField) {
  EXPECT_EQ(FieldText("x\" admin=\"true"), R"(name="x\" admin=\"true")");
  EXPECT_EQ(FieldText("x\\\" admin=true"), R"(name="x\\\" admin=true")");
}

TEST_F(LogTest, EveryControlByteIsEscapedSoThatAValueStaysOnItsLine) {
  EXPECT_EQ(FieldText("x\n2025-01-01 info forged"), R"(name="x\x0a2025-01-01 info forged")");
  EXPECT_EQ(FieldText("x\r\ny"), R"(name="x\x0d\x0ay")");
  EXPECT_EQ(FieldText("\x1b[2K"), R"(name="\x1b[2K")");
  EXPECT_EQ(FieldText("tab\there"), R"(name="tab\x09here")");
  EXPECT_EQ(FieldText(std::string("a\0b", 3)), R"(name="a\x00b")");
  EXPECT_EQ(FieldText("\x7f"), R"(name="\x7f")");
  EXPECT_EQ(FieldText("\xc2\x85\xe2\x80\xa8"), R"(name="\xc2\x85\xe2\x80\xa8")");
}

TEST_F(LogTest, NoByteValueEverBreaksTheLine) {
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  const std::string text = FieldText(all);
  EXPECT_TRUE(std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c <= '~'; }));
}

TEST_F(LogTest, FormatCharactersOfAValueMeanNothing) {
  EXPECT_EQ(FieldText("{}{0}%s%n"), "name={}{0}%s%n");
}

TEST_F(LogTest, StandardStringViewsAreTaken) {
  testing::internal::CaptureStderr();
  LogError("event", {{"view", std::string_view("abcdef").substr(1, 3)}});
  EXPECT_NE(testing::internal::GetCapturedStderr().find("error event view=bcd\n"),
            std::string::npos);
}

TEST_F(LogTest, LinesBelowTheLevelAreDropped) {
  testing::internal::CaptureStderr();
  SetLogLevel(LogLevel::kWarning);
  LogInfo("not_shown");
  LogWarning("shown_warning");
  SetLogLevel(LogLevel::kError);
  LogWarning("not_shown");
  LogError("shown_error");
  const std::string lines = testing::internal::GetCapturedStderr();
  EXPECT_EQ(lines.find("not_shown"), std::string::npos);
  EXPECT_NE(lines.find("shown_warning"), std::string::npos);
  EXPECT_NE(lines.find("shown_error"), std::string::npos);
}

}  // namespace
}  // namespace jevons

#include "engine/stop_matcher.h"

#include <string>
#include <string_view>
#include <vector>

#include "base/random.h"
#include "gtest/gtest.h"

namespace jevons {
namespace {

struct Expected {
  std::string shown;
  bool matched = false;
};

// Looks at each end in turn, and there at each string, the longest first.
Expected Reference(std::string_view text, const std::vector<std::string>& stops) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : stops) {
      if (text.substr(0, end).ends_with(stop)) longest = std::max(longest, stop.size());
    }
    if (longest > 0) return {.shown = std::string(text.substr(0, end - longest)), .matched = true};
  }
  return {.shown = std::string(text)};
}

size_t LongestPossible(std::string_view text, const std::vector<std::string>& stops) {
  for (size_t length = text.size(); length > 0; --length) {
    for (const std::string& stop : stops) {
      if (length < stop.size() && text.ends_with(std::string_view(stop).substr(0, length))) {
        return length;
      }
    }
  }
  return 0;
}

std::string RandomText(Random& random, int64_t max_size, int64_t alphabet) {
  std::string text;
  for (int64_t n = random.Below(max_size + 1); n > 0; --n) {
    text += static_cast<char>('a' + random.Below(alphabet));
  }
  return text;
}

TEST(StopMatcherTest, WithoutStopStringsEverythingPassesAtOnce) {
  StopMatcher matcher({});
  EXPECT_EQ(matcher.Push("abc"), "abc");
  EXPECT_EQ(matcher.Push(""), "");
  EXPECT_EQ(matcher.Flush(), "");
  EXPECT_FALSE(matcher.matched());
}

TEST(StopMatcherTest, HoldsBackWhatMayBecomeAMatchAndShowsItWhenItDoesNot) {
  const std::vector<std::string> stops = {"END"};
  StopMatcher matcher(stops);
  EXPECT_EQ(matcher.Push("the E"), "the ");
  EXPECT_EQ(matcher.Push("N"), "");
  EXPECT_EQ(matcher.Push("E"), "EN");
  EXPECT_EQ(matcher.Push("ND of"), "");
  EXPECT_TRUE(matcher.matched());
  EXPECT_EQ(matcher.Push("more"), "");
  EXPECT_EQ(matcher.Flush(), "");
}

TEST(StopMatcherTest, FlushShowsWhatIsHeldBackAndForgetsIt) {
  const std::vector<std::string> stops = {"abc"};
  StopMatcher matcher(stops);
  EXPECT_EQ(matcher.Push("xab"), "x");
  EXPECT_EQ(matcher.Flush(), "ab");
  EXPECT_EQ(matcher.Push("c"), "c");
  EXPECT_FALSE(matcher.matched());
}

TEST(StopMatcherTest, TheMatchThatEndsFirstWinsAndOfThoseTheLongest) {
  const std::vector<std::string> stops = {"bc", "abcd", "abc", "c"};
  StopMatcher matcher(stops);
  EXPECT_EQ(matcher.Push("xxabcd"), "xx");
  EXPECT_TRUE(matcher.matched());
}

TEST(StopMatcherTest, AStringThatIsInsideAnotherIsFound) {
  const std::vector<std::string> stops = {"abcde", "cx"};
  StopMatcher matcher(stops);
  EXPECT_EQ(matcher.Push("abcx"), "ab");
  EXPECT_TRUE(matcher.matched());
}

TEST(StopMatcherTest, NulAndHighBytesAreOrdinary) {
  const std::vector<std::string> stops = {std::string("\0\0", 2), "终止"};
  StopMatcher matcher(stops);
  EXPECT_EQ(matcher.Push(std::string("a\0b", 3)), std::string("a\0b", 3));
  EXPECT_EQ(matcher.Push("终"), "");
  EXPECT_EQ(matcher.Push("点终止"), "终点");
  EXPECT_TRUE(matcher.matched());
}

TEST(StopMatcherTest, AnySplitShowsWhatTheWholeTextShowsAndHoldsNoMoreThanNeeded) {
  for (uint64_t seed = 0; seed < 4000; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Random random(seed);
    const int64_t alphabet = 1 + random.Below(3);
    std::vector<std::string> stops;
    for (int64_t n = random.Below(5); n > 0; --n) {
      stops.push_back("a" + RandomText(random, 7, alphabet));
    }
    const std::string text = RandomText(random, 60, alphabet + 1);
    const Expected expected = Reference(text, stops);
    StopMatcher matcher(stops);
    std::string shown;
    size_t begin = 0;
    while (begin < text.size() && !matcher.matched()) {
      const auto size = static_cast<size_t>(random.Below(6));
      shown += matcher.Push(std::string_view(text).substr(begin, size));
      begin = std::min(begin + size, text.size());
      if (matcher.matched()) break;
      const std::string_view so_far = std::string_view(text).substr(0, begin);
      ASSERT_EQ(shown.size(), begin - LongestPossible(so_far, stops));
    }
    shown += matcher.Flush();
    ASSERT_EQ(shown, expected.shown);
    ASSERT_EQ(matcher.matched(), expected.matched);
  }
}

TEST(StopMatcherTest, ManyLongStringsWithOneStartStayCheap) {
  std::vector<std::string> stops;
  for (char c = 'A'; c < 'A' + 16; ++c) stops.push_back(std::string(1023, 'a') + c);
  StopMatcher matcher(stops);
  // Each byte is taken once, not once for each string and start: 4 MB would otherwise take hours.
  size_t num_shown = 0;
  const std::string piece = std::string(1022, 'a') + "b";
  for (int i = 0; i < 4096; ++i) num_shown += matcher.Push(piece).size();
  EXPECT_EQ(num_shown, piece.size() * 4096);
  EXPECT_EQ(matcher.Push(std::string(2000, 'a') + "P"), std::string(977, 'a'));
  EXPECT_TRUE(matcher.matched());
}

}  // namespace
}  // namespace jevons

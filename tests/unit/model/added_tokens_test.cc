#include "model/added_tokens.h"

#include <algorithm>
#include <string>
#include <vector>

#include "base/random.h"
#include "gtest/gtest.h"

namespace jevons {
namespace {

struct Found {
  size_t begin;
  int32_t id;
  bool operator==(const Found&) const = default;
};

std::vector<Found> FindAll(const AddedTokenMatcher& matcher, std::string_view text,
                           const std::vector<size_t>& barriers = {}) {
  std::vector<Found> all;
  for (size_t from = 0;;) {
    const auto match = matcher.Find(text, from, barriers);
    if (!match) return all;
    all.push_back({match->begin, match->id});
    from = match->end;
  }
}

TEST(AddedTokenMatcher, TakesTheLeftmostMatchAndOfThoseTheLongest) {
  const AddedTokenMatcher matcher({{"<a>", 1}, {"<a>b", 2}, {"a>bcd", 3}, {"<", 4}, {"b", 5}});
  EXPECT_EQ(FindAll(matcher, "x<a>bcd<a><<b"),
            (std::vector<Found>{{1, 2}, {7, 1}, {10, 4}, {11, 4}, {12, 5}}));
  EXPECT_EQ(FindAll(matcher, ""), std::vector<Found>());
  EXPECT_EQ(FindAll(AddedTokenMatcher(), "abc"), std::vector<Found>());
}

TEST(AddedTokenMatcher, ABarrierForbidsOnlyMatchesThatSpanIt) {
  const AddedTokenMatcher matcher({{"<a>", 1}, {"<a>b", 2}, {"a>", 3}});
  EXPECT_EQ(FindAll(matcher, "<a>b", {0, 4}), (std::vector<Found>{{0, 2}}));
  EXPECT_EQ(FindAll(matcher, "<a>b", {3}), (std::vector<Found>{{0, 1}}));
  EXPECT_EQ(FindAll(matcher, "<a>b", {1}), (std::vector<Found>{{1, 3}}));
  EXPECT_EQ(FindAll(matcher, "<a>b", {1, 2}), std::vector<Found>());
  EXPECT_EQ(FindAll(matcher, "<a>b<a>b", {2, 4, 7}), (std::vector<Found>{{4, 1}}));
  EXPECT_EQ(FindAll(matcher, "<a>b", {4, 900}), (std::vector<Found>{{0, 2}}));
}

TEST(AddedTokenMatcher, EqualsTheSearchThroughAllTokensAtEachPlace) {
  constexpr uint64_t kSeed = 40;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  const auto word = [&](int64_t max_length) {
    std::string text;
    for (int64_t n = 1 + random.Below(max_length); n > 0; --n) {
      text += "ab\xC3"[random.Below(3)];
    }
    return text;
  };
  for (int round = 0; round < 500; ++round) {
    std::vector<std::string> contents;
    while (contents.size() < 6) {
      const std::string content = word(5);
      if (std::find(contents.begin(), contents.end(), content) == contents.end()) {
        contents.push_back(content);
      }
    }
    std::vector<AddedTokenMatcher::Entry> entries;
    for (size_t i = 0; i < contents.size(); ++i) {
      entries.push_back({contents[i], static_cast<int32_t>(i)});
    }
    const std::string text = word(30);
    std::vector<size_t> barriers;
    for (size_t i = 0; i <= text.size(); ++i) {
      if (random.Below(4) == 0) barriers.push_back(i);
    }
    std::vector<Found> expected;
    for (size_t i = 0; i < text.size();) {
      size_t length = 0;
      int32_t id = -1;
      for (size_t k = 0; k < contents.size(); ++k) {
        const size_t end = i + contents[k].size();
        const bool is_cut = std::any_of(barriers.begin(), barriers.end(),
                                        [&](size_t b) { return i < b && b < end; });
        if (is_cut || contents[k].size() <= length || text.compare(i, end - i, contents[k]) != 0) {
          continue;
        }
        length = contents[k].size();
        id = static_cast<int32_t>(k);
      }
      if (id >= 0) expected.push_back({i, id});
      i += std::max<size_t>(length, 1);
    }
    ASSERT_EQ(FindAll(AddedTokenMatcher(entries), text, barriers), expected) << "round " << round;
  }
}

TEST(AddedTokenMatcher, FindsATokenByItsWholeContent) {
  const AddedTokenMatcher matcher({{"<b>", 1}, {"<a>", 2}});
  EXPECT_EQ(matcher.FindContent("<a>"), 2);
  EXPECT_EQ(matcher.FindContent("<b>"), 1);
  EXPECT_EQ(matcher.FindContent("<a"), std::nullopt);
  EXPECT_EQ(matcher.FindContent("<c>"), std::nullopt);
}

}  // namespace
}  // namespace jevons

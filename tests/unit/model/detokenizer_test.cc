#include <algorithm>
#include <string>
#include <vector>

#include "base/random.h"
#include "gtest/gtest.h"
#include "model/tokenizer.h"

namespace jevons {
namespace {

const std::string kBad = "\xEF\xBF\xBD";

std::string EncodeCodePoint(uint32_t c) {
  const auto more = [&](int shift) { return static_cast<char>(0x80 | (c >> shift & 0x3F)); };
  if (c < 0x80) return {static_cast<char>(c)};
  if (c < 0x800) return {static_cast<char>(0xC0 | c >> 6), more(0)};
  if (c < 0x10000) return {static_cast<char>(0xE0 | c >> 12), more(6), more(0)};
  return {static_cast<char>(0xF0 | c >> 18), more(12), more(6), more(0)};
}

// All characters in the order of their bytes.
const std::vector<std::string>& AllCharacters() {
  static const auto* characters = [] {
    auto* list = new std::vector<std::string>;
    for (uint32_t c = 0; c < 0x110000; ++c) {
      if (c < 0xD800 || c > 0xDFFF) list->push_back(EncodeCodePoint(c));
    }
    std::sort(list->begin(), list->end());
    return list;
  }();
  return *characters;
}

// The definition of "maximal subpart" taken literally, by search in all characters.
std::string ReferenceDecode(const std::string& bytes) {
  const std::vector<std::string>& characters = AllCharacters();
  std::string out;
  for (size_t i = 0; i < bytes.size();) {
    size_t length = 1;
    bool is_whole = false;
    for (size_t n = 1; n <= 4 && i + n <= bytes.size(); ++n) {
      const std::string prefix = bytes.substr(i, n);
      const auto it = std::lower_bound(characters.begin(), characters.end(), prefix);
      if (it == characters.end() || it->compare(0, n, prefix) != 0) break;
      length = n;
      is_whole = it->size() == n;
      if (is_whole) break;
    }
    out += is_whole ? bytes.substr(i, length) : kBad;
    i += length;
  }
  return out;
}

// Bytes at which the rules change.
std::string RandomBytes(Random& random, int64_t length) {
  static const std::string kEdges(
      "aZ\x00\x7F\x80\x8F\x90\x9F\xA0\xBF\xC0\xC1\xC2\xDF\xE0\xE1\xEC\xED\xEE\xEF\xF0\xF1\xF3\xF4"
      "\xF5\xFF",
      26);
  std::string bytes;
  for (int64_t i = 0; i < length; ++i) {
    bytes += random.Below(4) == 0 ? static_cast<char>(random.Below(256))
                                  : kEdges[random.Below(static_cast<int64_t>(kEdges.size()))];
  }
  return bytes;
}

std::string DecodeInParts(const std::string& bytes, uint64_t cuts) {
  Detokenizer detokenizer;
  std::string out;
  size_t begin = 0;
  for (size_t i = 1; i <= bytes.size(); ++i) {
    if (i < bytes.size() && (cuts >> (i - 1) & 1) == 0) continue;
    const std::string shown = detokenizer.Push(std::string_view(bytes).substr(begin, i - begin));
    EXPECT_FALSE(FindInvalidUtf8(shown)) << "a part of a character came out";
    out += shown;
    begin = i;
  }
  return out + detokenizer.Flush();
}

TEST(Detokenizer, IllFormedBytesComeOutAsThePythonDecoderReplacesThem) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", ""},
      {"plain", "plain"},
      {"\xE4\xBD\xA0\xF0\x9F\xA5\x81", "\xE4\xBD\xA0\xF0\x9F\xA5\x81"},
      {"\xE4\xBD", kBad},
      {"\xF0\x9F\xA5", kBad},
      {"\xE4\xBD\x41", kBad + "A"},
      {"\xC0\xAF", kBad + kBad},
      {"\xE0\x80\xAF", kBad + kBad + kBad},
      {"\xED\xA0\x80", kBad + kBad + kBad},
      {"\xF4\x91\x92\x93", kBad + kBad + kBad + kBad},
      {"\xF1\x80\x80\xE1\x80\xC0\x62\x80\x63\x80\xBF\x64",
       kBad + kBad + kBad + "b" + kBad + "c" + kBad + kBad + "d"},
      {"\xFF", kBad},
  };
  for (const auto& [bytes, expected] : cases) {
    EXPECT_EQ(DecodeInParts(bytes, 0), expected);
    EXPECT_EQ(ReferenceDecode(bytes), expected);
  }
}

TEST(Detokenizer, EverySplitOfRandomBytesGivesTheSameText) {
  constexpr uint64_t kSeed = 20;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  for (int round = 0; round < 400; ++round) {
    const std::string bytes = RandomBytes(random, 1 + random.Below(9));
    const std::string expected = ReferenceDecode(bytes);
    for (uint64_t cuts = 0; cuts < uint64_t{1} << (bytes.size() - 1); ++cuts) {
      ASSERT_EQ(DecodeInParts(bytes, cuts), expected) << "round " << round << " cuts " << cuts;
    }
  }
}

TEST(Detokenizer, LongRandomBytesGiveTheSameTextHoweverTheyAreCut) {
  constexpr uint64_t kSeed = 21;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  for (int round = 0; round < 200; ++round) {
    const std::string bytes = RandomBytes(random, random.Below(60));
    const std::string expected = ReferenceDecode(bytes);
    ASSERT_EQ(DecodeInParts(bytes, 0), expected);
    ASSERT_EQ(DecodeInParts(bytes, ~uint64_t{0}), expected);
    ASSERT_EQ(DecodeInParts(bytes, random.Bits()), expected);
  }
}

TEST(Detokenizer, HoldsBackOnlyWhatCanStillBecomeACharacter) {
  Detokenizer detokenizer;
  EXPECT_EQ(detokenizer.Push("a\xF0"), "a");
  EXPECT_EQ(detokenizer.Push("\x9F"), "");
  EXPECT_EQ(detokenizer.Push(""), "");
  EXPECT_EQ(detokenizer.Push("\xA5\x81z\xC3"), "\xF0\x9F\xA5\x81z");
  EXPECT_EQ(detokenizer.Push("b"), kBad + "b");
  EXPECT_EQ(detokenizer.Flush(), "");
  EXPECT_EQ(detokenizer.Push("\xE4\xBD"), "");
  EXPECT_EQ(detokenizer.Flush(), kBad);
  EXPECT_EQ(detokenizer.Flush(), "");
}

TEST(FindInvalidUtf8, AcceptsEveryCharacterAndNothingElse) {
  for (const std::string& character : AllCharacters()) {
    ASSERT_FALSE(FindInvalidUtf8(character));
  }
  constexpr uint64_t kSeed = 22;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  for (int round = 0; round < 5000; ++round) {
    const std::string bytes = RandomBytes(random, random.Below(6));
    // Text that is well-formed is left as it is.
    ASSERT_EQ(!FindInvalidUtf8(bytes), ReferenceDecode(bytes) == bytes) << "round " << round;
  }
}

TEST(FindInvalidUtf8, NamesTheFirstByteOfTheIllFormedPart) {
  EXPECT_EQ(FindInvalidUtf8(""), std::nullopt);
  EXPECT_EQ(FindInvalidUtf8(std::string(100, 'a') + "\xE4\xBD"), 100u);
  EXPECT_EQ(FindInvalidUtf8("0123456789\xC3\xA4\xFF"), 12u);
  EXPECT_EQ(FindInvalidUtf8(std::string("\0\0", 2)), std::nullopt);
}

}  // namespace
}  // namespace jevons

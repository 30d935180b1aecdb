// The output of random sequences, split into tokens at random, against a search in the whole text.
#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "base/random.h"
#include "tests/unit/engine/output_run.h"

namespace jevons {
namespace {

// The sure way: the text of each stretch of one channel as a whole, and its stop strings by search.
Output Reference(const Tokenizer& tokenizer, const OutputOptions& options,
                 const std::vector<int32_t>& ids) {
  Output output;
  bool thinking = options.starts_in_thinking;
  std::string bytes;
  const auto close = [&] {
    Detokenizer detokenizer;
    std::string text = detokenizer.Push(bytes);
    text += detokenizer.Flush();
    bytes.clear();
    if (thinking) {
      output.thinking += text;
      return;
    }
    size_t first_end = std::string::npos;
    size_t shown = text.size();
    for (const std::string& stop : options.stop) {
      const size_t begin = text.find(stop);
      if (begin == std::string::npos) continue;
      const size_t end = begin + stop.size();
      if (end > first_end || (end == first_end && begin > shown)) continue;
      first_end = end;
      shown = begin;
      output.stopped = true;
    }
    output.answer += text.substr(0, shown);
  };
  for (const int32_t id : ids) {
    const bool ends = std::count(options.end_ids.begin(), options.end_ids.end(), id) > 0;
    const bool is_tag = id == kThinkStart || id == kThinkEnd;
    const bool opens = id == kThinkStart;
    if (ends) break;
    if (is_tag && opens != thinking) {
      close();
      if (output.stopped) return output;
      thinking = opens;
    }
    const AddedToken* added = tokenizer.FindAdded(id);
    if (!is_tag && (added == nullptr || !added->special)) bytes += tokenizer.TokenBytes(id);
  }
  close();
  return output;
}

std::string RandomBytes(Random& random) {
  static const std::vector<std::string> kParts = {
      "a",    "b", "ab",   "ba",   "aab",  "é", "终",
      "终止", "😀", "\xe7", "\xbb", "\xff", " ", std::string(1, '\0')};
  std::string text;
  for (int64_t n = random.Below(60); n > 0; --n) {
    text += kParts[static_cast<size_t>(random.Below(static_cast<int64_t>(kParts.size())))];
  }
  return text;
}

void AppendSplit(Random& random, FakeTokenizer& tokenizer, std::string_view text,
                 std::vector<int32_t>& ids) {
  while (!text.empty()) {
    const std::string_view piece = text.substr(0, static_cast<size_t>(1 + random.Below(5)));
    ids.push_back(tokenizer.TokenOf(piece));
    if (random.Below(10) == 0) ids.push_back(kSpecial);
    text.remove_prefix(piece.size());
  }
}

TEST(OutputProcessorTest, AnySplitIntoTokensShowsWhatTheWholeTextShows) {
  static const std::vector<std::string> kStops = {"ab",
                                                  "aab",
                                                  "abba",
                                                  "终止",
                                                  "é ",
                                                  "bb😀",
                                                  std::string("\0a", 2),
                                                  "\xef\xbf\xbd"
                                                  "a"};
  FakeTokenizer tokenizer;
  int num_stopped = 0;
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Random random(seed);
    OutputOptions options = Options();
    options.starts_in_thinking = random.Below(2) == 0;
    for (int64_t n = random.Below(4); n > 0; --n) {
      options.stop.push_back(kStops[static_cast<size_t>(random.Below(kStops.size()))]);
    }
    std::vector<std::string> stretches;
    for (int64_t n = 1 + random.Below(3); n > 0; --n) stretches.push_back(RandomBytes(random));
    const bool ends = random.Below(2) == 0;
    for (int split = 0; split < 3; ++split) {
      std::vector<int32_t> ids;
      for (const std::string& stretch : stretches) {
        AppendSplit(random, tokenizer, stretch, ids);
        if (&stretch == &stretches.back()) break;
        const bool opens =
            (&stretch - stretches.data()) % 2 == (options.starts_in_thinking ? 1 : 0);
        ids.push_back(opens ? kThinkStart : kThinkEnd);
      }
      if (ends) ids.push_back(kEnd);
      const Output expected = Reference(tokenizer, options, ids);
      const Output output = RunAll(tokenizer, options, ids);
      ASSERT_EQ(output.thinking, expected.thinking);
      ASSERT_EQ(output.answer, expected.answer);
      num_stopped += expected.stopped;
      if (ends || expected.stopped) continue;
      ASSERT_FALSE(output.stopped);
      ASSERT_EQ(output.token_ids, ids);
    }
  }
  EXPECT_GT(num_stopped, 1000);
}

}  // namespace
}  // namespace jevons

#include "model/bpe.h"

#include <map>
#include <string>
#include <vector>

#include "base/random.h"
#include "gtest/gtest.h"

namespace jevons {
namespace {

Bpe::ByteIds IdentityBytes() {
  Bpe::ByteIds ids;
  for (int i = 0; i < 256; ++i) ids[static_cast<size_t>(i)] = i;
  return ids;
}

// Looks for the best pair again after each merge.
std::vector<int32_t> ReferenceEncode(const std::string& piece,
                                     const std::vector<Bpe::Merge>& merges) {
  std::map<std::pair<int32_t, int32_t>, std::pair<size_t, int32_t>> ranks;
  for (size_t i = 0; i < merges.size(); ++i) {
    ranks[{merges[i].left, merges[i].right}] = {i, merges[i].result};
  }
  std::vector<int32_t> ids;
  for (const char c : piece) ids.push_back(static_cast<uint8_t>(c));
  while (true) {
    size_t best_rank = merges.size();
    size_t best = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto it = ranks.find({ids[i], ids[i + 1]});
      if (it == ranks.end() || it->second.first >= best_rank) continue;
      best_rank = it->second.first;
      best = i;
    }
    if (best_rank == merges.size()) return ids;
    ids[best] = ranks[{ids[best], ids[best + 1]}].second;
    ids.erase(ids.begin() + static_cast<ptrdiff_t>(best) + 1);
  }
}

TEST(Bpe, ShortAndLongPiecesEqualTheRepeatedSearch) {
  constexpr uint64_t kSeed = 30;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  for (int round = 0; round < 60; ++round) {
    std::vector<Bpe::Merge> merges;
    std::vector<int32_t> symbols = {'a', 'b', 'c'};
    const int64_t num_merges = random.Below(40);
    for (int32_t i = 0; i < num_merges; ++i) {
      const auto pick = [&] { return symbols[random.Below(static_cast<int64_t>(symbols.size()))]; };
      merges.push_back({pick(), pick(), 256 + i});
      symbols.push_back(256 + i);
    }
    const Bpe bpe(IdentityBytes(), merges);
    for (const int64_t length : {0, 1, 2, 3, 7, 20, 47, 48, 49, 50, 200, 700}) {
      std::string piece;
      for (int64_t i = 0; i < length; ++i) piece += static_cast<char>('a' + random.Below(3));
      std::vector<int32_t> ids = {-7};
      bpe.Encode(piece, ids);
      std::vector<int32_t> expected = ReferenceEncode(piece, merges);
      expected.insert(expected.begin(), -7);
      ASSERT_EQ(ids, expected) << "round " << round << " length " << length;
    }
  }
}

TEST(Bpe, OfSeveralMergesOfOnePairTheLastCounts) {
  const std::vector<Bpe::Merge> merges = {{'a', 'b', 256}, {'b', 'c', 257}, {'a', 'b', 258}};
  std::vector<int32_t> ids;
  Bpe(IdentityBytes(), merges).Encode("abcab", ids);
  EXPECT_EQ(ids, (std::vector<int32_t>{'a', 257, 258}));
}

TEST(Bpe, AWholePieceNeedsNoMerges) {
  Bpe bpe(IdentityBytes(), std::vector<Bpe::Merge>{{'a', 'b', 256}});
  bpe.AddWholePiece("abc", 300);
  std::vector<int32_t> ids;
  bpe.Encode("abc", ids);
  bpe.Encode("abcd", ids);
  EXPECT_EQ(ids, (std::vector<int32_t>{300, 256, 'c', 'd'}));
}

// A quadratic way would not come to an end within the test's time limit.
TEST(Bpe, AMillionEqualBytesAreEncoded) {
  std::vector<Bpe::Merge> merges = {{'a', 'a', 256}};
  for (int32_t i = 256; i < 260; ++i) merges.push_back({i, i, i + 1});
  std::vector<int32_t> ids;
  Bpe(IdentityBytes(), merges).Encode(std::string(1 << 20, 'a'), ids);
  EXPECT_EQ(ids, std::vector<int32_t>((1 << 20) / 32, 260));
}

}  // namespace
}  // namespace jevons

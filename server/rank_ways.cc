#include "server/rank_ways.h"

#include <algorithm>
#include <set>

namespace jevons {
namespace {

using Pairs = std::set<std::pair<int32_t, int32_t>>;

// For a message alone: TCP has sent it four times by then.
constexpr absl::Duration kMessageTime = absl::Seconds(3);
// For one behind rows: half a gigabyte over a link of 1 Gb/s.
constexpr absl::Duration kRowsTime = absl::Seconds(10);

// The rank but 0 that is in the most pairs, of equals the higher number.
int32_t MostOften(const std::map<int32_t, int>& counts) {
  int32_t best = 0;
  int most = 0;
  for (const auto& [rank, count] : counts) {
    if (rank == 0 || count < most) continue;
    best = rank;
    most = count;
  }
  return best;
}

std::vector<int32_t> Cover(Pairs pairs) {
  std::vector<int32_t> out;
  while (!pairs.empty()) {
    std::map<int32_t, int> counts;
    for (const auto& [a, b] : pairs) {
      ++counts[a];
      ++counts[b];
    }
    const int32_t rank = MostOften(counts);
    out.push_back(rank);
    std::erase_if(pairs,
                  [&](const auto& pair) { return pair.first == rank || pair.second == rank; });
  }
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace

std::vector<int32_t> RanksToLose(std::span<const Unreached> accusations) {
  Pairs said;
  for (const Unreached& one : accusations) {
    if (one.by != one.rank) said.emplace(one.by, one.rank);
  }
  Pairs mutual;
  for (const auto& [by, rank] : said) {
    if (by < rank && said.contains({rank, by})) mutual.emplace(by, rank);
  }
  if (!mutual.empty()) return Cover(std::move(mutual));
  std::map<int32_t, int> accused;
  for (const auto& [by, rank] : said) ++accused[rank];
  if (const int32_t rank = MostOften(accused); rank > 0) return {rank};
  if (said.size() == 1) return {said.begin()->first};
  return {};
}

std::vector<Unreached> RankWays::Look(std::span<const Rank> ranks, SteadyTime now,
                                      absl::Duration patience) {
  std::map<int32_t, ExchangePlace> places;
  for (const Rank& rank : ranks) places.emplace(rank.rank, rank.place);
  std::map<std::pair<int32_t, int32_t>, Wait> waits;
  std::vector<Unreached> out;
  for (const auto& [rank, place] : places) {
    const auto other = places.find(place.waits_for);
    if (other == places.end() || other->second.position < place.position) continue;
    const std::pair key(rank, place.waits_for);
    const auto before = waits_.find(key);
    const bool same = before != waits_.end() && before->second.position == place.position;
    const SteadyTime since = same ? before->second.since : now;
    waits.emplace(key, Wait{.position = place.position, .since = since});
    const absl::Duration limit = std::max(patience, place.behind_rows ? kRowsTime : kMessageTime);
    if (absl::FromChrono(now - since) >= limit) {
      out.push_back({.by = rank, .rank = place.waits_for});
    }
  }
  waits_ = std::move(waits);
  return out;
}

}  // namespace jevons

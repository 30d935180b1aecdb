// The parts of PlanPlacement that start from nothing.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace jevons {

// Replicas of each expert, at least one, together at most num_slots: each further slot goes to the
// expert with the highest load per replica that has fewer than max_replicas.
std::vector<int32_t> ReplicaCounts(std::span<const double> load, int32_t num_slots,
                                   int32_t max_replicas);

// Something to be put in a bin; items with the same id are the replicas of one thing.
struct PackItem {
  int32_t id = 0;
  double load = 0;
};

// The bin of each item: heaviest first to the bin with the least load that has room (`capacity`
// items, `max_same` of one id). Where all that have room hold the id already, one of their places is
// made free for it by moving another item there. There must be places for all: items at most
// num_bins * capacity, of one id at most num_bins * max_same.
std::vector<int32_t> Pack(std::span<const PackItem> items, int32_t num_bins, int32_t capacity,
                          int32_t max_same);

// The assignment of the n rows to the n columns with the highest sum of value [n, n]: the column of
// each row.
std::vector<int32_t> BestAssignment(std::span<const int64_t> value, int32_t n);

}  // namespace jevons

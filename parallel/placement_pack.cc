#include "parallel/placement_pack.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "base/check.h"

namespace jevons {
namespace {

struct Bin {
  double load = 0;
  std::vector<int32_t> items;
};

class Packer {
 public:
  Packer(std::span<const PackItem> items, int32_t num_bins, int32_t capacity, int32_t max_same)
      : items_(items), capacity_(capacity), max_same_(max_same), bins_(num_bins) {}

  void Put(int32_t item) {
    const int32_t id = items_[item].id;
    int32_t best = -1;
    int32_t room = -1;
    for (int32_t b = 0; b < num_bins(); ++b) {
      if (IsFull(bins_[b])) continue;
      room = b;
      if (CountOf(bins_[b], id) >= max_same_) continue;
      if (best < 0 || bins_[b].load < bins_[best].load) best = b;
    }
    CHECK(room >= 0);
    if (best < 0) best = MakeRoom(id, room);
    Add(best, item);
  }

  std::vector<int32_t> BinOfItem() const {
    std::vector<int32_t> out(items_.size(), -1);
    for (int32_t b = 0; b < num_bins(); ++b) {
      for (const int32_t item : bins_[b].items) out[item] = b;
    }
    return out;
  }

 private:
  int32_t num_bins() const { return static_cast<int32_t>(bins_.size()); }
  bool IsFull(const Bin& bin) const { return static_cast<int32_t>(bin.items.size()) >= capacity_; }
  int32_t CountOf(const Bin& bin, int32_t id) const {
    return static_cast<int32_t>(std::count_if(bin.items.begin(), bin.items.end(),
                                              [&](int32_t item) { return items_[item].id == id; }));
  }
  void Add(int32_t b, int32_t item) {
    bins_[b].items.push_back(item);
    bins_[b].load += items_[item].load;
  }

  // A full bin that may take the id gives an item to `room`. There is one: it holds more items than
  // `room`, so it holds more of some id than `room` does.
  int32_t MakeRoom(int32_t id, int32_t room) {
    for (int32_t b = 0; b < num_bins(); ++b) {
      Bin& bin = bins_[b];
      if (CountOf(bin, id) >= max_same_) continue;
      for (size_t i = bin.items.size(); i-- > 0;) {
        const int32_t item = bin.items[i];
        if (CountOf(bins_[room], items_[item].id) >= max_same_) continue;
        bin.items.erase(bin.items.begin() + static_cast<int64_t>(i));
        bin.load -= items_[item].load;
        Add(room, item);
        return b;
      }
    }
    CHECK(false);
  }

  std::span<const PackItem> items_;
  int32_t capacity_;
  int32_t max_same_;
  std::vector<Bin> bins_;
};

}  // namespace

std::vector<int32_t> ReplicaCounts(std::span<const double> load, int32_t num_slots,
                                   int32_t max_replicas) {
  const int32_t num_experts = static_cast<int32_t>(load.size());
  std::vector<int32_t> counts(load.size(), 1);
  for (int32_t slot = num_experts; slot < num_slots; ++slot) {
    int32_t best = -1;
    for (int32_t e = 0; e < num_experts; ++e) {
      if (counts[e] >= max_replicas) continue;
      if (best < 0 || load[e] / counts[e] > load[best] / counts[best]) best = e;
    }
    if (best < 0) break;
    ++counts[best];
  }
  return counts;
}

std::vector<int32_t> Pack(std::span<const PackItem> items, int32_t num_bins, int32_t capacity,
                          int32_t max_same) {
  std::vector<int32_t> order(items.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return items[a].load > items[b].load; });
  Packer packer(items, num_bins, capacity, max_same);
  for (const int32_t item : order) packer.Put(item);
  return packer.BinOfItem();
}

// The Hungarian method with potentials: rows enter one by one, each by a shortest augmenting path.
std::vector<int32_t> BestAssignment(std::span<const int64_t> value, int32_t n) {
  constexpr int64_t kFar = std::numeric_limits<int64_t>::max();
  const size_t size = static_cast<size_t>(n) + 1;
  // Index 0 stands for the row that enters; rows and columns count from 1.
  std::vector<int64_t> row_price(size, 0), column_price(size, 0);
  std::vector<int32_t> row_of(size, 0);
  for (int32_t row = 1; row <= n; ++row) {
    std::vector<int64_t> distance(size, kFar);
    std::vector<int32_t> previous(size, 0);
    std::vector<bool> done(size, false);
    int32_t column = 0;
    row_of[0] = row;
    while (row_of[column] != 0) {
      done[column] = true;
      const int32_t from = row_of[column];
      int32_t next = -1;
      for (int32_t c = 1; c <= n; ++c) {
        if (done[c]) continue;
        const int64_t cost = -value[int64_t{from - 1} * n + c - 1];
        const int64_t through = cost - row_price[from] - column_price[c];
        if (through < distance[c]) {
          distance[c] = through;
          previous[c] = column;
        }
        if (next < 0 || distance[c] < distance[next]) next = c;
      }
      const int64_t step = distance[next];
      for (int32_t c = 0; c <= n; ++c) {
        if (done[c]) {
          row_price[row_of[c]] += step;
          column_price[c] -= step;
        } else if (distance[c] != kFar) {
          distance[c] -= step;
        }
      }
      column = next;
    }
    for (; column != 0; column = previous[column]) row_of[column] = row_of[previous[column]];
  }
  std::vector<int32_t> column_of(n, 0);
  for (int32_t c = 1; c <= n; ++c) column_of[row_of[c] - 1] = c - 1;
  return column_of;
}

}  // namespace jevons

#include "parallel/placement.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "parallel/placement_pack.h"
#include "parallel/placement_search.h"

namespace jevons {
namespace {

struct Candidate {
  std::vector<int32_t> slot_expert;
  double busiest = 0;
};

absl::Status CheckShape(const PlacementShape& shape, int32_t num_experts) {
  if (shape.num_nodes < 1 || shape.ranks_per_node < 1 || shape.slots_per_rank < 1 ||
      shape.num_groups < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "num_nodes, ranks_per_node, slots_per_rank and num_groups must be at least 1, got ",
        shape.num_nodes, ", ", shape.ranks_per_node, ", ", shape.slots_per_rank, " and ",
        shape.num_groups));
  }
  constexpr int64_t kMaxSlots = 1 << 20;
  const int64_t num_ranks = int64_t{shape.num_nodes} * shape.ranks_per_node;
  if (num_ranks > kMaxSlots || num_ranks * shape.slots_per_rank > kMaxSlots) {
    return absl::InvalidArgumentError(
        absl::StrCat("the nodes may have ", kMaxSlots, " slots together, got ", shape.num_nodes,
                     " * ", shape.ranks_per_node, " * ", shape.slots_per_rank));
  }
  if (num_experts < 1 || num_ranks * shape.slots_per_rank < num_experts) {
    return absl::InvalidArgumentError(absl::StrCat("num_experts must be between 1 and the ",
                                                   num_ranks * shape.slots_per_rank, " slots, got ",
                                                   num_experts));
  }
  if (shape.num_groups > 1 &&
      (num_experts % shape.num_groups != 0 || shape.num_groups % shape.num_nodes != 0)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "num_groups must divide num_experts (", num_experts, ") and be a multiple of num_nodes (",
        shape.num_nodes, "), got ", shape.num_groups));
  }
  return absl::OkStatus();
}

absl::Status CheckLoad(std::span<const double> load) {
  for (size_t e = 0; e < load.size(); ++e) {
    if (std::isfinite(load[e]) && load[e] >= 0) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("loads must be finite and at least 0, got ", load[e], " for expert ", e));
  }
  const double sum = std::accumulate(load.begin(), load.end(), 0.0);
  if (std::isfinite(sum)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the sum of loads must be finite, got ", sum));
}

absl::Status CheckPresent(const PlacementArgs& args) {
  const PlacementShape& shape = args.shape;
  const ExpertMap& map = *args.present;
  const int64_t num_experts = static_cast<int64_t>(args.load.size());
  if (map.num_experts() == num_experts && map.num_ranks() == shape.num_ranks() &&
      map.slots_per_rank() == shape.slots_per_rank) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("the present map must have ", num_experts, " experts and ", shape.num_ranks(),
                   " ranks of ", shape.slots_per_rank, " slots, got ", map.num_experts(), ", ",
                   map.num_ranks(), " and ", map.slots_per_rank()));
}

// What each node holds, and which node an expert may not leave.
struct NodePlan {
  std::vector<std::vector<PackItem>> replicas_of_node;
  std::vector<int32_t> node_of_expert;  // empty: any
};

void AddReplicas(int32_t expert, double load, int32_t count, std::vector<PackItem>& out) {
  out.insert(out.end(), count, PackItem{.id = expert, .load = load / count});
}

// Groups to nodes, then replicas within each.
NodePlan PlanNodesByGroup(std::span<const double> load, const PlacementShape& shape) {
  const int32_t group_size = static_cast<int32_t>(load.size()) / shape.num_groups;
  std::vector<PackItem> groups;
  for (int32_t g = 0; g < shape.num_groups; ++g) {
    const auto experts = load.subspan(int64_t{g} * group_size, group_size);
    groups.push_back({.id = g, .load = std::accumulate(experts.begin(), experts.end(), 0.0)});
  }
  const std::vector<int32_t> node_of_group =
      Pack(groups, shape.num_nodes, shape.num_groups / shape.num_nodes, 1);
  NodePlan out;
  out.replicas_of_node.resize(shape.num_nodes);
  for (size_t e = 0; e < load.size(); ++e) {
    out.node_of_expert.push_back(node_of_group[static_cast<int32_t>(e) / group_size]);
  }
  for (int32_t node = 0; node < shape.num_nodes; ++node) {
    std::vector<int32_t> experts;
    std::vector<double> loads;
    for (size_t e = 0; e < load.size(); ++e) {
      if (out.node_of_expert[e] != node) continue;
      experts.push_back(static_cast<int32_t>(e));
      loads.push_back(load[e]);
    }
    const std::vector<int32_t> counts =
        ReplicaCounts(loads, shape.ranks_per_node * shape.slots_per_rank, shape.ranks_per_node);
    for (size_t i = 0; i < experts.size(); ++i) {
      AddReplicas(experts[i], loads[i], counts[i], out.replicas_of_node[node]);
    }
  }
  return out;
}

// Replicas, then these to nodes.
NodePlan PlanNodes(std::span<const double> load, const PlacementShape& shape) {
  const int32_t slots_per_node = shape.ranks_per_node * shape.slots_per_rank;
  const std::vector<int32_t> counts =
      ReplicaCounts(load, shape.num_nodes * slots_per_node, shape.num_ranks());
  std::vector<PackItem> replicas;
  for (size_t e = 0; e < load.size(); ++e) {
    AddReplicas(static_cast<int32_t>(e), load[e], counts[e], replicas);
  }
  const std::vector<int32_t> node_of =
      Pack(replicas, shape.num_nodes, slots_per_node, shape.ranks_per_node);
  NodePlan out;
  out.replicas_of_node.resize(shape.num_nodes);
  for (size_t i = 0; i < replicas.size(); ++i) {
    out.replicas_of_node[node_of[i]].push_back(replicas[i]);
  }
  return out;
}

// Steps that a search may take: far more than it needs, so that its time has a bound.
int32_t MaxSteps(const PlacementShape& shape) {
  return 4 * shape.num_ranks() * shape.slots_per_rank;
}

Candidate PlanFromNothing(std::span<const double> load, const PlacementShape& shape) {
  NodePlan nodes = shape.num_groups > 1 ? PlanNodesByGroup(load, shape) : PlanNodes(load, shape);
  std::vector<int32_t> slot_expert(
      static_cast<size_t>(shape.num_ranks()) * static_cast<size_t>(shape.slots_per_rank), -1);
  std::vector<int32_t> used(static_cast<size_t>(shape.num_ranks()), 0);
  for (int32_t node = 0; node < shape.num_nodes; ++node) {
    const std::vector<PackItem>& replicas = nodes.replicas_of_node[node];
    const std::vector<int32_t> rank_of =
        Pack(replicas, shape.ranks_per_node, shape.slots_per_rank, 1);
    for (size_t i = 0; i < replicas.size(); ++i) {
      const int32_t rank = node * shape.ranks_per_node + rank_of[i];
      slot_expert[int64_t{rank} * shape.slots_per_rank + used[rank]++] = replicas[i].id;
    }
  }
  PlacementSearch search(load, shape, std::move(slot_expert), std::move(nodes.node_of_expert));
  int32_t num_steps = 0;
  while (num_steps < MaxSteps(shape) && search.Step()) ++num_steps;
  return {.slot_expert = search.slot_expert(), .busiest = search.busiest()};
}

// A present placement and what is asked of one that follows it.
class Successor {
 public:
  explicit Successor(const PlacementArgs& args)
      : args_(args),
        shape_(args.shape),
        map_(*args.present),
        mean_(std::accumulate(args.load.begin(), args.load.end(), 0.0) / shape_.num_ranks()),
        holds_(args.load.size() * static_cast<size_t>(shape_.num_ranks()), false) {
    for (int32_t slot = 0; slot < map_.num_slots(); ++slot) {
      if (map_.expert_of(slot) >= 0) holds_[At(map_.rank_of(slot), map_.expert_of(slot))] = true;
    }
  }

  // Keeps the candidate where it is better than what was kept.
  void Offer(std::vector<int32_t> slot_expert, double busiest) {
    constexpr double kNoise = 1e-9;
    int32_t copies = 0;
    for (int32_t slot = 0; slot < map_.num_slots(); ++slot) {
      copies += slot_expert[slot] >= 0 && !holds_[At(map_.rank_of(slot), slot_expert[slot])];
    }
    const double price = (mean_ > 0 ? busiest / mean_ : 1) + args_.copy_price * copies;
    const double less = best_.has_value() ? price_ - price : 1;
    if (less < -kNoise || (less <= kNoise && copies >= copies_)) return;
    best_ = std::move(slot_expert);
    price_ = price;
    copies_ = copies;
  }

  // Offers the present placement and each step from it, if its groups are whole.
  void OfferSteps() {
    std::vector<int32_t> node_of_expert;
    if (shape_.num_groups > 1 && !FindNodes(node_of_expert)) return;
    std::vector<int32_t> slot_expert;
    for (int32_t slot = 0; slot < map_.num_slots(); ++slot) {
      slot_expert.push_back(map_.expert_of(slot));
    }
    PlacementSearch search(args_.load, shape_, std::move(slot_expert), std::move(node_of_expert));
    Offer(search.slot_expert(), search.busiest());
    for (int32_t step = 0; step < MaxSteps(shape_) && search.Step(); ++step) {
      Offer(search.slot_expert(), search.busiest());
    }
  }

  // Offers the candidate with its nodes and ranks numbered so that the fewest experts are copied.
  void OfferRenumbered(const Candidate& candidate) {
    const int32_t n = shape_.ranks_per_node;
    const auto node_pairs = static_cast<size_t>(shape_.num_nodes) * shape_.num_nodes;
    std::vector<int64_t> kept(node_pairs, 0);
    std::vector<std::vector<int32_t>> ranks(node_pairs);
    for (size_t pair = 0; pair < node_pairs; ++pair) {
      const int32_t from = static_cast<int32_t>(pair) / shape_.num_nodes * n;
      const int32_t to = static_cast<int32_t>(pair) % shape_.num_nodes * n;
      std::vector<int64_t> overlap(static_cast<size_t>(n) * n, 0);
      for (int32_t i = 0; i < n * n; ++i) {
        overlap[i] = Overlap(candidate, from + i / n, to + i % n);
      }
      ranks[pair] = BestAssignment(overlap, n);
      for (int32_t i = 0; i < n; ++i) kept[pair] += overlap[int64_t{i} * n + ranks[pair][i]];
    }
    const std::vector<int32_t> nodes = BestAssignment(kept, shape_.num_nodes);
    std::vector<int32_t> slot_expert(candidate.slot_expert.size(), -1);
    for (int32_t rank = 0; rank < shape_.num_ranks(); ++rank) {
      const int32_t node = rank / n;
      const int32_t local = ranks[node * shape_.num_nodes + nodes[node]][rank % n];
      Fill(candidate, rank, nodes[node] * n + local, slot_expert);
    }
    Offer(std::move(slot_expert), candidate.busiest);
  }

  // Experts that stay on their rank keep their slots.
  std::vector<int32_t> TakeBest() {
    Candidate best{.slot_expert = *std::move(best_)};
    std::vector<int32_t> out(best.slot_expert.size(), -1);
    for (int32_t rank = 0; rank < shape_.num_ranks(); ++rank) Fill(best, rank, rank, out);
    return out;
  }

 private:
  size_t At(int32_t rank, int32_t expert) const {
    return static_cast<size_t>(rank) * args_.load.size() + static_cast<size_t>(expert);
  }

  std::span<const int32_t> ExpertsOf(const Candidate& candidate, int32_t rank) const {
    return std::span(candidate.slot_expert)
        .subspan(int64_t{rank} * shape_.slots_per_rank, shape_.slots_per_rank);
  }

  bool FindNodes(std::vector<int32_t>& node_of_expert) const {
    const int32_t group_size = map_.num_experts() / shape_.num_groups;
    for (int32_t e = 0; e < map_.num_experts(); ++e) {
      const int32_t first = map_.slots_of(e / group_size * group_size)[0];
      const int32_t node = map_.rank_of(first) / shape_.ranks_per_node;
      for (const int32_t slot : map_.slots_of(e)) {
        if (map_.rank_of(slot) / shape_.ranks_per_node != node) return false;
      }
      node_of_expert.push_back(node);
    }
    return true;
  }

  int64_t Overlap(const Candidate& candidate, int32_t rank, int32_t present_rank) const {
    int64_t out = 0;
    for (const int32_t expert : ExpertsOf(candidate, rank)) {
      out += expert >= 0 && holds_[At(present_rank, expert)];
    }
    return out;
  }

  // Puts the candidate's rank in place of the present one.
  void Fill(const Candidate& candidate, int32_t rank, int32_t present_rank,
            std::vector<int32_t>& slot_expert) const {
    const std::span<const int32_t> experts = ExpertsOf(candidate, rank);
    const int32_t first = present_rank * shape_.slots_per_rank;
    std::vector<int32_t> incoming;
    for (const int32_t expert : experts) {
      if (expert >= 0 && !holds_[At(present_rank, expert)]) incoming.push_back(expert);
    }
    size_t next = 0;
    for (int32_t slot = first; slot < first + shape_.slots_per_rank; ++slot) {
      const int32_t stays = map_.expert_of(slot);
      if (stays >= 0 && std::find(experts.begin(), experts.end(), stays) != experts.end()) {
        slot_expert[slot] = stays;
      } else if (next < incoming.size()) {
        slot_expert[slot] = incoming[next++];
      }
    }
  }

  const PlacementArgs& args_;
  const PlacementShape& shape_;
  const ExpertMap& map_;
  double mean_;
  std::vector<bool> holds_;  // [num_ranks, num_experts], now
  std::optional<std::vector<int32_t>> best_;
  double price_ = 0;
  int32_t copies_ = 0;
};

}  // namespace

std::vector<double> RankLoads(const ExpertMap& map, std::span<const double> load) {
  std::vector<double> out(static_cast<size_t>(map.num_ranks()), 0);
  for (int32_t slot = 0; slot < map.num_slots(); ++slot) {
    const int32_t expert = map.expert_of(slot);
    if (expert < 0) continue;
    out[map.rank_of(slot)] += load[expert] / static_cast<double>(map.slots_of(expert).size());
  }
  return out;
}

RankBalance MeanAndBusiest(const ExpertMap& map, std::span<const double> load) {
  const std::vector<double> loads = RankLoads(map, load);
  RankBalance out;
  for (int32_t rank = 0; rank < map.num_ranks(); ++rank) {
    out.mean += loads[rank] / map.num_ranks();
    if (loads[rank] > loads[out.busiest_rank]) out.busiest_rank = rank;
  }
  out.busiest = loads[out.busiest_rank];
  return out;
}

absl::StatusOr<ExpertMap> PlanPlacement(const PlacementArgs& args) {
  const int32_t num_experts = static_cast<int32_t>(args.load.size());
  RETURN_IF_ERROR(CheckShape(args.shape, num_experts));
  RETURN_IF_ERROR(CheckLoad(args.load));
  if (!(args.copy_price >= 0 && args.copy_price <= kMaxCopyPrice)) {
    return absl::InvalidArgumentError(absl::StrCat("copy_price must be between 0 and ",
                                                   kMaxCopyPrice, ", got ", args.copy_price));
  }
  if (args.present != nullptr) RETURN_IF_ERROR(CheckPresent(args));
  const Candidate fresh = PlanFromNothing(args.load, args.shape);
  if (args.present == nullptr) {
    return ExpertMap::Create(num_experts, args.shape.num_ranks(), fresh.slot_expert);
  }
  Successor successor(args);
  successor.OfferSteps();
  successor.OfferRenumbered(fresh);
  return ExpertMap::Create(num_experts, args.shape.num_ranks(), successor.TakeBest());
}

}  // namespace jevons

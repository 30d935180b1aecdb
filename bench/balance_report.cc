// `make balance-report`: how evenly ranks are loaded before and after experts are placed by measured
// load, as a table and a picture. The load is synthetic; docs/expert-parallel.md says how it is made.
//
//   balance_report PICTURE.svg
#include <algorithm>
#include <cstdio>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "bench/heat_map.h"
#include "bench/skewed_load.h"
#include "parallel/expert_load.h"
#include "parallel/move_plan.h"
#include "parallel/placement.h"

namespace jevons {
namespace {

// DeepSeek-V3 on four machines of eight.
constexpr int32_t kLayers = 58;
constexpr int32_t kExperts = 256;
constexpr int32_t kTopK = 8;
constexpr int32_t kGroups = 8;
constexpr int32_t kNodes = 4;
constexpr int32_t kRanksPerNode = 8;
constexpr int32_t kRanks = kNodes * kRanksPerNode;
constexpr int32_t kTokensPerRank = 512;  // of a phase
constexpr int32_t kTokens = kRanks * kTokensPerRank;
constexpr double kGoal = 1.15;

// 42 MiB in FP8 over a link of 50 GB/s, one after the other, with serving at a halt: more than it
// costs. The experts of all layers are taken to be 40 % of the time.
constexpr MoveCosts kFixedCosts = {.bytes_per_expert = int64_t{3} * 7168 * 2048,
                                   .seconds_per_byte = 1 / 50e9,
                                   .expert_seconds_per_second = 0.4 / kLayers,
                                   .horizon_seconds = 600};

// Choices of one phase, [kRanks, kTokensPerRank, kTopK] of each layer.
using Phase = std::vector<std::vector<int32_t>>;
using Maps = std::vector<ExpertMap>;

class Traffic {
 public:
  // Exponents from 0.8 in the first layer to 1.2 in the last.
  Traffic() {
    for (uint64_t layer = 0; layer < kLayers; ++layer) {
      const double s = 0.8 + 0.4 * static_cast<double>(layer) / (kLayers - 1);
      weight_.push_back(PowerLawLoad(kExperts, s, layer));
    }
  }

  // In three layers of four `pairs` pairs of experts change places.
  void Drift(int32_t pairs) {
    Random random(77);
    for (size_t layer = 0; layer < weight_.size(); ++layer) {
      for (int32_t i = 0; layer % 4 != 0 && i < pairs; ++i) {
        std::swap(weight_[layer][random.Below(kExperts)], weight_[layer][random.Below(kExperts)]);
      }
    }
  }

  Phase Draw() {
    Phase out(kLayers, std::vector<int32_t>(int64_t{kTokens} * kTopK));
    for (std::vector<int32_t>& topk_idx : out) {
      ChoiceSampler sampler(weight_[&topk_idx - out.data()], ++seed_);
      for (int64_t token = 0; token < kTokens; ++token) {
        sampler.Draw(std::span(topk_idx).subspan(token * kTopK, kTopK));
      }
    }
    return out;
  }

 private:
  std::vector<std::vector<double>> weight_;
  uint64_t seed_ = 1000;
};

absl::Status Measure(const Phase& phase, ExpertLoad& load) {
  std::vector<int64_t> counts(int64_t{kLayers} * kExperts, 0);
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    CountExperts(phase[layer], std::span(counts).subspan(layer * kExperts, kExperts));
  }
  return load.Add(counts, kTokens);
}

// Choices that arrive at each rank, over the mean.
std::vector<std::vector<double>> Arrivals(const Maps& maps, const Phase& phase) {
  std::vector<std::vector<double>> out(kLayers, std::vector<double>(kRanks, 0));
  for (size_t layer = 0; layer < maps.size(); ++layer) {
    const ExpertMap& map = maps[layer];
    for (size_t i = 0; i < phase[layer].size(); ++i) {
      const int64_t token = static_cast<int64_t>(i) / kTopK;
      const int32_t from = static_cast<int32_t>(token / kTokensPerRank);
      const int32_t slot = map.SlotFor(phase[layer][i], from, token % kTokensPerRank);
      out[layer][map.rank_of(slot)] += 1.0 * kRanks / (int64_t{kTokens} * kTopK);
    }
  }
  return out;
}

struct Summary {
  double mean = 0;
  double worst = 0;
  int32_t within_goal = 0;
};

Summary Summarize(const std::vector<std::vector<double>>& arrivals) {
  Summary out;
  for (const std::vector<double>& load : arrivals) {
    const double busiest = *std::max_element(load.begin(), load.end());
    out.mean += busiest / kLayers;
    out.worst = std::max(out.worst, busiest);
    out.within_goal += busiest <= kGoal;
  }
  return out;
}

std::string NoteOf(const Summary& s) {
  return absl::StrFormat("busiest rank over mean: %.2f on average, %.2f at worst", s.mean, s.worst);
}

void PrintRow(const std::string& name, const std::vector<std::vector<double>>& arrivals) {
  const Summary s = Summarize(arrivals);
  std::printf("%-56s %7.2f %7.2f %10d of %d\n", name.c_str(), s.mean, s.worst, s.within_goal,
              kLayers);
}

absl::StatusOr<Maps> EvenMaps(int32_t slots_per_rank) {
  ASSIGN_OR_RETURN(const ExpertMap map, ExpertMap::Even(kExperts, kRanks, slots_per_rank));
  return Maps(kLayers, map);
}

absl::StatusOr<Maps> PlanMaps(const ExpertLoad& load, int32_t slots_per_rank, int32_t num_groups,
                              const Maps* present, double copy_price) {
  Maps out;
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    PlacementArgs args = {.load = load.of_layer(layer),
                          .shape = {.num_nodes = kNodes,
                                    .ranks_per_node = kRanksPerNode,
                                    .slots_per_rank = slots_per_rank,
                                    .num_groups = num_groups},
                          .present = present != nullptr ? &(*present)[layer] : nullptr,
                          .copy_price = copy_price};
    ASSIGN_OR_RETURN(ExpertMap map, PlanPlacement(args));
    out.push_back(std::move(map));
  }
  return out;
}

void PrintMoves(const MovePlan& plan) {
  double gain = 0, cost = 0;
  size_t copies = 0, most = 0;
  for (const LayerMove& move : plan.moves) {
    gain += move.gain_seconds;
    cost += move.cost_seconds;
    copies += move.copies.size();
    most = std::max(most, move.copies.size());
  }
  std::printf(
      "the plan: %zu layers move, %zu refused, %zu stay; %zu of %d slots are copied, at most %zu "
      "of "
      "a layer; cost %.2f s, gain %.2f s in %.0f s\n",
      plan.moves.size(), plan.refused.size(), kLayers - plan.moves.size() - plan.refused.size(),
      copies, kLayers * 288, most, cost, gain, kFixedCosts.horizon_seconds);
}

// What the plan changes, applied.
Maps Apply(const MovePlan& plan, Maps maps, const Maps& wanted) {
  for (const LayerMove& move : plan.moves) maps[move.layer] = wanted[move.layer];
  return maps;
}

absl::Status Report(const std::string& path) {
  std::printf("DeepSeek-V3's shape, %d layers, %d ranks; synthetic power-law load, %d tokens\n",
              kLayers, kRanks, kTokens);
  std::printf("%-56s %7s %7s %16s\n", "busiest rank over mean, tokens that no plan saw", "average",
              "worst", "layers <= 1.15");
  Traffic traffic;
  ASSIGN_OR_RETURN(ExpertLoad load, ExpertLoad::Create(kLayers, kExperts, kTokens / 2));
  RETURN_IF_ERROR(Measure(traffic.Draw(), load));
  const Phase next = traffic.Draw();

  ASSIGN_OR_RETURN(const Maps in_order, EvenMaps(8));
  ASSIGN_OR_RETURN(const Maps rearranged, PlanMaps(load, 8, 1, nullptr, 0));
  ASSIGN_OR_RETURN(const Maps spare_in_order, EvenMaps(9));
  ASSIGN_OR_RETURN(const Maps grouped, PlanMaps(load, 9, kGroups, nullptr, 0));
  ASSIGN_OR_RETURN(const Maps planned, PlanMaps(load, 9, 1, nullptr, 0));
  const auto before = Arrivals(in_order, next);
  const auto after = Arrivals(planned, next);
  PrintRow("256 slots, experts in order", before);
  PrintRow("256 slots, rearranged by load", Arrivals(rearranged, next));
  PrintRow("288 slots, in order, the first 32 experts twice", Arrivals(spare_in_order, next));
  PrintRow("288 slots, replicas by load, expert groups on nodes", Arrivals(grouped, next));
  PrintRow("288 slots, replicas by load", after);

  traffic.Drift(8);
  RETURN_IF_ERROR(Measure(traffic.Draw(), load));
  const Phase last = traffic.Draw();
  MoveCosts costs = kFixedCosts;
  costs.noise = NoiseOfCounts(kTopK * load.tokens(), kRanks);
  ASSIGN_OR_RETURN(const double price, CopyPrice(costs));
  ASSIGN_OR_RETURN(const Maps wanted, PlanMaps(load, 9, 1, &planned, price));
  std::vector<double> flat;
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    flat.insert(flat.end(), load.of_layer(layer).begin(), load.of_layer(layer).end());
  }
  ASSIGN_OR_RETURN(const MovePlan plan, PlanMoves(planned, wanted, flat, costs));
  std::printf("then 8 pairs of experts change places in 3 layers of 4\n");
  PrintRow("288 slots, as they were", Arrivals(planned, last));
  PrintRow("288 slots, after the moves that pay", Arrivals(Apply(plan, planned, wanted), last));
  PrintMoves(plan);

  const std::string svg =
      HeatMapSvg("Load of each rank over the layer's mean (synthetic power-law load)",
                 {{"256 slots, experts in order", NoteOf(Summarize(before)), before},
                  {"288 slots, replicas by load", NoteOf(Summarize(after)), after}});
  std::FILE* file = std::fopen(path.c_str(), "w");
  if (file == nullptr) return absl::NotFoundError("cannot write " + path);
  const bool written = std::fwrite(svg.data(), 1, svg.size(), file) == svg.size();
  if (std::fclose(file) != 0 || !written) return absl::DataLossError("cannot write " + path);
  return absl::OkStatus();
}

}  // namespace
}  // namespace jevons

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: balance_report PICTURE.svg\n");
    return 2;
  }
  const absl::Status status = jevons::Report(argv[1]);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

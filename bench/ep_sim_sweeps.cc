#include "bench/ep_sim_sweeps.h"

#include <algorithm>
#include <functional>
#include <span>

#include "absl/strings/str_format.h"
#include "bench/ep_sim_machines.h"

namespace jevons::ep_sim {
namespace {

constexpr int64_t kContext = 2048;
constexpr int32_t kBatches[] = {1, 2, 4, 8, 16, 32, 64, 128, 256};
constexpr int32_t kRanks[] = {8, 16, 24, 32, 48, 64, 72, 96, 128, 144};

using Change = std::function<void(Deployment&)>;

Step Decode(int32_t num_seqs) { return {.num_seqs = num_seqs, .context = kContext}; }
Step Prefill() { return {.prefill = true, .num_seqs = 4, .tokens_per_seq = 4096}; }

// A point for each x that fits.
Series SpeedOver(const std::string& name, std::span<const int32_t> xs,
                 const std::function<absl::StatusOr<Outcome>(int32_t)>& run, bool dashed = false) {
  Series series = {.name = name, .points = {}, .dashed = dashed};
  for (const int32_t x : xs) {
    const absl::StatusOr<Outcome> outcome = run(x);
    if (outcome.ok()) series.points.emplace_back(x, outcome->tokens_per_second);
  }
  return series;
}

Panel GpusPanel() {
  Panel panel = {.title = "Decode by number of GPUs, 2k of context",
                 .x_label = "GPUs that share the experts",
                 .y_label = "tokens a second and GPU",
                 .log_x = true,
                 .x_ticks = {8, 16, 32, 64, 144},
                 .series = {}};
  const auto add = [&](const Gpu& gpu, int32_t seqs, bool dashed) {
    panel.series.push_back(SpeedOver(
        absl::StrFormat("%s, %d a GPU", gpu.name, seqs), kRanks,
        [&](int32_t ranks) { return Best(Baseline(gpu, ranks), Decode(seqs)); }, dashed));
  };
  add(H200(), 256, true);
  add(H100(), 256, false);
  add(H200(), 128, true);
  add(H100(), 128, false);
  add(H200(), 32, true);
  add(H100(), 32, false);
  return panel;
}

struct Named {
  const char* name;
  Change change;
};

Panel BatchPanel(const std::string& title, const Gpu& gpu, int32_t ranks,
                 std::span<const Named> changes) {
  Panel panel = {.title = title,
                 .x_label = "sequences a GPU",
                 .y_label = "tokens a second and GPU",
                 .log_x = true,
                 .x_ticks = {1, 2, 4, 8, 16, 32, 64, 128, 256},
                 .series = {}};
  for (const Named& named : changes) {
    Deployment d = Baseline(gpu, ranks);
    named.change(d);
    panel.series.push_back(
        SpeedOver(named.name, kBatches, [&](int32_t seqs) { return Best(d, Decode(seqs)); }));
  }
  return panel;
}

void Base(Deployment&) {}
void OneBatch(Deployment& d) { d.overlap = Overlap::kNone; }
void Fp8There(Deployment& d) { d.dispatch_value_bytes = kFp8RowBytes; }
void Padded(Deployment& d) { d.sizes = Sizes::kPadded; }
void PaddedByRank(Deployment& d) {
  d.sizes = Sizes::kPadded;
  d.dispatch = Send::kPerRank;
}
void NcclExact(Deployment& d) { d.transport = Nccl(); }
void NcclPadded(Deployment& d) {
  d.transport = Nccl();
  PaddedByRank(d);
}
void There(Deployment& d, Send send) { d.dispatch = send; }
void Both(Deployment& d, Send send) {
  d.dispatch = send;
  d.combine = send;
}
void NodeThereGroupBack(Deployment& d) {
  d.dispatch = Send::kPerNode;
  d.combine = Send::kPerGroup;
}

Panel ManyNodesPanel() {
  const Named changes[] = {{"FP8 there", Fp8There},
                           {"base", Base},
                           {"one batch", OneBatch},
                           {"NCCL, exact", NcclExact},
                           {"padded", Padded}};
  return BatchPanel("Decode on 72 H100, one choice changed", H100(), 72, changes);
}

Panel OneNodePanel() {
  const Named changes[] = {{"base", Base},
                           {"padded", Padded},
                           {"NCCL, exact", NcclExact},
                           {"NCCL, padded by rank", NcclPadded}};
  Panel panel = BatchPanel("Decode on 8 H200, how rows are sent", H200(), 8, changes);
  panel.x_ticks = {1, 2, 4, 8, 16, 32, 64};
  return panel;
}

Panel PrefillPanel() {
  Panel panel = {.title = "Prefill, 4 prompts of 4k a GPU: a row for each",
                 .x_label = "GPUs that share the experts, H100",
                 .y_label = "tokens a second and GPU",
                 .log_x = true,
                 .x_ticks = {24, 32, 64, 144},
                 .series = {}};
  const Named changes[] = {
      {"node, both ways", [](Deployment& d) { Both(d, Send::kPerNode); }},
      {"node there, group back", NodeThereGroupBack},
      {"node there, choice back", [](Deployment& d) { There(d, Send::kPerNode); }},
      {"rank there, choice back", [](Deployment& d) { There(d, Send::kPerRank); }},
      {"choice, both ways", Base}};
  for (const Named& named : changes) {
    panel.series.push_back(SpeedOver(named.name, kRanks, [&](int32_t ranks) {
      Deployment d = Baseline(H100(), ranks);
      named.change(d);
      return Best(d, Prefill());
    }));
  }
  return panel;
}

Panel OverlapPanel() {
  Panel panel = {.title = "Two batches over one, decode",
                 .x_label = "sequences a GPU",
                 .y_label = "speed-up",
                 .log_x = true,
                 .x_ticks = {2, 4, 8, 16, 32, 64, 128, 256},
                 .series = {}};
  const auto add = [&](const Gpu& gpu, int32_t ranks) {
    Series series = {.name = absl::StrFormat("%d x %s", ranks, gpu.name), .points = {}};
    for (const int32_t seqs : kBatches) {
      if (seqs < 2) continue;
      Deployment d = Baseline(gpu, ranks);
      const absl::StatusOr<StepTime> two = Simulate(V3Shape(), d, Decode(seqs));
      d.overlap = Overlap::kNone;
      const absl::StatusOr<StepTime> one = Simulate(V3Shape(), d, Decode(seqs));
      if (two.ok() && one.ok()) series.points.emplace_back(seqs, one->seconds / two->seconds);
    }
    panel.series.push_back(std::move(series));
  };
  add(H100(), 144);
  add(H100(), 72);
  add(H100(), 32);
  add(H200(), 16);
  add(H200(), 8);
  return panel;
}

Panel ImbalancePanel() {
  Panel panel = {.title = "What the busiest rank costs",
                 .x_label = "its rows over the mean",
                 .y_label = "speed, 1 = balanced",
                 .x_ticks = {1, 1.5, 2, 2.5, 3},
                 .series = {}};
  const auto add = [&](const std::string& name, int32_t ranks, const Step& step) {
    Series series = {.name = name, .points = {}};
    double first = 0;
    for (double imbalance = 1; imbalance < 3.1; imbalance += 0.25) {
      Deployment d = Baseline(H100(), ranks);
      d.imbalance = imbalance;
      const absl::StatusOr<Outcome> outcome = Best(d, step);
      if (!outcome.ok()) continue;
      if (first == 0) first = outcome->tokens_per_second;
      series.points.emplace_back(imbalance, outcome->tokens_per_second / first);
    }
    panel.series.push_back(std::move(series));
  };
  add("decode, 72, 32 a GPU", 72, Decode(32));
  add("decode, 72, 128 a GPU", 72, Decode(128));
  add("decode, 72, 256 a GPU", 72, Decode(256));
  add("prefill, 32, 16k tokens", 32, Prefill());
  return panel;
}

std::vector<Named> Changes() {
  const auto slots = [](double redundancy, double imbalance) {
    return [=](Deployment& d) {
      d.slots_per_rank = SlotsPerRank(V3Shape(), d.num_ranks, redundancy);
      d.imbalance = imbalance;
    };
  };
  const auto there = [](Send send) { return [send](Deployment& d) { There(d, send); }; };
  const auto both = [](Send send) { return [send](Deployment& d) { Both(d, send); }; };
  const auto predicted = [](Deployment& d) { d.kernels = PredictedKernels(); };
  return {{"base", Base},
          {"rows there in FP8", Fp8There},
          {"a row a rank there", there(Send::kPerRank)},
          {"a row a rank both ways", both(Send::kPerRank)},
          {"a row a node there", there(Send::kPerNode)},
          {"a row a node there, a group back", NodeThereGroupBack},
          {"a row a node both ways", both(Send::kPerNode)},
          {"one batch", OneBatch},
          {"padded, a row a choice", Padded},
          {"padded, a row a rank there", PaddedByRank},
          {"NCCL, exact", NcclExact},
          {"NCCL, padded, a row a rank there", NcclPadded},
          {"no replicas, busiest rank x 1.15", slots(0, 1.15)},
          {"no replicas, busiest rank x 2", slots(0, 2)},
          {"25 % replicas, balanced", slots(0.25, 1)},
          {"FP8 cache", [](Deployment& d) { d.kv_value_bytes = 656.0 / 576; }},
          {"this project's kernels", predicted},
          {"its kernels, NCCL, exact", [=](Deployment& d) {
             predicted(d);
             NcclExact(d);
           }}};
}

}  // namespace

absl::StatusOr<Outcome> Best(const Deployment& deployment, const Step& step) {
  Deployment one = deployment;
  one.overlap = Overlap::kNone;
  Outcome out;
  ASSIGN_OR_RETURN(out.time, Simulate(V3Shape(), one, step));
  if (deployment.overlap == Overlap::kTwoBatches) {
    ASSIGN_OR_RETURN(StepTime two, Simulate(V3Shape(), deployment, step));
    out.two_batches = two.seconds < out.time.seconds;
    if (out.two_batches) out.time = std::move(two);
  }
  out.tokens_per_second = step.num_tokens() / out.time.seconds;
  return out;
}

std::vector<Place> ChoicePlaces() {
  return {{"8 H200, 64", H200(), 8, Decode(64)},       {"16 H100, 32", H100(), 16, Decode(32)},
          {"72 H100, 32", H100(), 72, Decode(32)},     {"72 H100, 128", H100(), 72, Decode(128)},
          {"144 H100, 128", H100(), 144, Decode(128)}, {"32 H100, prefill", H100(), 32, Prefill()}};
}

std::vector<Choice> Choices() {
  std::vector<Choice> out;
  for (const Named& named : Changes()) {
    Choice choice = {.name = named.name, .outcomes = {}};
    for (const Place& place : ChoicePlaces()) {
      Deployment d = Baseline(place.gpu, place.num_ranks);
      named.change(d);
      choice.outcomes.push_back(Best(d, place.step));
    }
    out.push_back(std::move(choice));
  }
  return out;
}

std::string ChartsTitle() {
  return "DeepSeek-V3 with its experts spread over GPUs: simulated, not measured";
}

std::vector<Panel> Charts() {
  return {GpusPanel(),    ManyNodesPanel(), OneNodePanel(),
          OverlapPanel(), PrefillPanel(),   ImbalancePanel()};
}

}  // namespace jevons::ep_sim

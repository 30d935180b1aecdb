// What the simulator is asked: tables over GPUs and batches, one choice changed at a time, charts.
#pragma once

#include <string>
#include <vector>

#include "bench/ep_sim_model.h"
#include "bench/ep_sim_plot.h"

namespace jevons::ep_sim {

struct Outcome {
  StepTime time;
  double tokens_per_second = 0;  // a GPU
  bool two_batches = false;
};

// The faster of one batch and two, where deployment.overlap is kTwoBatches.
absl::StatusOr<Outcome> Best(const Deployment& deployment, const Step& step);

// A deployment with one thing changed, at a few places.
struct Choice {
  std::string name;
  std::vector<absl::StatusOr<Outcome>> outcomes;  // by place
};
struct Place {
  std::string name;
  Gpu gpu;
  int32_t num_ranks = 0;
  Step step;
};
std::vector<Place> ChoicePlaces();
// The first is Baseline as it is.
std::vector<Choice> Choices();

// What docs/ep_sim.svg shows.
std::string ChartsTitle();
std::vector<Panel> Charts();

}  // namespace jevons::ep_sim

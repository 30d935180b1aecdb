// Moves experts between the ranks of a group while they serve, by measured load.
#pragma once

#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"
#include "engine/expert_reader.h"
#include "engine/loaded_model.h"
#include "parallel/expert_load.h"
#include "parallel/move_plan.h"

namespace jevons {

// Now and then the ranks sum what their tokens chose. From equal sums each makes the same plan by
// itself, on a thread of its own, which then reads the weights of one layer after the other from the
// checkpoint. Before each step the ranks agree on how many layers all of them have ready, and swap
// those: between two steps, a table each and a pointer, or on a device a copy of the weights. A rank that cannot read ends the plan for all.
//
// Engine thread only.
class ExpertBalancer {
 public:
  // Null where there is nothing to balance: no group, no experts, or a model that cannot be read
  // again. `model` outlives it.
  static std::unique_ptr<ExpertBalancer> Create(LoadedModel* model);
  ~ExpertBalancer();

  // After a step that all ranks have taken. The group's error where it is broken.
  absl::Status AfterStep();

  // What this rank tells the others before a step.
  struct Progress {
    int64_t num_ready = 0;  // layers, since the start
    bool failed = false;    // in the plan at hand
  };
  Progress progress();
  // With what they agreed on: the least number that is ready, and whether any has failed.
  absl::Status Apply(const Progress& agreed);

  int64_t num_moved_layers() const { return num_swapped_; }

 private:
  // A layer on its way, and the weights that this rank needs for it; null where they stay.
  struct Ready {
    int32_t layer = 0;  // index into layers_
    ExpertMap map;
    MlpWeights experts;
  };
  struct Job {
    std::vector<double> load;  // [layers, experts]
    std::vector<ExpertMap> present;
    MoveCosts costs;
  };

  ExpertBalancer(LoadedModel* model, ExpertLoad load, std::vector<int32_t> layers);

  absl::Status SumLoad();
  std::vector<ExpertMap> PresentMaps() const;  // of layers_
  MoveCosts Costs(double seconds_per_byte) const;

  // The thread.
  void Loop();
  void Work(const Job& job);
  absl::Status PlanAndPrepare(const Job& job);
  absl::StatusOr<Ready> Prepare(const Job& job, const ExpertMap& wanted, const LayerMove& move);
  // Waits until the layer before has been swapped. False: the plan is over.
  bool Publish(Ready ready);

  LoadedModel* const model_;
  ExpertLoad load_;
  const std::vector<int32_t> layers_;  // indices of the MoE layers
  std::vector<int64_t> bytes_;         // of layers_, that this rank holds
  ExpertReader reader_;                // of the thread
  std::vector<int64_t> sums_;
  int64_t num_steps_ = 0;
  int64_t num_swapped_ = 0;

  Mutex mutex_;
  CondVar changed_;
  std::optional<Job> job_ ABSL_GUARDED_BY(mutex_);
  std::optional<Ready> ready_ ABSL_GUARDED_BY(mutex_);
  MlpWeights replaced_ ABSL_GUARDED_BY(mutex_);  // to be freed by the thread
  int64_t num_ready_ ABSL_GUARDED_BY(mutex_) = 0;
  bool working_ ABSL_GUARDED_BY(mutex_) = false;
  bool failed_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace jevons

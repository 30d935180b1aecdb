// The experts of a rank's slots, when these change.
#pragma once

#include <memory>
#include <span>

#include "engine/loaded_model.h"

namespace jevons {

// In host memory experts that the rank holds are copied, and only others are read.
//
// Used by one thread, beside the one that runs steps: the layer that is read keeps its experts
// meanwhile.
class ExpertReader {
 public:
  // Both outlive it. `backend` packs.
  ExpertReader(const LoadedModel* model, Backend* backend) : model_(model), backend_(backend) {}

  // slot_expert has the expert of each slot, -1 for an empty one. Errors of the checkpoint;
  // UNIMPLEMENTED where there is none to be read again.
  absl::StatusOr<MlpWeights> Read(int32_t layer_idx, std::span<const int32_t> slot_expert);

  // Closes the checkpoint, which is open from the first expert that is read.
  void Close() { checkpoint_.reset(); }

 private:
  absl::StatusOr<MlpWeights> Load(int32_t layer_idx, std::span<const int32_t> experts);

  const LoadedModel* const model_;
  Backend* const backend_;
  std::unique_ptr<Checkpoint> checkpoint_;
};

}  // namespace jevons

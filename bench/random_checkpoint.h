// A checkpoint of random weights that is made tensor by tensor while it is read: a large model
// without a file.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "model/config.h"

namespace jevons {

// bf16, as a trained model's magnitudes are: norms about 1, matrices so that activations keep their
// size. Used by one thread at a time.
class RandomCheckpoint : public Checkpoint {
 public:
  RandomCheckpoint(const ModelConfig& config, uint64_t seed);

  absl::StatusOr<TensorView> Find(std::string_view name) const override;
  bool Has(std::string_view name) const override;
  std::vector<std::string> Names() const override;
  void Release(std::string_view name) const override;

 private:
  std::map<std::string, std::vector<int64_t>, std::less<>> shapes_;
  uint64_t seed_;
  mutable std::map<std::string, std::vector<uint16_t>, std::less<>> made_;
};

}  // namespace jevons

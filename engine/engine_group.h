// The ranks of one process as one engine.
#pragma once

#include <memory>
#include <vector>

#include "engine/rank_engine.h"

namespace jevons {

// Thread-safe, as Engine. A request goes to the rank with the fewest requests, of those to the one
// with the most free blocks; where it is computed does not change a bit of it. One rank that fails
// ends the group.
class EngineGroup : public Engine {
 public:
  EngineGroup(LoadedGroup group, const Clock* clock);
  ~EngineGroup() override;

  absl::StatusOr<std::shared_ptr<TokenStream>> Submit(GenerationRequest request,
                                                      std::function<void()> ready) override;
  void Drain(absl::Duration patience) override;
  absl::Status failure() const override;
  EngineStats stats() const override;
  absl::Status CheckIntegrity() override;

  const ModelConfig& config() const override { return ranks_[0]->config(); }
  const Tokenizer& tokenizer() const override { return ranks_[0]->tokenizer(); }
  const ChatFormat& chat_format() const override { return ranks_[0]->chat_format(); }
  const GenerationLimits& limits() const override { return ranks_[0]->limits(); }
  const EngineOptions& options() const override { return ranks_[0]->options(); }
  std::string backend_description() const override;

 private:
  void PokeAll();

  const std::unique_ptr<ThreadGroup> threads_;
  std::vector<std::unique_ptr<RankEngine>> ranks_;
};

}  // namespace jevons

// The ranks of a group as one engine.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/rank_engine.h"

namespace jevons {

// Thread-safe, as Engine. A request goes where it costs least, by the part of its prompt that a rank has
// cached, its free blocks and its requests. Where it is computed does not change a bit of it.
//
// Where the other ranks are remote, those that are left go on without one that is lost, and take over
// its requests behind what these have given. Rank 0's failure ends the group, as that of any rank in
// this process does.
class EngineGroup : public Engine, private RemoteRanks::Listener {
 public:
  EngineGroup(LoadedGroup group, const Clock* clock);
  // Rank 0 in this process, the others elsewhere. Without `join` a lost rank ends the group.
  EngineGroup(LoadedModel first, std::unique_ptr<RemoteRanks> others, const Clock* clock,
              JoinGroup join);
  ~EngineGroup() override;

  absl::StatusOr<std::shared_ptr<TokenStream>> Submit(GenerationRequest request,
                                                      std::function<void()> ready) override;
  void Drain(absl::Duration patience) override;
  absl::Status failure() const override;
  EngineStats stats() const override;
  std::vector<RankStats> rank_stats() const override;
  absl::Status CheckIntegrity() override;

  const ModelConfig& config() const override { return first_->config(); }
  const Tokenizer& tokenizer() const override { return first_->tokenizer(); }
  const ChatFormat& chat_format() const override { return first_->chat_format(); }
  const GenerationLimits& limits() const override { return first_->limits(); }
  const EngineOptions& options() const override { return first_->options(); }
  std::string backend_description() const override { return description_; }

 private:
  void OnRegroup(const Membership& membership, std::vector<OpenRequest> open) override;
  void OnEnd(const absl::Status& status) override;
  EngineStats FirstStats() const override { return first_->stats(); }

  // The rank to give it to; null where none is left.
  Rank* Choose(const GenerationRequest& request) const;
  void Resume(OpenRequest open);
  void PokeAll();

  const std::unique_ptr<ThreadGroup> threads_;  // null where the others are remote or devices
  const std::unique_ptr<DeviceGroup> devices_;  // null but over NCCL
  const std::string description_;
  std::vector<std::unique_ptr<RankEngine>> engines_;  // the ranks of this process
  RankEngine* first_ = nullptr;
  std::vector<Rank*> ranks_;
  Mutex submitting_;  // who chooses sees the request before; no rank calls back under it
  std::unique_ptr<RemoteRanks> remote_;  // below the others: it calls the listener
};

}  // namespace jevons

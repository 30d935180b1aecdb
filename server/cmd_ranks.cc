#include "engine/engine.h"
#include "server/cmd.h"

namespace jevons {

void AddRanks(CLI::App& cmd, EngineOptions& engine) {
  cmd.add_option(
         "--ranks", engine.num_ranks,
         "Ranks of this host that share the experts of the model; threads, sequences, batch, "
         "KV cache and queue are then those of each rank")
      ->check(InRange<int64_t>(1, 256))
      ->capture_default_str();
  cmd.add_option("--transport", "How the ranks reach each other; threads: all in this process")
      ->check(CLI::IsMember({"threads"}))
      ->default_str("threads");
  cmd.add_option("--redundant-experts", engine.num_redundant_experts,
                 "Expert slots of the group beside one for each expert; rounded up to as many for "
                 "each rank")
      ->check(InRange<int64_t>(0, 65536))
      ->capture_default_str();
  cmd.add_option(
         "--balance-interval-steps", engine.balance_interval_steps,
         "Steps between looks at the experts' load, after which ranks may change experts; 0: never")
      ->check(InRange<int64_t>(0, 2147483647))
      ->capture_default_str();
}

}  // namespace jevons

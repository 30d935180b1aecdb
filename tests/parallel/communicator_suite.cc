#include "tests/parallel/communicator_suite.h"

namespace jevons {

std::vector<absl::Status> RunRanks(const GroupKind& kind, int32_t world_size,
                                   const CommunicatorOptions& options, const RankFn& fn) {
  const std::unique_ptr<TestGroup> group = kind.make(world_size, options);
  std::vector<absl::Status> results(world_size);
  std::vector<std::thread> threads;
  for (int32_t rank = 0; rank < world_size; ++rank) {
    threads.emplace_back([&, rank] {
      absl::StatusOr<std::unique_ptr<Communicator>> member = group->Join(rank);
      results[rank] = member.ok() ? fn(rank, *group, **member) : member.status();
    });
  }
  for (std::thread& thread : threads) thread.join();
  return results;
}

}  // namespace jevons

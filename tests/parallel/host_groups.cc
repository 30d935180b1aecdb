// Groups whose data is in host memory.
#include "parallel/gloo_communicator.h"
#include "parallel/thread_communicator.h"
#include "tests/parallel/communicator_suite.h"
#include "tests/parallel/free_address.h"

namespace jevons {
namespace {

class ThreadTestGroup : public TestGroup {
 public:
  ThreadTestGroup(int32_t world_size, const CommunicatorOptions& options)
      : group_(world_size, options) {}
  absl::StatusOr<std::unique_ptr<Communicator>> Join(int32_t rank) override {
    return group_.Join(rank);
  }

 private:
  ThreadGroup group_;
};

// Each rank is a thread of this process, and speaks to the others through the loopback device.
class GlooTestGroup : public TestGroup {
 public:
  GlooTestGroup(int32_t world_size, const CommunicatorOptions& options)
      : world_size_(world_size), options_(options), leader_(FreeAddress()) {}
  absl::StatusOr<std::unique_ptr<Communicator>> Join(int32_t rank) override {
    return CreateGlooCommunicator({.rendezvous = {.info = {.rank = rank, .world_size = world_size_},
                                                  .leader = leader_,
                                                  .fingerprint = "tiny 1",
                                                  .timeout = absl::Seconds(60)},
                                   .communicator = options_});
  }

 private:
  int32_t world_size_;
  CommunicatorOptions options_;
  std::string leader_;
};

template <typename Group>
GroupKind Kind(const std::string& name) {
  return {.name = name, .make = [](int32_t world_size, const CommunicatorOptions& options) {
            return std::make_unique<Group>(world_size, options);
          }};
}

}  // namespace

std::vector<GroupKind> GroupKinds() {
  std::vector<GroupKind> kinds = {Kind<ThreadTestGroup>("Threads")};
#ifndef JEVONS_TEST_THREADS_ALONE
  kinds.push_back(Kind<GlooTestGroup>("Gloo"));
#endif
  return kinds;
}

}  // namespace jevons

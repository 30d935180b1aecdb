// Groups over the emulated NCCL: each rank is a thread with a device and a stream of its own.
#include <cuda_runtime_api.h>

#include "parallel/nccl_communicator.h"
#include "parallel/thread_communicator.h"
#include "tests/cuda_emu/runtime.h"
#include "tests/parallel/communicator_suite.h"

namespace jevons {
namespace {

class NcclTestGroup : public TestGroup {
 public:
  NcclTestGroup(int32_t world_size, const CommunicatorOptions& options, NcclCheck check)
      : options_(options), check_(check), host_group_(world_size, options), streams_(world_size) {
    emu::SetDevice({.count = world_size});
  }
  ~NcclTestGroup() override {
    for (const cudaStream_t stream : streams_) cudaStreamDestroy(stream);
  }

  absl::StatusOr<std::unique_ptr<Communicator>> Join(int32_t rank) override {
    cudaSetDevice(rank);
    cudaStreamCreateWithFlags(&streams_[rank], cudaStreamNonBlocking);
    ASSIGN_OR_RETURN(std::unique_ptr<Communicator> member, host_group_.Join(rank));
    return CreateNcclCommunicator(
        std::move(member),
        {.device = rank, .stream = streams_[rank], .timeout = options_.timeout, .check = check_});
  }

  void* Allocate(int32_t rank, int64_t bytes) override {
    void* data = nullptr;
    cudaMalloc(&data, static_cast<size_t>(bytes));
    return data;
  }
  void Free(int32_t rank, void* data) override { cudaFree(data); }
  void Copy(int32_t rank, void* to, const void* from, int64_t bytes) override {
    if (bytes == 0) return;
    cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, streams_[rank]);
    cudaStreamSynchronize(streams_[rank]);
  }

 private:
  const CommunicatorOptions options_;
  const NcclCheck check_;
  ThreadGroup host_group_;
  std::vector<cudaStream_t> streams_;
};

GroupKind Kind(const std::string& name, NcclCheck check) {
  const auto make = [check](int32_t world_size, const CommunicatorOptions& options) {
    return std::make_unique<NcclTestGroup>(world_size, options, check);
  };
  const bool checks = check == NcclCheck::kCalls;
  return {.name = name,
          .make = make,
          .compares_calls = checks,
          .names_missing_rank = checks,
          .num_random_calls = 1000};
}

}  // namespace

std::vector<GroupKind> GroupKinds() {
  return {Kind("Nccl", NcclCheck::kOff), Kind("NcclWithChecks", NcclCheck::kCalls)};
}

}  // namespace jevons

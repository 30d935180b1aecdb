// Groups over the emulated NCCL: each rank is a thread with a device and a stream of its own.
#include <cuda_runtime_api.h>

#include "parallel/device_group.h"
#include "parallel/nccl_communicator.h"
#include "parallel/thread_communicator.h"
#include "tests/cuda_emu/runtime.h"
#include "tests/parallel/communicator_suite.h"

namespace jevons {
namespace {

// The ranks' devices and streams.
class DevicesTestGroup : public TestGroup {
 public:
  explicit DevicesTestGroup(int32_t world_size) : streams_(world_size) {
    emu::SetDevice({.count = world_size});
  }
  ~DevicesTestGroup() override {
    for (const cudaStream_t stream : streams_) cudaStreamDestroy(stream);
  }

  absl::StatusOr<std::unique_ptr<Communicator>> Join(int32_t rank) override {
    cudaSetDevice(rank);
    cudaStreamCreateWithFlags(&streams_[rank], cudaStreamNonBlocking);
    return Join(rank, streams_[rank]);
  }
  virtual absl::StatusOr<std::unique_ptr<Communicator>> Join(int32_t rank, void* stream) = 0;

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
  std::vector<cudaStream_t> streams_;
};

class NcclTestGroup : public DevicesTestGroup {
 public:
  NcclTestGroup(int32_t world_size, const CommunicatorOptions& options, NcclCheck check)
      : DevicesTestGroup(world_size),
        options_(options),
        check_(check),
        host_group_(world_size, options) {}

  absl::StatusOr<std::unique_ptr<Communicator>> Join(int32_t rank, void* stream) override {
    ASSIGN_OR_RETURN(std::unique_ptr<Communicator> member, host_group_.Join(rank));
    return CreateNcclCommunicator(
        std::move(member),
        {.device = rank, .stream = stream, .timeout = options_.timeout, .check = check_});
  }

 private:
  const CommunicatorOptions options_;
  const NcclCheck check_;
  ThreadGroup host_group_;
};

class DeviceTestGroup : public DevicesTestGroup {
 public:
  DeviceTestGroup(int32_t world_size, const CommunicatorOptions& options)
      : DevicesTestGroup(world_size), group_(*DeviceGroup::Create(world_size, options)) {}

  absl::StatusOr<std::unique_ptr<Communicator>> Join(int32_t rank, void* stream) override {
    return group_->Join(rank, rank, stream);
  }

 private:
  const std::unique_ptr<DeviceGroup> group_;
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
          .start_waits = checks,
          .num_random_calls = 1000};
}

}  // namespace

std::vector<GroupKind> GroupKinds() {
  GroupKind group = Kind("DeviceGroup", NcclCheck::kOff);
  group.make = [](int32_t world_size, const CommunicatorOptions& options) {
    return std::make_unique<DeviceTestGroup>(world_size, options);
  };
  return {Kind("Nccl", NcclCheck::kOff), Kind("NcclWithChecks", NcclCheck::kCalls),
          std::move(group)};
}

}  // namespace jevons

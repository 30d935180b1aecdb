// Groups over the emulated NCCL: each rank is a thread with a device and a stream of its own.
#include <cuda_runtime_api.h>

#include "gtest/gtest.h"
#include "parallel/device_group.h"
#include "parallel/gloo_communicator.h"
#include "parallel/nccl_communicator.h"
#include "parallel/thread_communicator.h"
#include "tests/cuda_emu/runtime.h"
#include "tests/parallel/communicator_suite.h"
#include "tests/parallel/free_address.h"

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

// Host memory goes from thread to thread.
class ThreadsTestGroup : public DevicesTestGroup {
 public:
  ThreadsTestGroup(int32_t world_size, const CommunicatorOptions& options, NcclCheck check)
      : DevicesTestGroup(world_size),
        options_(options),
        check_(check),
        threads_(world_size, options) {}

  absl::StatusOr<std::unique_ptr<Communicator>> Join(int32_t rank, void* stream) override {
    ASSIGN_OR_RETURN(std::unique_ptr<Communicator> host, threads_.Join(rank));
    return CreateNcclCommunicator(
        std::move(host),
        {.device = rank, .stream = stream, .timeout = options_.timeout, .check = check_});
  }

 private:
  const CommunicatorOptions options_;
  const NcclCheck check_;
  ThreadGroup threads_;
};

// As ranks that are processes: host memory goes over the loopback device.
class GlooTestGroup : public DevicesTestGroup {
 public:
  GlooTestGroup(int32_t world_size, const CommunicatorOptions& options)
      : DevicesTestGroup(world_size),
        world_size_(world_size),
        options_(options),
        leader_(FreeAddress()) {}

  absl::StatusOr<std::unique_ptr<Communicator>> Join(int32_t rank, void* stream) override {
    ASSIGN_OR_RETURN(
        std::unique_ptr<Communicator> host,
        CreateGlooCommunicator({.rendezvous = {.info = {.rank = rank, .world_size = world_size_},
                                               .leader = leader_,
                                               .timeout = absl::Seconds(60)},
                                .communicator = options_}));
    return CreateNcclCommunicator(std::move(host),
                                  {.device = rank, .stream = stream, .timeout = options_.timeout});
  }

 private:
  const int32_t world_size_;
  const CommunicatorOptions options_;
  const std::string leader_;
};

class DeviceTestGroup : public DevicesTestGroup {
 public:
  DeviceTestGroup(int32_t world_size, const CommunicatorOptions& options)
      : DevicesTestGroup(world_size), group_(world_size, options) {}

  absl::StatusOr<std::unique_ptr<Communicator>> Join(int32_t rank, void* stream) override {
    return group_.Join(rank, rank, stream);
  }

 private:
  DeviceGroup group_;
};

// Data lies in memory that the ranks share, which kernels store to.
class KernelsTestGroup : public DevicesTestGroup {
 public:
  KernelsTestGroup(int32_t world_size, CommunicatorOptions options)
      : DevicesTestGroup(world_size),
        group_(world_size, {.timeout = options.timeout, .exchange_by = ExchangeBy::kKernels}),
        memory_(world_size) {}

  absl::StatusOr<std::unique_ptr<Communicator>> Join(int32_t rank, void* stream) override {
    ASSIGN_OR_RETURN(std::unique_ptr<Communicator> member, group_.Join(rank, rank, stream));
    ASSIGN_OR_RETURN(void* const data, member->ReceiveMemory(kBytes));
    memory_[rank].data = static_cast<char*>(data);
    return member;
  }
  // One piece after the other, and from the begin again once all are free.
  void* Allocate(int32_t rank, int64_t bytes) override {
    Memory& memory = memory_[rank];
    void* const out = memory.data + memory.used_bytes;
    memory.used_bytes += (bytes + 15) / 16 * 16;
    EXPECT_LE(memory.used_bytes, kBytes);
    ++memory.num_pieces;
    return out;
  }
  void Free(int32_t rank, void* data) override {
    Memory& memory = memory_[rank];
    if (--memory.num_pieces == 0) memory.used_bytes = 0;
  }

 private:
  static constexpr int64_t kBytes = int64_t{8} << 20;
  struct Memory {
    char* data = nullptr;
    int64_t used_bytes = 0;
    int64_t num_pieces = 0;
  };
  DeviceGroup group_;
  std::vector<Memory> memory_;
};

template <typename Group, typename... Args>
GroupKind Kind(const std::string& name, Args... args) {
  return {.name = name,
          .make =
              [=](int32_t world_size, const CommunicatorOptions& options) {
                return std::make_unique<Group>(world_size, options, args...);
              },
          .compares_calls = false,
          .names_missing_rank = false,
          .num_random_calls = 1000};
}

}  // namespace

std::vector<GroupKind> GroupKinds() {
  std::vector<GroupKind> kinds = {Kind<DeviceTestGroup>("DeviceGroup"),
                                  Kind<KernelsTestGroup>("NcclWithKernels"),
                                  Kind<ThreadsTestGroup>("NcclWithChecks", NcclCheck::kCalls)};
  kinds.back().compares_calls = kinds.back().names_missing_rank = kinds.back().start_waits = true;
#ifndef JEVONS_TEST_THREADS_ALONE
  kinds.push_back(Kind<GlooTestGroup>("NcclWithGloo"));
#endif
  return kinds;
}

}  // namespace jevons

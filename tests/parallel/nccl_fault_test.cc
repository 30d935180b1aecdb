// Every call of the CUDA runtime and of NCCL that a group makes fails once: each run ends in a
// status for every rank, without a hang and without a leak.
#include <string>
#include <thread>
#include <vector>

#include "cuda/graph_cache.h"
#include "parallel/nccl_communicator.h"
#include "parallel/thread_communicator.h"
#include "tests/cuda_emu/faults.h"
#include "tests/parallel/nccl_ranks.h"

namespace jevons {
namespace {

absl::Status ToStatus(cudaError_t error) {
  return error == cudaSuccess ? absl::OkStatus() : absl::InternalError(cudaGetErrorString(error));
}

absl::Status Use(Communicator& comm, int32_t* data, cudaStream_t stream) {
  const int32_t world_size = comm.info().world_size;
  ASSIGN_OR_RETURN(void* const shared, comm.ReceiveMemory(64));
  const std::vector<int64_t> bytes(world_size, sizeof(int32_t));
  std::vector<int64_t> offsets(world_size);
  for (int32_t i = 0; i < world_size; ++i) offsets[i] = i * sizeof(int32_t);
  const AllToAllArgs args = {.send = data,
                             .send_offsets = offsets,
                             .send_bytes = bytes,
                             .recv = shared != nullptr ? shared : data + world_size,
                             .recv_offsets = offsets,
                             .recv_bytes = bytes};
  cuda::GraphCache steps;
  const auto step = [&]() -> absl::Status {
    RETURN_IF_ERROR(ToStatus(emu::LaunchStep({data, 1, 1}, stream)));
    RETURN_IF_ERROR(comm.AllToAll(args));
    RETURN_IF_ERROR(comm.StartAllToAll(args));
    RETURN_IF_ERROR(ToStatus(emu::LaunchStep({data + 2 * world_size, 1, 1}, stream)));
    return comm.FinishAllToAll();
  };
  for (int run = 0; run < 3; ++run) {
    RETURN_IF_ERROR(steps.Run(1, step, stream));
    RETURN_IF_ERROR(comm.Wait());
  }
  RETURN_IF_ERROR(comm.AllGather(data, sizeof(int32_t), data + world_size));
  RETURN_IF_ERROR(comm.Broadcast(data, sizeof(int32_t), 0));
  int64_t value = 1;
  RETURN_IF_ERROR(comm.AllReduce({&value, 1}, ReduceOp::kSum));
  EXPECT_EQ(value, world_size);
  RETURN_IF_ERROR(comm.Wait());
  return comm.Barrier(absl::Seconds(10));
}

// One rank's life. The communicator ends before what it works on.
absl::Status Live(ThreadGroup& group, int32_t rank, ExchangeBy exchange_by) {
  cudaStream_t stream = nullptr;
  int32_t* data = nullptr;
  // Not of the communicator: a failure here is tried again.
  while (cudaSetDevice(rank) != cudaSuccess) continue;
  while (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess) continue;
  while (cudaMalloc(reinterpret_cast<void**>(&data), 256) != cudaSuccess) continue;
  absl::Status status;
  {
    auto comm = CreateNcclCommunicator(*group.Join(rank), {.device = rank,
                                                           .stream = stream,
                                                           .timeout = absl::Seconds(10),
                                                           .create_timeout = absl::Seconds(10),
                                                           .exchange_by = exchange_by});
    status = comm.ok() ? Use(**comm, data, stream) : comm.status();
  }
  cudaFree(data);
  cudaStreamDestroy(stream);
  return status;
}

std::vector<absl::Status> LiveAll(int32_t world_size, ExchangeBy exchange_by) {
  ThreadGroup group(world_size, {.timeout = absl::Seconds(10)});
  std::vector<absl::Status> out(world_size);
  std::vector<std::thread> threads;
  for (int32_t rank = 0; rank < world_size; ++rank) {
    threads.emplace_back([&, rank] { out[rank] = Live(group, rank, exchange_by); });
  }
  for (std::thread& thread : threads) thread.join();
  return out;
}

class NcclFaultTest : public NcclRanksTest, public testing::WithParamInterface<Fault> {
 protected:
  // After a run with a planned failure.
  static void ExpectEnded(const std::vector<absl::Status>& statuses) {
    for (const absl::Status& status : statuses) {
      if (status.ok()) continue;
      EXPECT_FALSE(status.message().empty());
      EXPECT_NE(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
    }
    emu::ResetCalls();
    emu::ResetNccl();
    for (int32_t device = 0; device < kMaxRanks; ++device) {
      cudaSetDevice(device);
      cudaDeviceReset();
    }
    cudaSetDevice(0);
    ASSERT_EQ(emu::OutstandingObjects().total(), 0);
    ASSERT_EQ(emu::OutstandingCommunicators(), 0);
  }
};

TEST_P(NcclFaultTest, AFailureAtAnyCallOfTheRuntimeEndsInAStatusAndLeavesNothing) {
  for (const ExchangeBy by : {ExchangeBy::kCalls, ExchangeBy::kKernels}) {
    for (const int32_t world_size : {1, 2}) {
      emu::ResetCalls();
      for (const absl::Status& status : LiveAll(world_size, by)) ASSERT_TRUE(status.ok()) << status;
      const int64_t num_calls = emu::NumCalls(GetParam().kind);
      ASSERT_GT(num_calls, 0);
      int num_failed = 0;
      // With a peer each failure takes as long as the peer hears of it.
      const int64_t step = std::max<int64_t>(num_calls / (world_size == 1 ? 200 : 12), 1);
      for (int64_t n = 1; n <= num_calls; n += step) {
        SCOPED_TRACE(GetParam().name + " " + std::to_string(n) + " of " +
                     std::to_string(num_calls) + ", " + std::string(ExchangeByName(by)));
        emu::ResetCalls();
        emu::FailNth(GetParam().kind, n, GetParam().error);
        const std::vector<absl::Status> statuses = LiveAll(world_size, by);
        for (const absl::Status& status : statuses) num_failed += !status.ok();
        ExpectEnded(statuses);
      }
      EXPECT_GT(num_failed, 0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Nccl, NcclFaultTest, testing::ValuesIn(kFaults),
                         [](const auto& info) { return info.param.name; });

class NcclCallFaultTest : public NcclFaultTest {};

TEST_P(NcclCallFaultTest, AFailureAtAnyCallOfNcclEndsInAStatusAndLeavesNothing) {
  for (const ExchangeBy by : {ExchangeBy::kCalls, ExchangeBy::kKernels}) {
    for (const int32_t world_size : {1, 2}) {
      emu::ResetNccl();
      for (const absl::Status& status : LiveAll(world_size, by)) ASSERT_TRUE(status.ok()) << status;
      const int64_t num_calls = emu::NumNcclCalls();
      for (int64_t n = 1; n <= num_calls; ++n) {
        SCOPED_TRACE(std::to_string(n) + " of " + std::to_string(num_calls) + ", " +
                     std::string(ExchangeByName(by)));
        emu::FailNthNcclCall(n, ncclSystemError);
        const std::vector<absl::Status> statuses = LiveAll(world_size, by);
        for (const absl::Status& status : statuses) EXPECT_FALSE(status.ok());
        ExpectEnded(statuses);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Nccl, NcclCallFaultTest, testing::Values(Fault{}));

}  // namespace
}  // namespace jevons

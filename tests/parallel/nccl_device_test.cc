// One rank over NCCL: what can be seen with a single device. The same on a device and under the
// emulator.
#include <cuda_runtime_api.h>
#include <nccl.h>

#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "parallel/nccl_communicator.h"
#include "parallel/thread_communicator.h"
#include "tests/support/status_matchers.h"

namespace jevons {
namespace {

constexpr size_t kBytes = 1 << 20;

#define CUDA_OK(...) ASSERT_STREQ(cudaGetErrorName(cudaSuccess), cudaGetErrorName(__VA_ARGS__))

int NumDevices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

class NcclOnDevice : public testing::Test {
 protected:
  void SetUp() override {
    if (NumDevices() == 0) GTEST_SKIP() << "needs a CUDA device";
    CUDA_OK(cudaSetDevice(0));
    CUDA_OK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    CUDA_OK(cudaMalloc(reinterpret_cast<void**>(&in_), kBytes));
    CUDA_OK(cudaMalloc(reinterpret_cast<void**>(&out_), kBytes));
    Join(ExchangeBy::kCalls);
  }
  void Join(ExchangeBy exchange_by) {
    alone_ = std::make_unique<ThreadGroup>(1);
    auto comm = CreateNcclCommunicator(
        *alone_->Join(0), {.device = 0, .stream = stream_, .exchange_by = exchange_by});
    ASSERT_TRUE(comm.ok()) << comm.status();
    comm_ = *std::move(comm);
  }
  void TearDown() override {
    comm_ = nullptr;
    cudaFree(in_);
    cudaFree(out_);
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  // in -> out without the first and the last 16 bytes, which a range leaves out.
  absl::Status Exchange() {
    const int64_t offset = 16;
    const int64_t bytes = kBytes - 32;
    return comm_->AllToAll({.send = in_,
                            .send_offsets = {&offset, 1},
                            .send_bytes = {&bytes, 1},
                            .recv = out_,
                            .recv_offsets = {&offset, 1},
                            .recv_bytes = {&bytes, 1}});
  }
  // Fills, exchanges and fills over, all queued: out has `value` where it got something, else 0xEE.
  absl::Status Step(int value) {
    if (cudaMemsetAsync(in_, value, kBytes, stream_) != cudaSuccess ||
        cudaMemsetAsync(out_, 0xEE, kBytes, stream_) != cudaSuccess) {
      return absl::InternalError("fill");
    }
    RETURN_IF_ERROR(Exchange());
    if (cudaMemsetAsync(in_, 0xDD, kBytes, stream_) != cudaSuccess) {
      return absl::InternalError("fill");
    }
    return absl::OkStatus();
  }
  void ExpectOut(int value) {
    std::vector<unsigned char> got(kBytes);
    std::vector<unsigned char> want(kBytes, static_cast<unsigned char>(value));
    std::fill_n(want.begin(), 16, 0xEE);
    std::fill_n(want.end() - 16, 16, 0xEE);
    CUDA_OK(cudaMemcpyAsync(got.data(), out_, kBytes, cudaMemcpyDeviceToHost, stream_));
    CUDA_OK(cudaStreamSynchronize(stream_));
    EXPECT_TRUE(got == want);
  }

  std::unique_ptr<ThreadGroup> alone_;
  cudaStream_t stream_ = nullptr;
  char* in_ = nullptr;
  char* out_ = nullptr;
  std::unique_ptr<Communicator> comm_;
};

TEST_F(NcclOnDevice, AnExchangeKeepsItsPlaceAmongTheOpsOfTheStream) {
  for (int value = 1; value < 20; ++value) {
    const absl::Status status = Step(value);
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(comm_->Wait().ok());
    ExpectOut(value);
  }
}

TEST_F(NcclOnDevice, ARecordedExchangeIsReplayed) {
  ASSERT_TRUE(Step(1).ok());
  ASSERT_TRUE(comm_->Wait().ok());
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  CUDA_OK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  const absl::Status status = Exchange();
  CUDA_OK(cudaStreamEndCapture(stream_, &graph));
  ASSERT_TRUE(status.ok()) << status;
  CUDA_OK(cudaGraphInstantiate(&exec, graph, 0));
  CUDA_OK(cudaGraphDestroy(graph));
  for (int value = 2; value < 20; ++value) {
    CUDA_OK(cudaMemsetAsync(in_, value, kBytes, stream_));
    CUDA_OK(cudaMemsetAsync(out_, 0xEE, kBytes, stream_));
    CUDA_OK(cudaGraphLaunch(exec, stream_));
    ASSERT_TRUE(comm_->Wait().ok());
    ExpectOut(value);
  }
  CUDA_OK(cudaGraphExecDestroy(exec));
}

// A rank that is alone reaches all others.
TEST_F(NcclOnDevice, KernelsExchangeInMemoryThatIsRegistered) {
  comm_ = nullptr;
  Join(ExchangeBy::kKernels);
  const auto shared = comm_->ReceiveMemory(kBytes);
  if (absl::IsUnimplemented(shared.status())) GTEST_SKIP() << shared.status();
  ASSERT_TRUE(shared.ok()) << shared.status();
  char* const before = std::exchange(out_, static_cast<char*>(*shared));
  for (int value = 1; value < 20; ++value) {
    const absl::Status status = Step(value);
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(comm_->Wait().ok());
    ExpectOut(value);
  }
  out_ = before;
}

TEST_F(NcclOnDevice, CallsOnHostValuesAndTheOthersGiveWhatOneRankHas) {
  std::vector<int64_t> values(10'000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int64_t>(i * i) - 7;
  const std::vector<int64_t> before = values;
  for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kMin, ReduceOp::kMax}) {
    const absl::Status status = comm_->AllReduce(std::span(values), op);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(values, before);
  }
  ASSERT_TRUE(comm_->Barrier(absl::Seconds(10)).ok());
  CUDA_OK(cudaMemsetAsync(in_, 5, kBytes, stream_));
  CUDA_OK(cudaMemsetAsync(out_, 0xEE, kBytes, stream_));
  ASSERT_TRUE(comm_->AllGather(in_ + 16, kBytes - 32, out_ + 16).ok());
  ASSERT_TRUE(comm_->Broadcast(out_ + 16, kBytes - 32, 0).ok());
  ASSERT_TRUE(comm_->Wait().ok());
  ExpectOut(5);
}

TEST_F(NcclOnDevice, AnAbortStaysAndTheStreamGoesOn) {
  ASSERT_TRUE(Step(1).ok());
  comm_->Abort("the operator pulled the plug");
  ExpectError(Exchange(), absl::StatusCode::kAborted, {"the operator pulled the plug"});
  ExpectError(comm_->Wait(), absl::StatusCode::kAborted, {"the operator pulled the plug"});
  CUDA_OK(cudaStreamSynchronize(stream_));
}

TEST_F(NcclOnDevice, APeerThatDoesNotComeIsADeadline) {
  ThreadGroup two(2);
  const auto peer = *two.Join(1);
  // It hears of the group's name and does not come.
  std::thread stays_away([&] {
    char id[NCCL_UNIQUE_ID_BYTES];
    EXPECT_TRUE(peer->Broadcast(id, sizeof(id), 0).ok());
  });
  const auto made = CreateNcclCommunicator(
      *two.Join(0), {.device = 0, .stream = stream_, .create_timeout = absl::Seconds(2)});
  stays_away.join();
  ExpectError(made, absl::StatusCode::kDeadlineExceeded, {"Create", "2s"});
}

// Runs where the others cannot.
TEST(NcclWithoutDevice, CreationIsAnErrorThatSaysSo) {
  if (NumDevices() > 0) GTEST_SKIP() << "there is a CUDA device";
  int place = 0;  // a stream that is never looked at
  ThreadGroup alone(1);
  const auto made = CreateNcclCommunicator(*alone.Join(0), {.device = 0, .stream = &place});
  ExpectError(made, absl::StatusCode::kInternal, {"device"});
}

}  // namespace
}  // namespace jevons

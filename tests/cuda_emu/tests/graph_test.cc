#include <functional>
#include <thread>

#include "tests/cuda_emu/tests/emu_test.h"

namespace jevons::emu {
namespace {

constexpr int kManySeeds = 200;
constexpr int kFewSeeds = 20;

class GraphTest : public EmuTest {
 protected:
  void SetUp() override {
    CUDA_OK(cudaMalloc(&value_, 2 * sizeof(*value_)));
    CUDA_OK(cudaMallocHost(&pinned_, 2 * sizeof(*pinned_)));
    for (cudaStream_t* stream : {&main_, &side_}) {
      CUDA_OK(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking));
    }
    for (cudaEvent_t* event : {&fork_, &join_}) CUDA_OK(cudaEventCreate(event));
  }
  void TearDown() override {
    for (cudaEvent_t event : {fork_, join_}) cudaEventDestroy(event);
    for (cudaStream_t stream : {main_, side_}) cudaStreamDestroy(stream);
    cudaFreeHost(pinned_);
    cudaFree(value_);
  }

  // Ends a capture that must have failed.
  void ExpectNoGraph(const char* error) {
    cudaGraph_t graph = nullptr;
    EXPECT_STREQ(cudaGetErrorName(cudaStreamEndCapture(main_, &graph)), error);
    EXPECT_EQ(graph, nullptr);
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusActive;
    EXPECT_CUDA(cudaSuccess, cudaStreamIsCapturing(main_, &status));
    EXPECT_EQ(status, cudaStreamCaptureStatusNone);
    EXPECT_CUDA(cudaSuccess, LaunchStep({value_}, main_));
    EXPECT_CUDA(cudaSuccess, cudaDeviceSynchronize());
    cudaGetLastError();
  }
  void ExpectInvalid() { ExpectNoGraph("cudaErrorStreamCaptureInvalidated"); }

  // Records `work` from main_ and makes a graph of it.
  cudaGraphExec_t Record(const std::function<void()>& work) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    EXPECT_CUDA(cudaSuccess, cudaStreamBeginCapture(main_, cudaStreamCaptureModeThreadLocal));
    work();
    EXPECT_CUDA(cudaSuccess, cudaStreamEndCapture(main_, &graph));
    EXPECT_CUDA(cudaSuccess, cudaGraphInstantiate(&exec, graph, 0));
    EXPECT_CUDA(cudaSuccess, cudaGraphDestroy(graph));
    return exec;
  }

  // main_ sets both values, side_ works on the second while main_ does on the first, and both end
  // in the first.
  void ForkAndJoin(bool forks = true, bool joins = true) {
    cudaMemcpyAsync(value_, pinned_, 2 * sizeof(*value_), cudaMemcpyHostToDevice, main_);
    if (forks) {
      cudaEventRecord(fork_, main_);
      cudaStreamWaitEvent(side_, fork_);
    }
    LaunchStep({value_ + 1, 10, 5}, side_);
    LaunchStep({value_, 2, 1}, main_);
    if (joins) {
      cudaEventRecord(join_, side_);
      cudaStreamWaitEvent(main_, join_);
    }
    cudaMemcpyAsync(value_, value_ + 1, sizeof(*value_), cudaMemcpyDeviceToDevice, main_);
    LaunchStep({value_, 1, 1}, main_);
  }

  int32_t* value_ = nullptr;
  int32_t* pinned_ = nullptr;
  cudaStream_t main_ = nullptr;
  cudaStream_t side_ = nullptr;
  cudaEvent_t fork_ = nullptr;
  cudaEvent_t join_ = nullptr;
};

TEST_F(GraphTest, AGraphDoesWhatItsCallsDoForEverySeed) {
  pinned_[0] = 1;
  for (int seed = 0; seed < kManySeeds; ++seed) {
    SetSeed(seed);
    pinned_[1] = seed;
    ForkAndJoin();
    ASSERT_EQ(ReadValue(value_), 10 * seed + 6);
    const cudaGraphExec_t exec = Record([&] { ForkAndJoin(); });
    for (int replay = 0; replay < 3; ++replay) {
      pinned_[1] = seed + 1000 * replay;
      CUDA_OK(cudaGraphLaunch(exec, main_));
      CUDA_OK(cudaStreamSynchronize(main_));
      ASSERT_EQ(ReadValue(value_), 10 * pinned_[1] + 6) << seed;
    }
    CUDA_OK(cudaGraphExecDestroy(exec));
  }
}

TEST_F(GraphTest, RecordingRunsNothing) {
  CUDA_OK(cudaMemset(value_, 0, sizeof(*value_)));
  const cudaGraphExec_t exec = Record([&] { LaunchStep({value_, 1, 5}, main_); });
  EXPECT_EQ(ReadValue(value_), 0);
  CUDA_OK(cudaGraphLaunch(exec, main_));
  CUDA_OK(cudaGraphLaunch(exec, main_));
  CUDA_OK(cudaGraphExecDestroy(exec));
  EXPECT_EQ(ReadValue(value_), 10);
}

TEST_F(GraphTest, NodesWithoutADependencyRunInAnyOrder) {
  int num_wrong = 0;
  for (int seed = 0; seed < kFewSeeds; ++seed) {
    SetSeed(seed);
    const cudaGraphExec_t exec = Record([&] {
      cudaMemsetAsync(value_, 0, sizeof(*value_), main_);
      cudaEventRecord(fork_, main_);
      cudaStreamWaitEvent(side_, fork_);
      LaunchStep({value_, 1, 3}, main_);
      LaunchStep({value_, 10, 0}, side_);
      cudaEventRecord(join_, side_);
      cudaStreamWaitEvent(main_, join_);
    });
    CUDA_OK(cudaGraphLaunch(exec, main_));
    num_wrong += ReadValue(value_) != 30;
    CUDA_OK(cudaGraphExecDestroy(exec));
  }
  EXPECT_GE(num_wrong, 2);
  EXPECT_LT(num_wrong, kFewSeeds);
}

TEST_F(GraphTest, AGraphMayBePartOfAnother) {
  const cudaGraphExec_t inner = Record([&] {
    LaunchStep({value_, 10, 1}, main_);
    LaunchStep({value_, 10, 2}, main_);
  });
  const cudaGraphExec_t outer = Record([&] {
    cudaMemsetAsync(value_, 0, sizeof(*value_), main_);
    EXPECT_CUDA(cudaSuccess, cudaGraphLaunch(inner, main_));
    LaunchStep({value_, 10, 3}, main_);
  });
  for (int seed = 0; seed < kFewSeeds; ++seed) {
    SetSeed(seed);
    CUDA_OK(cudaGraphLaunch(outer, main_));
    EXPECT_EQ(ReadValue(value_), 123);
  }
  CUDA_OK(cudaGraphExecDestroy(inner));
  CUDA_OK(cudaGraphExecDestroy(outer));
}

TEST_F(GraphTest, HostFunctionsAreReplayed) {
  int calls = 0;
  const cudaGraphExec_t exec = Record([&] {
    cudaLaunchHostFunc(
        main_, [](void* data) { ++*static_cast<int*>(data); }, &calls);
  });
  for (int i = 0; i < 3; ++i) CUDA_OK(cudaGraphLaunch(exec, main_));
  CUDA_OK(cudaStreamSynchronize(main_));
  EXPECT_EQ(calls, 3);
  CUDA_OK(cudaGraphExecDestroy(exec));
}

TEST_F(GraphTest, AForkThatIsNotJoinedIsAnError) {
  CUDA_OK(cudaStreamBeginCapture(main_, cudaStreamCaptureModeThreadLocal));
  ForkAndJoin(true, false);
  ExpectNoGraph("cudaErrorStreamCaptureUnjoined");
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusActive;
  CUDA_OK(cudaStreamIsCapturing(side_, &status));
  EXPECT_EQ(status, cudaStreamCaptureStatusNone);
}

TEST_F(GraphTest, WorkFromOutsideMayNotBeWaitedFor) {
  CUDA_OK(cudaEventRecord(join_, side_));
  CUDA_OK(cudaStreamBeginCapture(main_, cudaStreamCaptureModeThreadLocal));
  EXPECT_CUDA(cudaErrorStreamCaptureIsolation, cudaStreamWaitEvent(main_, join_));
  EXPECT_CUDA(cudaErrorStreamCaptureInvalidated, LaunchStep({value_}, main_));
  ExpectInvalid();
}

TEST_F(GraphTest, TwoCapturesDoNotMerge) {
  CUDA_OK(cudaStreamBeginCapture(main_, cudaStreamCaptureModeThreadLocal));
  CUDA_OK(cudaStreamBeginCapture(side_, cudaStreamCaptureModeThreadLocal));
  CUDA_OK(cudaEventRecord(fork_, side_));
  EXPECT_CUDA(cudaErrorStreamCaptureMerge, cudaStreamWaitEvent(main_, fork_));
  cudaGraph_t graph = nullptr;
  EXPECT_CUDA(cudaErrorStreamCaptureInvalidated, cudaStreamEndCapture(side_, &graph));
  ExpectInvalid();
}

TEST_F(GraphTest, CallsThatWaitEndACapture) {
  const std::function<cudaError_t()> waits[] = {
      [&] { return cudaStreamSynchronize(main_); },
      [&] { return cudaStreamQuery(main_); },
      [&] { return cudaDeviceSynchronize(); },
      [&] { return cudaMemcpy(pinned_, value_, 4, cudaMemcpyDeviceToHost); },
      [&] { return cudaMemset(value_, 0, 4); },
      [&] { return cudaEventSynchronize(join_); },
      [&] { return cudaEventQuery(join_); },
      [&] { return cudaMalloc(&pinned_, 16); },
      [&] { return cudaFree(value_); },
  };
  int32_t* const pinned = pinned_;
  for (const auto& wait : waits) {
    CUDA_OK(cudaStreamBeginCapture(main_, cudaStreamCaptureModeThreadLocal));
    EXPECT_CUDA(cudaErrorStreamCaptureUnsupported, wait());
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusActive;
    CUDA_OK(cudaStreamIsCapturing(main_, &status));
    EXPECT_EQ(status, cudaStreamCaptureStatusInvalidated);
    pinned_ = pinned;
    ExpectInvalid();
  }
}

TEST_F(GraphTest, ACapturedEventIsNotForTheHost) {
  for (const auto& call : {cudaEventSynchronize, cudaEventQuery}) {
    CUDA_OK(cudaStreamBeginCapture(main_, cudaStreamCaptureModeRelaxed));
    CUDA_OK(cudaEventRecord(fork_, main_));
    EXPECT_CUDA(cudaErrorCapturedEvent, call(fork_));
    ExpectInvalid();
  }
  EXPECT_CUDA(cudaErrorCapturedEvent, cudaStreamWaitEvent(side_, fork_));
  CUDA_OK(cudaEventRecord(fork_, side_));
  CUDA_OK(cudaEventSynchronize(fork_));
}

TEST_F(GraphTest, TheDefaultStreamMayNotMeetABlockingCapture) {
  cudaStream_t blocking = nullptr;
  cudaGraph_t graph = nullptr;
  CUDA_OK(cudaStreamCreate(&blocking));
  CUDA_OK(cudaStreamBeginCapture(blocking, cudaStreamCaptureModeRelaxed));
  EXPECT_CUDA(cudaErrorStreamCaptureImplicit, cudaMemset(value_, 0, 4));
  EXPECT_CUDA(cudaErrorStreamCaptureInvalidated, cudaStreamEndCapture(blocking, &graph));
  CUDA_OK(cudaStreamDestroy(blocking));
  EXPECT_CUDA(cudaErrorStreamCaptureUnsupported,
              cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeRelaxed));
}

TEST_F(GraphTest, AModeSaysWhichThreadsMayAllocate) {
  const auto allocate = [] {
    char* data = nullptr;
    const cudaError_t error = cudaMalloc(&data, 16);
    cudaStreamCaptureMode relaxed = cudaStreamCaptureModeRelaxed;
    cudaThreadExchangeStreamCaptureMode(&relaxed);
    if (data != nullptr) cudaFree(data);
    cudaThreadExchangeStreamCaptureMode(&relaxed);
    return error;
  };
  const auto allocate_elsewhere = [&] {
    cudaError_t error = cudaSuccess;
    std::thread([&] { error = allocate(); }).join();
    return error;
  };
  CUDA_OK(cudaStreamBeginCapture(main_, cudaStreamCaptureModeRelaxed));
  EXPECT_CUDA(cudaSuccess, allocate());
  EXPECT_CUDA(cudaSuccess, allocate_elsewhere());
  cudaGraph_t graph = nullptr;
  CUDA_OK(cudaStreamEndCapture(main_, &graph));
  CUDA_OK(cudaGraphDestroy(graph));
  CUDA_OK(cudaStreamBeginCapture(main_, cudaStreamCaptureModeThreadLocal));
  EXPECT_CUDA(cudaSuccess, allocate_elsewhere());
  EXPECT_CUDA(cudaErrorStreamCaptureUnsupported, allocate());
  ExpectInvalid();
  CUDA_OK(cudaStreamBeginCapture(main_, cudaStreamCaptureModeGlobal));
  EXPECT_CUDA(cudaErrorStreamCaptureUnsupported, allocate_elsewhere());
  ExpectInvalid();
}

TEST_F(GraphTest, ACaptureEndsWhereItBegan) {
  cudaGraph_t graph = nullptr;
  EXPECT_CUDA(cudaErrorIllegalState, cudaStreamEndCapture(main_, &graph));
  CUDA_OK(cudaStreamBeginCapture(main_, cudaStreamCaptureModeThreadLocal));
  EXPECT_CUDA(cudaErrorIllegalState,
              cudaStreamBeginCapture(main_, cudaStreamCaptureModeThreadLocal));
  cudaError_t elsewhere = cudaSuccess;
  std::thread([&] { elsewhere = cudaStreamEndCapture(main_, &graph); }).join();
  EXPECT_CUDA(cudaErrorStreamCaptureWrongThread, elsewhere);
  CUDA_OK(cudaEventRecord(fork_, main_));
  CUDA_OK(cudaStreamWaitEvent(side_, fork_));
  EXPECT_CUDA(cudaErrorStreamCaptureUnmatched, cudaStreamEndCapture(side_, &graph));
  ExpectInvalid();
}

TEST_F(GraphTest, AStreamDestroyedUnderCaptureLeavesNothing) {
  cudaStream_t stream = nullptr;
  CUDA_OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  CUDA_OK(cudaStreamDestroy(stream));
  CUDA_OK(cudaDeviceSynchronize());
}

TEST_F(GraphTest, ANodeThatFailsFailsTheDevice) {
  const cudaGraphExec_t exec = Record([&] {
    LaunchStep({value_}, main_);
    LaunchStep({value_}, main_);
  });
  FailNth(CallKind::kExecution, 2, cudaErrorLaunchFailure);
  CUDA_OK(cudaGraphLaunch(exec, main_));
  EXPECT_CUDA(cudaErrorLaunchFailure, cudaStreamSynchronize(main_));
  CUDA_OK(cudaGraphExecDestroy(exec));
}

TEST_F(GraphTest, APlannedFailureOfAnyGraphCallLeavesTheStreamUsable) {
  for (int64_t n = 1; n <= 4; ++n) {
    FailNth(CallKind::kGraph, n, cudaErrorUnknown);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    cudaError_t error = cudaStreamBeginCapture(main_, cudaStreamCaptureModeThreadLocal);
    if (error == cudaSuccess) {
      LaunchStep({value_}, main_);
      error = cudaStreamEndCapture(main_, &graph);
    }
    if (error == cudaSuccess) error = cudaGraphInstantiate(&exec, graph, 0);
    if (error == cudaSuccess) error = cudaGraphLaunch(exec, main_);
    EXPECT_CUDA(cudaErrorUnknown, error) << n;
    if (graph != nullptr) cudaGraphDestroy(graph);
    if (exec != nullptr) cudaGraphExecDestroy(exec);
    CUDA_OK(LaunchStep({value_}, main_));
    CUDA_OK(cudaStreamSynchronize(main_));
  }
}

}  // namespace
}  // namespace jevons::emu

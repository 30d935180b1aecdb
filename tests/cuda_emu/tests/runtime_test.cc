#include "tests/cuda_emu/runtime.h"

#include <atomic>
#include <functional>
#include <thread>

#include "tests/cuda_emu/tests/emu_test.h"

namespace jevons::emu {
namespace {

constexpr int kManySeeds = 200;
constexpr int kFewSeeds = 20;

class RuntimeTest : public EmuTest {};

// Two streams write one value, the second relies on the first. Gives what comes out.
int32_t RunTwoStreams(uint64_t seed, bool with_event) {
  SetSeed(seed);
  int32_t* value = nullptr;
  cudaStream_t first = nullptr;
  cudaStream_t second = nullptr;
  cudaEvent_t event = nullptr;
  cudaMalloc(&value, sizeof(*value));
  cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking);
  cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking);
  cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  cudaMemsetAsync(value, 0, sizeof(*value), first);
  LaunchStep({value, 1, 3}, first);
  if (with_event) {
    cudaEventRecord(event, first);
    cudaStreamWaitEvent(second, event);
  }
  LaunchStep({value, 10, 0}, second);
  cudaStreamSynchronize(second);
  const int32_t result = ReadValue(value);
  cudaEventDestroy(event);
  cudaStreamDestroy(first);
  cudaStreamDestroy(second);
  cudaFree(value);
  return result;
}

TEST_F(RuntimeTest, AnEventOrdersTwoStreamsForEverySeed) {
  for (int seed = 0; seed < kManySeeds; ++seed) ASSERT_EQ(RunTwoStreams(seed, true), 30) << seed;
}

TEST_F(RuntimeTest, AMissingEventShowsWithinAFewSeeds) {
  int num_wrong = 0;
  for (int seed = 0; seed < kFewSeeds; ++seed) num_wrong += RunTwoStreams(seed, false) != 30;
  EXPECT_GE(num_wrong, 2);
  EXPECT_LT(num_wrong, kFewSeeds);
}

TEST_F(RuntimeTest, OneStreamKeepsItsOrder) {
  for (int seed = 0; seed < kManySeeds; ++seed) {
    SetSeed(seed);
    int32_t* value = nullptr;
    cudaStream_t stream = nullptr;
    CUDA_OK(cudaMalloc(&value, sizeof(*value)));
    CUDA_OK(cudaStreamCreate(&stream));
    CUDA_OK(cudaMemsetAsync(value, 0, sizeof(*value), stream));
    for (int i = 1; i <= 5; ++i) CUDA_OK(LaunchStep({value, 10, i}, stream));
    CUDA_OK(cudaStreamSynchronize(stream));
    EXPECT_EQ(ReadValue(value), 12345);
    CUDA_OK(cudaStreamDestroy(stream));
    CUDA_OK(cudaFree(value));
  }
}

TEST_F(RuntimeTest, LaunchesAreChecked) {
  char* data = nullptr;
  CUDA_OK(cudaMalloc(&data, 16));
  const auto launch = [&](dim3 grid, int block, int smem_bytes) {
    return EnqueueKernel(nullptr, {"k", grid, block, smem_bytes}, [] {});
  };
  EXPECT_CUDA(cudaErrorInvalidConfiguration, launch(dim3(1), 1025, 0));
  EXPECT_CUDA(cudaErrorInvalidConfiguration, launch(dim3(1), 0, 0));
  EXPECT_CUDA(cudaErrorInvalidConfiguration, launch(dim3(1, 65536), 32, 0));
  EXPECT_CUDA(cudaErrorInvalidValue, launch(dim3(1), 32, 227 * 1024 + 1));
  EXPECT_CUDA(cudaErrorInvalidResourceHandle,
              EnqueueKernel(reinterpret_cast<cudaStream_t>(0x500), {"k", dim3(1), 32, 0}, [] {}));
  EXPECT_CUDA(cudaErrorInvalidResourceHandle, cudaGetLastError());
  EXPECT_CUDA(cudaSuccess, cudaGetLastError());
  // The launcher sets the attribute; the limit is that of the architecture.
  EXPECT_CUDA(cudaSuccess, LaunchWrite({data, 16}, nullptr, 227 * 1024));
  SetDevice({.major = 8});
  EXPECT_CUDA(cudaErrorInvalidValue, LaunchWrite({data, 16}, nullptr, 227 * 1024));
  EXPECT_CUDA(cudaSuccess, LaunchWrite({data, 16}, nullptr, 163 * 1024));
  CUDA_OK(cudaDeviceSynchronize());
  cudaGetLastError();
  CUDA_OK(cudaFree(data));
}

void NoKernel() {}

TEST_F(RuntimeTest, MuchSharedMemoryNeedsTheAttribute) {
  cudaLaunchConfig_t config = {};
  config.blockDim = dim3(32);
  config.dynamicSmemBytes = 48 * 1024 + 1;
  EXPECT_CUDA(cudaErrorInvalidValue, cudaLaunchKernelEx(&config, NoKernel));
  CUDA_OK(cudaFuncSetAttribute(NoKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 49 * 1024));
  EXPECT_CUDA(cudaSuccess, cudaLaunchKernelEx(&config, NoKernel));
  EXPECT_CUDA(cudaErrorInvalidValue,
              cudaFuncSetAttribute(NoKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 1 << 20));
  CUDA_OK(cudaDeviceSynchronize());
}

TEST_F(RuntimeTest, AFailureOfTheDeviceStays) {
  int32_t* value = nullptr;
  CUDA_OK(cudaMalloc(&value, sizeof(*value)));
  FailNth(CallKind::kExecution, 2, cudaErrorLaunchFailure);
  CUDA_OK(LaunchStep({value}, nullptr));
  LaunchStep({value}, nullptr);
  EXPECT_CUDA(cudaErrorLaunchFailure, cudaDeviceSynchronize());
  EXPECT_CUDA(cudaErrorLaunchFailure, LaunchStep({value}, nullptr));
  EXPECT_CUDA(cudaErrorLaunchFailure, cudaGetLastError());
  EXPECT_CUDA(cudaErrorLaunchFailure, cudaGetLastError());
  EXPECT_CUDA(cudaErrorLaunchFailure, cudaFree(value));
  CUDA_OK(cudaDeviceReset());
  CUDA_OK(cudaMalloc(&value, sizeof(*value)));
  CUDA_OK(cudaFree(value));
}

TEST_F(RuntimeTest, EventsAreDoneWhenNeverRecorded) {
  cudaEvent_t event = nullptr;
  cudaStream_t stream = nullptr;
  CUDA_OK(cudaEventCreate(&event));
  CUDA_OK(cudaStreamCreate(&stream));
  CUDA_OK(cudaEventQuery(event));
  CUDA_OK(cudaEventSynchronize(event));
  CUDA_OK(cudaStreamWaitEvent(stream, event));
  CUDA_OK(cudaStreamSynchronize(stream));
  CUDA_OK(cudaEventDestroy(event));
  EXPECT_CUDA(cudaErrorInvalidResourceHandle, cudaEventRecord(event, stream));
  CUDA_OK(cudaStreamDestroy(stream));
  EXPECT_CUDA(cudaErrorInvalidResourceHandle, cudaStreamSynchronize(stream));
}

TEST_F(RuntimeTest, QueriesComeToAnEnd) {
  int32_t* value = nullptr;
  cudaEvent_t events[2] = {};
  cudaStream_t stream = nullptr;
  CUDA_OK(cudaMalloc(&value, sizeof(*value)));
  CUDA_OK(cudaStreamCreate(&stream));
  for (cudaEvent_t& event : events) CUDA_OK(cudaEventCreate(&event));
  CUDA_OK(cudaEventRecord(events[0], stream));
  CUDA_OK(LaunchStep({value}, stream));
  CUDA_OK(cudaEventRecord(events[1], stream));
  cudaError_t error = cudaErrorNotReady;
  while (error == cudaErrorNotReady) error = cudaEventQuery(events[1]);
  CUDA_OK(error);
  while ((error = cudaStreamQuery(stream)) == cudaErrorNotReady) continue;
  CUDA_OK(error);
  float milliseconds = -1;
  CUDA_OK(cudaEventElapsedTime(&milliseconds, events[0], events[1]));
  EXPECT_GE(milliseconds, 0);
  for (cudaEvent_t event : events) CUDA_OK(cudaEventDestroy(event));
  CUDA_OK(cudaStreamDestroy(stream));
  CUDA_OK(cudaFree(value));
}

TEST_F(RuntimeTest, TheDefaultStreamIsOrderedWithBlockingStreams) {
  for (int seed = 0; seed < kManySeeds; ++seed) {
    SetSeed(seed);
    int32_t* value = nullptr;
    cudaStream_t stream = nullptr;
    CUDA_OK(cudaMalloc(&value, sizeof(*value)));
    CUDA_OK(cudaStreamCreate(&stream));
    CUDA_OK(cudaMemsetAsync(value, 0, sizeof(*value), stream));
    CUDA_OK(LaunchStep({value, 10, 1}, nullptr));
    CUDA_OK(LaunchStep({value, 10, 2}, stream));
    int32_t host = 0;
    CUDA_OK(cudaMemcpy(&host, value, sizeof(host), cudaMemcpyDeviceToHost));
    EXPECT_EQ(host, 12);
    CUDA_OK(cudaStreamDestroy(stream));
    CUDA_OK(cudaFree(value));
  }
}

TEST_F(RuntimeTest, HostFunctionsRunInOrderAndMayBlockOnOtherThreads) {
  for (int seed = 0; seed < kFewSeeds; ++seed) {
    SetSeed(seed);
    std::atomic<int> calls{0};
    std::mutex held;
    struct Args {
      std::atomic<int>* calls;
      std::mutex* held;
    } args{&calls, &held};
    cudaStream_t stream = nullptr;
    CUDA_OK(cudaStreamCreate(&stream));
    held.lock();
    CUDA_OK(cudaLaunchHostFunc(
        stream,
        [](void* data) {
          const std::lock_guard<std::mutex> lock(*static_cast<Args*>(data)->held);
          ++*static_cast<Args*>(data)->calls;
        },
        &args));
    cudaStreamQuery(stream);
    EXPECT_EQ(calls, 0);
    held.unlock();
    CUDA_OK(cudaStreamSynchronize(stream));
    EXPECT_EQ(calls, 1);
    CUDA_OK(cudaStreamDestroy(stream));
  }
}

TEST_F(RuntimeTest, ThreadsMayHaveTheirOwnStreams) {
  std::vector<std::thread> threads;
  std::atomic<int> num_right{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      int32_t* value = nullptr;
      cudaStream_t stream = nullptr;
      cudaMalloc(&value, sizeof(*value));
      cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
      cudaMemsetAsync(value, 0, sizeof(*value), stream);
      for (int i = 0; i < 20; ++i) LaunchStep({value, 1, 1}, stream);
      int32_t host = 0;
      cudaMemcpyAsync(&host, value, sizeof(host), cudaMemcpyDeviceToHost, stream);
      num_right += host == 20;
      cudaStreamDestroy(stream);
      cudaFree(value);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_right, 4);
}

TEST_F(RuntimeTest, DevicesSayWhatTheyWereSetTo) {
  SetDevice({.count = 2, .major = 10, .num_sms = 7, .memory_bytes = 5000});
  int count = 0;
  CUDA_OK(cudaGetDeviceCount(&count));
  EXPECT_EQ(count, 2);
  CUDA_OK(cudaSetDevice(1));
  EXPECT_CUDA(cudaErrorInvalidDevice, cudaSetDevice(2));
  int device = 0;
  CUDA_OK(cudaGetDevice(&device));
  EXPECT_EQ(device, 1);
  cudaDeviceProp prop;
  CUDA_OK(cudaGetDeviceProperties(&prop, 1));
  EXPECT_EQ(prop.major, 10);
  EXPECT_EQ(prop.multiProcessorCount, 7);
  EXPECT_EQ(prop.totalGlobalMem, 5000u);
  int smem_bytes = 0;
  CUDA_OK(cudaDeviceGetAttribute(&smem_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, 1));
  EXPECT_EQ(smem_bytes, 232448);
  SetDevice({.count = 0});
  EXPECT_CUDA(cudaErrorNoDevice, cudaGetDeviceCount(&count));
  SetDevice({});
  cudaGetLastError();
}

// A small program that looks at every error and releases what it has.
cudaError_t RunProgram(int32_t* result) {
  int32_t* value = nullptr;
  int32_t* pinned = nullptr;
  cudaStream_t stream = nullptr;
  cudaEvent_t event = nullptr;
  const std::function<cudaError_t()> steps[] = {
      [&] { return cudaMalloc(&value, sizeof(*value)); },
      [&] { return cudaMallocHost(&pinned, sizeof(*pinned)); },
      [&] { return cudaStreamCreate(&stream); },
      [&] { return cudaEventCreate(&event); },
      [&] { return cudaMemsetAsync(value, 0, sizeof(*value), stream); },
      [&] {
        return LaunchStep({value, 1, 7}, stream);
      },
      [&] { return cudaMemcpyAsync(pinned, value, 4, cudaMemcpyDeviceToHost, stream); },
      [&] { return cudaEventRecord(event, stream); },
      [&] { return cudaEventSynchronize(event); },
      [&] { return cudaDeviceSynchronize(); },
  };
  cudaError_t error = cudaSuccess;
  for (const auto& step : steps) {
    if (error == cudaSuccess) error = step();
  }
  if (error == cudaSuccess) *result = *pinned;
  if (event != nullptr) cudaEventDestroy(event);
  if (stream != nullptr) cudaStreamDestroy(stream);
  cudaFreeHost(pinned);
  cudaFree(value);
  return error;
}

TEST_F(RuntimeTest, AFailureOfAnyCallReachesTheCaller) {
  int32_t result = 0;
  ResetCalls();
  CUDA_OK(RunProgram(&result));
  EXPECT_EQ(result, 7);
  int64_t num_calls[kNumCallKinds] = {};
  for (int kind = 0; kind < kNumCallKinds; ++kind) {
    num_calls[kind] = NumCalls(static_cast<CallKind>(kind));
  }
  EXPECT_EQ(num_calls[static_cast<int>(CallKind::kAllocation)], 2);
  EXPECT_EQ(num_calls[static_cast<int>(CallKind::kCopy)], 2);
  for (int kind = 0; kind < kNumCallKinds; ++kind) {
    for (int64_t n = 1; n <= num_calls[kind]; ++n) {
      FailNth(static_cast<CallKind>(kind), n, cudaErrorUnknown);
      EXPECT_CUDA(cudaErrorUnknown, RunProgram(&result)) << "kind " << kind << " call " << n;
      EXPECT_EQ(OutstandingObjects().total(), 0);
      CUDA_OK(cudaDeviceReset());
      cudaGetLastError();
    }
  }
  ResetCalls();
  CUDA_OK(RunProgram(&result));
}

TEST_F(RuntimeTest, ErrorsHaveNamesAndTexts) {
  EXPECT_STREQ(cudaGetErrorName(cudaErrorMemoryAllocation), "cudaErrorMemoryAllocation");
  EXPECT_STREQ(cudaGetErrorString(cudaErrorMemoryAllocation), "out of memory");
}

}  // namespace
}  // namespace jevons::emu

#include "tests/cuda_emu/memory.h"

#include <sanitizer/asan_interface.h>

#include <cmath>

#include "tests/cuda_emu/tests/emu_test.h"

namespace jevons::emu {
namespace {

constexpr int kFewSeeds = 20;

class MemoryTest : public EmuTest {};

TEST_F(MemoryTest, PinnedMemoryThatChangesBeforeItsCopyRanShows) {
  int num_wrong = 0;
  for (int seed = 0; seed < kFewSeeds; ++seed) {
    SetSeed(seed);
    int32_t* value = nullptr;
    int32_t* pinned = nullptr;
    cudaStream_t stream = nullptr;
    CUDA_OK(cudaMalloc(&value, sizeof(*value)));
    CUDA_OK(cudaMallocHost(&pinned, sizeof(*pinned)));
    CUDA_OK(cudaStreamCreate(&stream));
    *pinned = 1;
    CUDA_OK(cudaMemcpyAsync(value, pinned, sizeof(*value), cudaMemcpyHostToDevice, stream));
    *pinned = 2;
    CUDA_OK(cudaStreamSynchronize(stream));
    num_wrong += ReadValue(value) != 1;
    CUDA_OK(cudaStreamDestroy(stream));
    CUDA_OK(cudaFreeHost(pinned));
    CUDA_OK(cudaFree(value));
  }
  EXPECT_GE(num_wrong, 2);
}

TEST_F(MemoryTest, PinnedMemoryFreedBeforeItsCopyRanIsAMisuse) {
  int num_found = 0;
  for (int seed = 0; seed < kFewSeeds; ++seed) {
    SetSeed(seed);
    int32_t* value = nullptr;
    int32_t* pinned = nullptr;
    CUDA_OK(cudaMalloc(&value, sizeof(*value)));
    CUDA_OK(cudaMallocHost(&pinned, sizeof(*pinned)));
    CUDA_OK(cudaMemcpyAsync(value, pinned, sizeof(*value), cudaMemcpyHostToDevice));
    cudaFreeHost(pinned);
    num_found += cudaDeviceSynchronize() == cudaErrorIllegalAddress && LastMisuse() != "";
    cudaDeviceReset();
  }
  EXPECT_GE(num_found, 2);
}

TEST_F(MemoryTest, PageableMemoryIsReadAtTheCall) {
  int32_t* value = nullptr;
  cudaStream_t stream = nullptr;
  CUDA_OK(cudaMalloc(&value, sizeof(*value)));
  CUDA_OK(cudaStreamCreate(&stream));
  for (int seed = 0; seed < kFewSeeds; ++seed) {
    SetSeed(seed);
    int32_t host = seed;
    CUDA_OK(cudaMemcpyAsync(value, &host, sizeof(host), cudaMemcpyHostToDevice, stream));
    host = -5;
    CUDA_OK(cudaMemcpyAsync(&host, value, sizeof(host), cudaMemcpyDeviceToHost, stream));
    EXPECT_EQ(host, seed);  // into pageable memory: the call waits
  }
  CUDA_OK(cudaStreamDestroy(stream));
  CUDA_OK(cudaFree(value));
}

TEST_F(MemoryTest, CopiesOfRowsKeepTheirPitch) {
  const char host[6] = {1, 2, 3, 4, 5, 6};
  char back[6] = {};
  char* data = nullptr;
  CUDA_OK(cudaMalloc(&data, 16));
  CUDA_OK(cudaMemcpy2D(data, 8, host, 3, 2, 2, cudaMemcpyHostToDevice));
  CUDA_OK(cudaMemcpy2D(back, 3, data, 8, 2, 2, cudaMemcpyDeviceToHost));
  EXPECT_EQ(std::vector<char>(back, back + 6), (std::vector<char>{1, 2, 0, 4, 5, 0}));
  EXPECT_CUDA(cudaErrorInvalidPitchValue,
              cudaMemcpy2D(data, 1, host, 3, 2, 2, cudaMemcpyHostToDevice));
  CUDA_OK(cudaFree(data));
}

TEST_F(MemoryTest, TheKindOfACopyMustFitItsPointers) {
  int32_t host = 0;
  int32_t* value = nullptr;
  CUDA_OK(cudaMalloc(&value, sizeof(*value)));
  EXPECT_CUDA(cudaErrorInvalidValue, cudaMemcpy(value, &host, 4, cudaMemcpyDeviceToHost));
  EXPECT_CUDA(cudaErrorInvalidValue, cudaMemcpy(value, &host, 4, cudaMemcpyDeviceToDevice));
  EXPECT_CUDA(cudaErrorInvalidValue, cudaMemcpy(&host, value, 4, cudaMemcpyHostToDevice));
  EXPECT_CUDA(cudaErrorInvalidValue, cudaMemset(&host, 0, 4));
  EXPECT_CUDA(cudaSuccess, cudaMemcpy(&host, value, 4, cudaMemcpyDefault));
  CUDA_OK(cudaFree(value));
}

TEST_F(MemoryTest, ACopyBeyondAnAllocationIsAMisuse) {
  const char host[8] = {};
  char* data = nullptr;
  CUDA_OK(cudaMalloc(&data, 7));
  EXPECT_CUDA(cudaErrorInvalidValue, cudaMemcpy(data, host, 8, cudaMemcpyHostToDevice));
  EXPECT_NE(LastMisuse().find("8 bytes reaches out"), std::string::npos);
  CUDA_OK(cudaFree(data));
}

TEST_F(MemoryTest, FreshMemoryIsNanAndAligned) {
  float* data = nullptr;
  float back[3] = {};
  CUDA_OK(cudaMalloc(&data, sizeof(back)));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 256, 0u);
  CUDA_OK(cudaMemcpy(back, data, sizeof(back), cudaMemcpyDeviceToHost));
  for (const float x : back) EXPECT_TRUE(std::isnan(x));
  CUDA_OK(cudaFree(data));
}

#if !defined(__SANITIZE_ADDRESS__)
TEST_F(MemoryTest, AWritePastABufferNamesItsKernel) {
  for (const int64_t offset : {-1, 100}) {
    char* data = nullptr;
    CUDA_OK(cudaMalloc(&data, 100));
    CUDA_OK(LaunchWrite({data + offset, 1}, nullptr));
    CUDA_OK(cudaDeviceSynchronize());
    const std::string misuse = LastMisuse();
    EXPECT_NE(misuse.find("allocation of 100 bytes"), std::string::npos) << misuse;
    EXPECT_NE(misuse.find("WriteKernel"), std::string::npos) << misuse;
    EXPECT_NE(misuse.find("JEVONS_EMU_SEED="), std::string::npos) << misuse;
    CUDA_OK(cudaFree(data));
  }
}

TEST_F(MemoryTest, AHostWritePastABufferIsFoundAtItsRelease) {
  char* pinned = nullptr;
  CUDA_OK(cudaMallocHost(&pinned, 10));
  pinned[10] = 0;
  CUDA_OK(cudaFreeHost(pinned));
  EXPECT_NE(LastMisuse(), "");
}
#else
TEST_F(MemoryTest, TheGuardsOfABufferArePoisoned) {
  char* data[2] = {};
  CUDA_OK(cudaMalloc(&data[0], 100));
  CUDA_OK(cudaMallocHost(&data[1], 100));
  for (const char* d : data) {
    EXPECT_TRUE(__asan_address_is_poisoned(d - 1));
    EXPECT_FALSE(__asan_address_is_poisoned(d));
    EXPECT_FALSE(__asan_address_is_poisoned(d + 99));
    EXPECT_TRUE(__asan_address_is_poisoned(d + 100));
  }
  CUDA_OK(cudaFree(data[0]));
  CUDA_OK(cudaFreeHost(data[1]));
}
#endif

TEST_F(MemoryTest, FreeingTwiceIsAMisuse) {
  char* data = nullptr;
  CUDA_OK(cudaMalloc(&data, 10));
  CUDA_OK(cudaFree(data));
  EXPECT_CUDA(cudaErrorInvalidValue, cudaFree(data));
  EXPECT_NE(LastMisuse(), "");
  EXPECT_CUDA(cudaSuccess, cudaFree(nullptr));
}

TEST_F(MemoryTest, MemoryHasAnEnd) {
  SetDevice({.memory_bytes = 1000});
  size_t free = 0;
  size_t total = 0;
  char* data[3] = {};
  CUDA_OK(cudaMalloc(&data[0], 600));
  CUDA_OK(cudaMemGetInfo(&free, &total));
  EXPECT_EQ(free, 400u);
  EXPECT_EQ(total, 1000u);
  EXPECT_CUDA(cudaErrorMemoryAllocation, cudaMalloc(&data[1], 401));
  EXPECT_EQ(data[1], nullptr);
  CUDA_OK(cudaMalloc(&data[2], 400));
  EXPECT_EQ(OutstandingAllocations(), 2);
  for (char* d : data) CUDA_OK(cudaFree(d));
}

TEST_F(MemoryTest, BytesReadAreCountedByAllocation) {
  char* data[2] = {};
  for (char*& d : data) CUDA_OK(cudaMalloc(&d, 64));
  ResetCounters();
  CheckGlobalRead(data[0], 16);
  CheckGlobalRead(data[0] + 48, 16);
  CheckGlobalRead(data[1], 4);
  EXPECT_EQ(GlobalBytesRead(), 36);
  EXPECT_EQ(GlobalBytesRead(data[0] + 5), 32);
  EXPECT_EQ(GlobalBytesRead(data[1]), 4);
  CheckGlobalRead(data[0] + 49, 16);
  EXPECT_NE(LastMisuse(), "");
  CheckGlobalWrite(data[0] - 1, 1);
  EXPECT_NE(LastMisuse(), "");
  ResetCounters();
  EXPECT_EQ(GlobalBytesRead(), 0);
  for (char* d : data) CUDA_OK(cudaFree(d));
}

}  // namespace
}  // namespace jevons::emu

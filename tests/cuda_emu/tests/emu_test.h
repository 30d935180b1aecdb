// What the tests of the emulated runtime share.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "tests/cuda_emu/emulator.h"
#include "tests/cuda_emu/runtime.h"

#define EXPECT_CUDA(expected, ...) EXPECT_STREQ(#expected, cudaGetErrorName(__VA_ARGS__))
#define ASSERT_CUDA(expected, ...) ASSERT_STREQ(#expected, cudaGetErrorName(__VA_ARGS__))
#define CUDA_OK(...) ASSERT_CUDA(cudaSuccess, __VA_ARGS__)

namespace jevons::emu {

// Each test begins with one fresh device, and ends with nothing outstanding and no misuse that it
// did not look at.
class EmuTest : public ::testing::Test {
 protected:
  EmuTest() {
    TakeMisuses(true);
    LastMisuse();
    SetSeed(1);
    SetDevice({});
    ResetCalls();
  }
  ~EmuTest() override {
    ResetCalls();
    EXPECT_EQ(OutstandingObjects().total(), 0);
    EXPECT_EQ(LastMisuse(), "");
    TakeMisuses(false);
    cudaDeviceReset();
    cudaGetLastError();
  }
};

struct StepParams {
  int32_t* value = nullptr;
  int32_t factor = 1;
  int32_t term = 0;
};
// Queues value = value * factor + term.
cudaError_t LaunchStep(const StepParams& params, cudaStream_t stream);

struct WriteParams {
  char* at = nullptr;
  int64_t bytes = 0;
};
// Queues a plain write of zeros.
cudaError_t LaunchWrite(const WriteParams& params, cudaStream_t stream, int smem_bytes = 0);

// Waits for the device, and gives what is there; -1 where that fails.
int32_t ReadValue(const int32_t* value);

}  // namespace jevons::emu

#include "tests/cuda_emu/tests/emu_test.h"

#include "cuda/device/launch.h"
#include "cuda/device/thread.h"

namespace jevons::emu {
namespace {

__global__ void __launch_bounds__(32) StepKernel(const __grid_constant__ StepParams params) {
  if (device::ThreadIdx() == 0) *params.value = *params.value * params.factor + params.term;
}

__global__ void __launch_bounds__(32) WriteKernel(const __grid_constant__ WriteParams params) {
  if (device::ThreadIdx() != 0) return;
  for (int64_t i = 0; i < params.bytes; ++i) params.at[i] = 0;
}

}  // namespace

cudaError_t LaunchStep(const StepParams& params, cudaStream_t stream) {
  return cuda::Launch(StepKernel, {.block = 32}, stream, params);
}

cudaError_t LaunchWrite(const WriteParams& params, cudaStream_t stream, int smem_bytes) {
  return cuda::Launch(WriteKernel, {.block = 32, .smem_bytes = smem_bytes}, stream, params);
}

int32_t ReadValue(const int32_t* value) {
  int32_t out = -1;
  if (cudaDeviceSynchronize() != cudaSuccess) return -1;
  cudaMemcpy(&out, value, sizeof(out), cudaMemcpyDeviceToHost);
  return out;
}

}  // namespace jevons::emu

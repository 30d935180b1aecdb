// The one way to start a kernel.
#pragma once

#include <cuda_runtime.h>

#include <utility>

namespace jevons::cuda {

struct LaunchShape {
  dim3 grid = dim3(1);
  int block = 128;     // threads, a multiple of 32
  int smem_bytes = 0;  // dynamic shared memory
  bool early = false;  // may begin while the kernel before runs: see WaitForKernelBefore
};

// Queues the kernel. An empty grid is a success and starts nothing. Returns the launch's error;
// nothing waits.
template <typename... Params, typename... Args>
cudaError_t Launch(void (*kernel)(Params...), const LaunchShape& shape, cudaStream_t stream,
                   Args&&... args) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return cudaSuccess;
  constexpr int kDefaultSmemBytes = 48 * 1024;
  if (shape.smem_bytes > kDefaultSmemBytes) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, shape.smem_bytes);
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = dim3(static_cast<unsigned>(shape.block));
  config.dynamicSmemBytes = static_cast<size_t>(shape.smem_bytes);
  config.stream = stream;
  cudaLaunchAttribute early;
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &early;
  config.numAttrs = shape.early ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, Params(std::forward<Args>(args))...);
}

}  // namespace jevons::cuda

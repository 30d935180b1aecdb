// What CUDA adds to C++: its keywords, the vector types, and the launch.
#pragma once

#include <cuda_runtime_api.h>

#include <cmath>
#include <functional>
#include <tuple>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

#define JEVONS_EMU_VECTOR2(type, element, alignment) \
  struct alignas(alignment) type {                   \
    element x, y;                                    \
  };                                                 \
  constexpr type make_##type(element x, element y) { return type{x, y}; }
#define JEVONS_EMU_VECTOR4(type, element, alignment)                       \
  struct alignas(alignment) type {                                         \
    element x, y, z, w;                                                    \
  };                                                                       \
  constexpr type make_##type(element x, element y, element z, element w) { \
    return type{x, y, z, w};                                               \
  }
JEVONS_EMU_VECTOR2(int2, int, 8)
JEVONS_EMU_VECTOR2(uint2, unsigned, 8)
JEVONS_EMU_VECTOR2(float2, float, 8)
JEVONS_EMU_VECTOR2(double2, double, 16)
JEVONS_EMU_VECTOR2(longlong2, long long, 16)
JEVONS_EMU_VECTOR2(ulonglong2, unsigned long long, 16)
JEVONS_EMU_VECTOR4(int4, int, 16)
JEVONS_EMU_VECTOR4(uint4, unsigned, 16)
JEVONS_EMU_VECTOR4(float4, float, 16)
#undef JEVONS_EMU_VECTOR2
#undef JEVONS_EMU_VECTOR4

namespace jevons::emu {

// Checks the launch as CUDA does, then EnqueueKernel. `thread_body` is one thread's run.
cudaError_t LaunchKernel(const cudaLaunchConfig_t& config, const void* kernel,
                         std::function<void()> thread_body);

}  // namespace jevons::emu

// The arguments are copied when the launch is queued, as CUDA copies them.
template <typename... Params, typename... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                               Args&&... args) {
  return jevons::emu::LaunchKernel(
      *config, reinterpret_cast<const void*>(kernel),
      [kernel, params = std::tuple<std::decay_t<Params>...>(std::forward<Args>(args)...)] {
        std::apply(kernel, params);
      });
}

template <typename T>
cudaError_t cudaMalloc(T** data, size_t bytes) {
  return cudaMalloc(reinterpret_cast<void**>(data), bytes);
}
template <typename T>
cudaError_t cudaMallocHost(T** data, size_t bytes, unsigned flags = cudaHostAllocDefault) {
  return cudaHostAlloc(reinterpret_cast<void**>(data), bytes, flags);
}
template <typename T>
cudaError_t cudaFuncSetAttribute(T* kernel, cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

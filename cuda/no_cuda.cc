// Stands for the backend in a build without CUDA.
#include "cuda/cuda_backend.h"

namespace jevons {

int32_t NumCudaDevices() { return 0; }

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const CudaBackendOptions& options) {
  return absl::UnimplementedError(
      "this build has no CUDA: it was configured where nvcc was not found");
}

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaPlanner(const CudaDeviceSpec& device) {
  return absl::UnimplementedError(
      "this build has no CUDA: it was configured where nvcc was not found");
}

}  // namespace jevons

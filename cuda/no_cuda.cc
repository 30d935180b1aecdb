// Stands for the backend in a build without CUDA.
#include "cuda/cuda_backend.h"

namespace jevons {
namespace {

absl::Status NoCuda() {
  return absl::UnimplementedError(
      "this build has no CUDA: it was configured where nvcc was not found");
}

}  // namespace

int32_t NumCudaDevices() { return 0; }

absl::StatusOr<std::string> CudaDeviceArch(int32_t device) { return NoCuda(); }

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const CudaBackendOptions& options) {
  return NoCuda();
}

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaPlanner(const CudaDeviceSpec& device,
                                                           const CudaBackendOptions& options) {
  return NoCuda();
}

}  // namespace jevons

// The CUDA backend's factory: all that other folders see of it.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"
#include "ops/backend.h"

namespace jevons {

struct CudaBackendOptions {
  int32_t device = 0;
  bool records_steps = true;  // RunStep through CUDA graphs
  // From sm_90 on a kernel of a step begins, and asks for its weights, before the one in front has
  // ended. The results are the same. Not where others put kernels into the queue.
  bool early_launches = true;
  // cuBLASLt for the dense products of Linear with at least so many rows and a weight kept in bf16, 0:
  // for none. A row's bits then depend on the number of rows beside it.
  int32_t cublaslt_rows = 0;
};

// Devices that a driver offers; 0 without one.
int32_t NumCudaDevices();

// "sm_90". NOT_FOUND without such a device; UNIMPLEMENTED in a build without CUDA.
absl::StatusOr<std::string> CudaDeviceArch(int32_t device);

// The device is the calling thread's from now on. NOT_FOUND without such a device; FAILED_PRECONDITION
// where it is older than sm_80 or gives a block less than 160 KiB of shared memory; UNIMPLEMENTED
// in a build without CUDA, or without cuBLASLt where the options want it; UNAVAILABLE where it is not
// on this machine.
absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const CudaBackendOptions& options);

// A device as its data sheet has it, for plans that are made without one.
struct CudaDeviceSpec {
  std::string_view name;     // as --gpu takes it
  int64_t memory_bytes = 0;  // that the driver leaves to programs
  int32_t sm = 0;
  int32_t num_sms = 0;
};

// INVALID_ARGUMENT with the names that are known.
absl::StatusOr<CudaDeviceSpec> FindCudaDeviceSpec(std::string_view name);

// Takes no memory and computes nothing: AvailableBytes is what the backend would have left on such a
// device, and may be below 0. UNIMPLEMENTED in a build without CUDA.
absl::StatusOr<std::unique_ptr<Backend>> CreateCudaPlanner(const CudaDeviceSpec& device,
                                                           const CudaBackendOptions& options = {});

}  // namespace jevons

#include "cuda/cuda_error.h"

#include "absl/strings/str_cat.h"
#include "base/strings.h"

namespace jevons::cuda {

absl::Status ToStatus(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string text = absl::StrCat(ToAbsl(what), ": ", cudaGetErrorString(error), " (",
                                        cudaGetErrorName(error), ")");
  if (error == cudaErrorMemoryAllocation) return absl::ResourceExhaustedError(text);
  return absl::InternalError(text);
}

}  // namespace jevons::cuda

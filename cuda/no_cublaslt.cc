// Stands for cublaslt.cc in a build without cuBLASLt's header.
#include "cuda/cublaslt.h"

namespace jevons::cuda {

absl::StatusOr<std::unique_ptr<CublasLt>> CreateCublasLt(int64_t unpacked_bytes) {
  return absl::UnimplementedError(
      "this build has no cuBLASLt: it was configured where cublasLt.h was not found");
}

}  // namespace jevons::cuda
